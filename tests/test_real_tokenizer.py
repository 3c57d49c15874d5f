"""The worker with the real vocabulary: prompts, limits and answers in real tokens, and the aligner.

The aligner's network has the real vocabulary, two layers of 16 numbers and random weights: its
times mean nothing.
"""

import asyncio
import itertools
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import real_models
from contract.errors import InvalidRequest
from hypothesis import given, settings
from hypothesis import strategies as st
from material import chunk_of, noise
from recording.chunk import SAMPLE_RATE
from speech.models.aligner import Aligner
from speech.models.answer_tokens import answer_tokens
from speech.models.prompt import parsed, prompt_template
from speech.models.recogniser import Recogniser
from speech.models.token_limits import (
    AUDIO_TOKENS_PER_SECOND,
    MAX_TEXT_TOKENS_PER_SECOND,
    PROMPT_TOKENS,
    VOCABULARY_TOKENS,
)
from speech.models.tokenizer import load_tokenizer, special_tokens, without_tokens
from speech.tokens import tokens_in
from vllm import SamplingParams
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

AUDIO_PAD, TIMESTAMP = 151676, 151705
# Cased inside the word, or cut by Mistral's rules in another way than by Qwen's
NAMES = ("iPhone", "YouTube", "GitHub", "GmbH", "JavaScript", "LinkedIn", "ChatGPT", "L'Oréal")


@pytest.fixture(scope="module")
def tokenizer(real_checkpoints):
    """As the recogniser loads it."""
    return load_tokenizer(str(real_checkpoints / "0.6B"))


@pytest.fixture(scope="module")
def recogniser(tokenizer) -> Recogniser:
    """The real one without its engine: for its prompts."""
    recogniser = Recogniser.__new__(Recogniser)
    recogniser._tokenizer = tokenizer
    recogniser._special_tokens = special_tokens(tokenizer)
    return recogniser


# the tokenizer


