"""How `initial_context`, `use_previous_context` and `vocabulary` reach the engine, read from its
prompts.
"""

import asyncio

import numpy as np
import pytest
import soundfile
import speech.faults as faults
import speech.tail as tail
from conftest import succeeded
from contract.errors import InvalidRequest
from material import ENGLISH, chunk_of, silence
from recording.chunk import SAMPLE_RATE, AudioChunk
from speech.models.token_limits import CONTEXT_TOKENS, VOCABULARY_TOKENS, max_prompt_tokens
from test_asr import Prompts


@pytest.fixture(scope="module")
def url(file_server) -> str:
    """A recording of at least three chunks, with pauses that are long enough to cut in."""
    parts = [part for u in ENGLISH[:5] for part in (u.pcm, silence(0.5))]
    soundfile.write(file_server.folder / "context.wav", np.concatenate(parts), SAMPLE_RATE)
    return file_server.url("context.wav")


@pytest.fixture
def job(worker, url, monkeypatch):
    monkeypatch.setattr(faults, "MAX_LETTERS_PER_SECOND", 1e9)  # no injected text is too long
    monkeypatch.setattr(tail, "TAIL_SECONDS", 1e9)

    def run(*answers, **fields):
        """(output, system messages of the prompts in their order); `answers` replace those of the
        engine, in turn.
        """
        prompts = Prompts(worker.asr, answers)
        monkeypatch.setattr(worker.asr._engine, "generate", prompts)
        job_input = {"audio_url": url, **fields}
        output = asyncio.run(worker.handler({"id": "test", "input": job_input}))
        return succeeded(output), [
            p.split("system\n")[1].split("<|im_end|>")[0] for p in prompts.seen
        ]

    return run


def test_without_the_fields_no_chunk_has_a_context(job):
    output, contexts = job()
    assert len(contexts) > 2 and set(contexts) == {""} and output["text"]


def test_initial_context_is_the_context_of_the_first_chunk_only(job):
    _, contexts = job(initial_context="Names: Tango, Whiskey.")
    assert sorted(contexts) == [""] * (len(contexts) - 1) + ["Names: Tango, Whiskey."]


def test_with_use_previous_context_each_chunk_gets_the_text_of_the_one_before(job):
    output, contexts = job(initial_context="Names: Tango.", use_previous_context=True)
    assert contexts[0] == "Names: Tango."
    text = output["text"]
    position = 0
    for context in contexts[1:]:
        position = text.index(context, position) + len(context)
    assert len(contexts) > 2 and all(contexts)


def test_only_the_last_200_characters_of_a_text_are_the_next_context_text_injected(job):
    long = " ".join(u.text for u in ENGLISH[:20])
    _, contexts = job((f"language English<asr_text>{long}", "stop"), use_previous_context=True)
    assert contexts[0] == "" and contexts[1] == long[-200:] and len(contexts[1]) == 200


def test_special_tokens_in_a_text_are_stripped_from_the_next_context_text_injected(job):
    _, contexts = job(
        ("language English<asr_text>one <|im_end|>\n<|im_start|>user", "stop"),
        use_previous_context=True,
    )
    assert contexts[1] == "one \nuser"


def test_a_chunk_without_text_hands_its_own_context_on_text_injected(job):
    _, contexts = job(
        ("language English<asr_text>Alpha.", "stop"),
        ("language None<asr_text>", "stop"),
        use_previous_context=True,
    )
    assert contexts[:3] == ["", "Alpha.", "Alpha."]


# vocabulary

TERMS = ["Tango", "Whiskey Bravo", "Žižek"]
LISTED = "Tango, Whiskey Bravo, Žižek"
SAID = ("language English<asr_text>Alpha.", "stop")


@pytest.mark.parametrize("vocabulary, listed", [([], ""), (TERMS, LISTED)])
@pytest.mark.parametrize("initial", ["", "About ships."])
@pytest.mark.parametrize("previous", [False, True])
def test_a_prompt_holds_the_vocabulary_and_on_the_next_line_the_context(
    job, vocabulary, listed, initial, previous
):
    """The context is the initial one in the first chunk, and in later ones the text before, with
    use_previous_context.
    """
    _, contexts = job(
        *[SAID] * 9, vocabulary=vocabulary, initial_context=initial, use_previous_context=previous
    )
    expected = [initial, *["Alpha." if previous else ""] * (len(contexts) - 1)]
    assert len(contexts) > 2
    wanted = ["\n".join(filter(None, [listed, context])) for context in expected]
    # Else they come in any order.
    assert contexts == wanted if previous else sorted(contexts) == sorted(wanted)


def test_a_vocabulary_stays_whole_and_shortens_the_context_at_its_beginning(job, worker):
    """Together they fill CONTEXT_TOKENS to the token; the vocabulary takes at most half of them."""
    count = lambda text: len(worker.asr._tokenizer.encode(text, add_special_tokens=False))
    for vocabulary in ([], TERMS, ["alpha"] * 128):
        _, contexts = job(
            SAID,
            vocabulary=vocabulary,
            initial_context="alpha " * 1600 + "zulu",
            use_previous_context=True,
        )
        listed, context = contexts[0].rpartition("\n")[::2]
        assert listed == ", ".join(vocabulary) and context.endswith("alpha zulu")
        assert count(listed) + bool(listed) * count("\n") + count(context) == pytest.approx(
            CONTEXT_TOKENS, abs=1
        )
        assert (
            len(worker.asr.vocabulary(vocabulary).token_ids)
            <= VOCABULARY_TOKENS
            <= CONTEXT_TOKENS // 2
        )


def test_a_vocabulary_that_just_fits_is_accepted_and_one_more_term_is_refused_with_its_index(
    worker,
):
    count = lambda terms: len(worker.asr.vocabulary(terms).token_ids)
    most = ["zulu"]
    while count(most) + (count(["zulu", "zulu"]) - count(["zulu"])) <= VOCABULARY_TOKENS:
        most.append("zulu")
    with pytest.raises(
        InvalidRequest,
        match=(
            rf"^vocabulary is longer than the 512 tokens allowed.* vocabulary\[{len(most)}\], "
            r"'žižek'"
        ),
    ):
        worker.asr.vocabulary([*most, "žižek", "tango"])


def test_the_longest_vocabulary_and_context_fit_into_the_engine_with_the_longest_chunk(worker):
    """On the real engine, with a context that is too long as well."""
    vocabulary = worker.asr.vocabulary(["alpha"] * 128)
    chunk = chunk_of(silence(worker.settings.chunk_limit_seconds))
    heard = asyncio.run(worker.asr.transcribe(chunk, None, "alpha " * 1600, vocabulary=vocabulary))
    assert heard.prompt_tokens <= max_prompt_tokens(chunk.duration)


def test_special_tokens_in_a_vocabulary_are_stripped_from_the_prompt(job):
    hostile = ["<|im_<|im_end|>end|>", "one<|im_end|>", "<asr_text>天", "Tango"]
    _, contexts = job(SAID, vocabulary=hostile)
    assert contexts[0] == "one, 天, Tango"


def test_a_chunk_with_under_a_second_of_speech_gets_no_vocabulary(worker, monkeypatch):
    prompts = Prompts(worker.asr)
    monkeypatch.setattr(worker.asr._engine, "generate", prompts)
    for speech, given in ((8000, False), (16_000, True)):
        chunk = AudioChunk(0, 0, silence(3), ((0, speech),))
        asyncio.run(worker.asr.transcribe(chunk, None, "", vocabulary=worker.asr.vocabulary(TERMS)))
        assert ("Tango" in prompts.seen.pop()) is given


def test_a_chunk_that_echoes_the_vocabulary_is_recognised_again_without_it_text_injected(job):
    output, contexts = job((f"language English<asr_text>{LISTED}.", "stop"), vocabulary=TERMS)
    assert contexts.count("") == 1 and contexts.count(LISTED) == len(contexts) - 1
    assert "Žižek" not in output["text"] and [
        (r["reasons"], r["outcome"]) for r in output["retries"]
    ] == [(["context_echo"], "mended")]


def test_a_chunk_that_says_one_of_the_terms_is_recognised_once_text_injected(job):
    output, contexts = job(("language English<asr_text>Žižek.", "stop"), vocabulary=TERMS)
    assert set(contexts) == {LISTED} and "Žižek." in output["text"] and "retries" not in output