@pytest.fixture
def transformers_log() -> Iterator[list[str]]:
    """What transformers logs; its logger does not pass anything on to pytest's."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield logged
    logger.removeHandler(handler)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_split_as_the_published_tokenizer_splits_them(tokenizer, published, name):
    for text in (name, f" {name}", f"({name})"):
        assert tokenizer.encode(text) == published.encode(text)


def test_the_names_that_a_repair_for_mistral_would_split_are_one_token(tokenizer):
    assert [len(tokenizer.encode(name)) for name in ("iPhone", "YouTube", "GitHub")] == [1, 1, 1]


def test_loading_the_tokenizer_logs_no_warning(real_checkpoints, transformers_log):
    load_tokenizer(str(real_checkpoints / "0.6B"))
    assert not [message for message in transformers_log if "regex" in message]


def test_the_vocabulary_has_the_published_ids(tokenizer):
    published_ids = {
        "language English<asr_text>": [11528, 6364, 151704],
        "language Chinese<asr_text>甚至出现交易几乎停滞的情况。": [
            11528,
            8453,
            151704,
            100636,
            100347,
            99886,
            100740,
            118083,
            102072,
            1773,
        ],
    }
    assert {text: tokenizer.encode(text) for text in published_ids} == published_ids


# the prompt


def test_the_prompt_has_the_published_ids(recogniser):
    system, user, assistant = 8948, 872, 77091
    start, end, line_end = 151644, 151645, 198
    audio = [151669, AUDIO_PAD, 151670]
    language = [11528, 6364, 151704]
    assert recogniser._prompt("", "English", recogniser.vocabulary([])) == [
        *(start, system, line_end, end, line_end),
        *(start, user, line_end, *audio, end, line_end),
        *(start, assistant, line_end, *language),
    ]


@pytest.mark.parametrize("language", [None, "English", "Portuguese", "Macedonian"])
def test_the_rest_of_a_prompt_stays_within_what_is_set_aside_for_it(tokenizer, language):
    assert len(tokenizer.encode("".join(prompt_template(language)))) <= PROMPT_TOKENS


HOSTILE = ("<|im_end|>", "<asr_text>", "<non_speech>", "<blank1>", "<blank27>", "<tts_pad>")
HOSTILE += ("<timestamp>", "<|audio_pad|>", "<think>", "</tool_call>", "<|endoftext|>")


@pytest.mark.parametrize("token", HOSTILE)
def test_a_context_and_a_vocabulary_hold_no_token_that_was_added_to_the_text(recogniser, token):
    plain = recogniser._prompt("one two", None, recogniser.vocabulary(["three"]))
    hostile = recogniser.vocabulary([f"{token}three"])
    assert recogniser._prompt(f"one {token}two", None, hostile) == plain


def test_every_added_token_is_stripped(tokenizer):
    every = "".join(real_models.ADDED_TOKENS)
    assert without_tokens(special_tokens(tokenizer), f"a{every}b") == "ab"


FIRST_NAMES = (
    "Anna",
    "Mohammed",
    "Wei",
    "Priya",
    "Carlos",
    "Ingrid",
    "Kwame",
    "Yuki",
    "Olga",
    "Jean",
)
LAST_NAMES = (
    "Müller",
    "Rodríguez",
    "Okafor",
    "Nakamura",
    "Papadopoulos",
    "Smith",
    "Żukowski",
    "Nguyen",
)
LAST_NAMES += (
    "Chatterjee",
    "van den Berg",
    "Ivanova",
    "O'Brien",
    "Al-Farsi",
    "Lindqvist",
    "Lee",
    "Öztürk",
)


def test_the_vocabulary_holds_about_150_names(recogniser):
    """As the README says: as many single names as first and last names together in these."""
    names = [*FIRST_NAMES, *LAST_NAMES] * 10
    fitting = 0
    while fitting < len(names) and _fits(recogniser, names[: fitting + 1]):
        fitting += 1
    assert 120 <= fitting <= 200, f"{fitting} names take {VOCABULARY_TOKENS} tokens"


def _fits(recogniser: Recogniser, terms: list[str]) -> bool:
    try:
        return bool(recogniser.vocabulary(terms).terms)
    except InvalidRequest:
        return False


# the answer


@pytest.mark.parametrize(
    "answer, forced, expected",
    [
        ("language English<asr_text>Hello there.<|im_end|>", None, ("English", "Hello there.")),
        ("language Chinese<asr_text>甚至出现。<|im_end|>", None, ("Chinese", "甚至出现。")),
        ("language None<asr_text><|im_end|>", None, (None, "")),
        ("Γεια σου.<|endoftext|>", "Greek", ("Greek", "Γεια σου.")),
    ],
)
def test_an_answer_in_real_tokens_is_parsed(tokenizer, answer, forced, expected):
    decoded = tokenizer.decode(tokenizer.encode(answer), skip_special_tokens=True)
    assert parsed(decoded, forced) == expected


# Two sentences of conversation, the same in every language.
SAMPLES = {
    "English": (
        "I was on my way home yesterday when it started to rain, so I stopped at a small "
        "café and called my sister. She told me that the children had already eaten and "
        "that there was no need to hurry."
    ),
    "Chinese": (
        "昨天我在回家的路上突然下起了雨，所以我在一家小咖啡馆停下来给姐姐打了个电话。"
        "她说孩子们已经吃过饭了，不用着急。"
    ),
    "Japanese": (
        "昨日家に帰る途中で雨が降り始めたので、小さな喫茶店に寄って姉に電話をかけました。"
        "子供たちはもうご飯を食べたから急がなくていいと言われました。"
    ),
    "Korean": (
        "어제 집에 가는 길에 비가 오기 시작해서 작은 카페에 들러 언니에게 전화를 했어요. "
        "아이들은 벌써 밥을 먹었으니까 서두를 필요가 없다고 했어요."
    ),
    "Russian": (
        "Вчера по дороге домой начался дождь, поэтому я зашла в маленькое кафе и "
        "позвонила сестре. Она сказала, что дети уже поели и что спешить не нужно."
    ),
    "Turkish": (
        "Dün eve giderken yağmur yağmaya başladı, ben de küçük bir kafeye girip ablamı "
        "aradım. Çocukların yemeklerini çoktan yediklerini ve acele etmeme gerek "
        "olmadığını söyledi."
    ),
    "Persian": (
        "دیروز در راه خانه باران گرفت، برای همین به یک کافه کوچک رفتم و به خواهرم زنگ "
        "زدم. او گفت بچه‌ها غذا خورده‌اند و لازم نیست عجله کنم."
    ),
    "Thai": (
        "เมื่อวานฝนตกระหว่างทางกลับบ้าน ฉันเลยแวะร้านกาแฟเล็กๆ แล้วโทรหาพี่สาว เธอบอกว่าเด็กๆ กินข้าวกันแล้ว ไม่ต้องรีบ"
    ),
    "Hindi": (
        "कल घर लौटते समय बारिश शुरू हो गई, इसलिए मैं एक छोटे से कैफ़े में रुक गया और अपनी "
        "बहन को फ़ोन किया। उसने कहा कि बच्चों ने खाना खा लिया है और जल्दी करने की कोई "
        "ज़रूरत नहीं है।"
    ),
    "Greek": (
        "Χθες, καθώς γύριζα στο σπίτι, άρχισε να βρέχει και μπήκα σε ένα μικρό καφενείο "
        "για να τηλεφωνήσω στην αδελφή μου. Μου είπε ότι τα παιδιά είχαν ήδη φάει και ότι "
        "δεν χρειαζόταν να βιαστώ."
    ),
}
PARTS = "😀👨‍👩‍👧‍👦 𠮷野家 ñandú ½ ㎏ 𝄞 🇫🇮"  # most of these characters take several tokens
LIKE_ITS_HEAD = "language Chinese: an age in China"  # the answer begins with the same letters
FAST_WORDS_PER_SECOND = 5.2  # 1.4 times a usual rate
FAST_CHARACTERS_PER_SECOND = {"Chinese": 9, "Japanese": 11, "Thai": 24}  # written without spaces
TOKENS_PER_WORD = {
    "English": 1.1,
    "Russian": 1.9,
    "Turkish": 2.3,
    "Persian": 2.9,
    "Hindi": 4.1,
    "Greek": 4.4,
}


@pytest.mark.parametrize("language", SAMPLES)
def test_fast_speech_stays_under_the_limit_of_an_answer(tokenizer, language):
    text = SAMPLES[language]
    if language in FAST_CHARACTERS_PER_SECOND:
        seconds = len(text) / FAST_CHARACTERS_PER_SECOND[language]
    else:
        seconds = len(text.split()) / FAST_WORDS_PER_SECOND
    assert len(tokenizer.encode(text)) < MAX_TEXT_TOKENS_PER_SECOND * seconds


@pytest.mark.parametrize("language", TOKENS_PER_WORD)
def test_a_word_takes_as_many_tokens_as_the_limit_was_computed_with(tokenizer, language):
    tokens = len(tokenizer.encode(SAMPLES[language]))
    assert tokens / len(SAMPLES[language].split()) == pytest.approx(
        TOKENS_PER_WORD[language], rel=0.1
    )


# the probabilities of the tokens


@pytest.mark.parametrize("text", [*SAMPLES.values(), PARTS, LIKE_ITS_HEAD])
def test_the_tokens_of_an_answer_are_where_the_published_tokenizer_has_them(
    tokenizer, published, text
):
    encoded = published(text, return_offsets_mapping=True)
    spoken = [(token_id, -0.01 * i) for i, token_id in enumerate(encoded["input_ids"])]
    middle = len(spoken) // 2
    for head in ("", "language Chinese<asr_text>"):
        before, within, end = (
            [(token_id, -9.0) for token_id in tokenizer.encode(added)]
            for added in (head, "<non_speech>", "<|im_end|>")
        )
        answer = [*before, *spoken[:middle], *within, *spoken[middle:], *end]
        tokens = answer_tokens(tokenizer, *zip(*answer), text)
        assert [(token.id, token.logprob) for token in tokens] == spoken
        for token, (start, end) in zip(tokens, encoded["offset_mapping"]):
            # The mapping leaves out a space before a word.
            assert token.end == end and token.start in (start, start - 1), (token, start, end)


@given(st.lists(st.integers(0, 151_704), max_size=40))
@settings(max_examples=200)
def test_every_character_of_any_answer_has_a_token(tokenizer, ids):
    text = without_tokens(special_tokens(tokenizer), parsed(detokenized(tokenizer, ids), None)[1])
    tokens = answer_tokens(tokenizer, ids, [-1.0] * len(ids), text.strip())
    assert all(tokens_in(tokens, i, i + 1) for i in range(len(text.strip())))


def detokenized(tokenizer, ids: list[int]) -> str:
    """As vLLM does it."""
    request = SimpleNamespace(
        sampling_params=SamplingParams(), prompt_token_ids=[], prompt_embeds=None, request_id="1"
    )
    detokenizer = FastIncrementalDetokenizer(tokenizer, request)
    detokenizer.update(ids, False)
    return detokenizer.output_text


# the aligner


@pytest.fixture(scope="module")
def aligner(real_checkpoints, tmp_path_factory) -> Iterator[Aligner]:
    folder = tmp_path_factory.mktemp("narrow")
    write_narrow_aligner(folder, real_checkpoints / "aligner")
    aligner = Aligner(str(folder), "cpu", "float32", 60, 60)
    aligner.start()
    yield aligner
    aligner.close()


def write_narrow_aligner(folder: Path, real: Path) -> None:
    """The real aligner's files, with two layers of 16 numbers and random weights."""
    from qwen_asr.core.transformers_backend import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
    from safetensors.torch import save_file

    shutil.copytree(
        real, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors")
    )
    config = json.loads((folder / "config.json").read_text())
    layers = {"encoder_layers": 2, "num_hidden_layers": 2, "encoder_attention_heads": 1}
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "downsample_hidden_size": 4, "output_dim": 16}
    config["thinker_config"]["audio_config"] |= layers | sizes
    heads = {
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    rope = config["thinker_config"]["text_config"]["rope_scaling"] | {"mrope_section": [4, 2, 2]}
    narrow = {"hidden_size": 16, "intermediate_size": 16, "rope_scaling": rope}
    config["thinker_config"]["text_config"] |= heads | narrow
    (folder / "config.json").write_text(json.dumps(config))
    network = Qwen3ASRForConditionalGeneration(Qwen3ASRConfig.from_pretrained(folder))
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


SPOKEN = {
    "English": ("My iPhone is on GitHub, isn't it?", 7),
    "Chinese": ("我的iPhone在家。", 5),
    "German": ("Die YouTube GmbH.", 3),
    "Russian": ("Она сказала да.", 3),
}


@pytest.mark.parametrize("language", SPOKEN)
def test_the_aligner_s_prompt_has_two_timestamps_a_unit_and_thirteen_tokens_a_second(
    aligner, language
):
    text, units = SPOKEN[language]
    task = aligner._prepared(chunk_of(noise(3)), text, language, None)
    ids = task.token_ids.tolist()
    assert len(task.units) == units
    assert ids.count(TIMESTAMP) == 2 * units
    assert ids.count(AUDIO_PAD) == 3 * AUDIO_TOKENS_PER_SECOND


@pytest.mark.parametrize("language", SPOKEN)
def test_the_aligner_s_words_are_split_as_the_published_tokenizer_splits_them(
    aligner, published, language
):
    task = aligner._prepared(chunk_of(noise(1)), SPOKEN[language][0], language, None)
    ids = task.token_ids.tolist()
    of_words = [
        list(group) for is_mark, group in itertools.groupby(ids, TIMESTAMP.__eq__) if not is_mark
    ]
    # These come after the audio's start, padding and end.
    of_words[0] = of_words[0][1 + AUDIO_TOKENS_PER_SECOND + 1 :]
    assert of_words == [published.encode(unit) for unit in task.units]


def test_the_aligner_times_every_word_of_the_real_vocabulary(aligner):
    text = SAMPLES["English"]
    chunk = chunk_of(noise(12))
    words = asyncio.run(aligner.align(chunk, text, "English"))
    assert [word.text.strip(".,") for word in words] == [word.strip(".,") for word in text.split()]
    assert all(0 <= word.start < word.end <= len(chunk.pcm) / SAMPLE_RATE for word in words)
