"""Promises of a transcript: every second accounted for, segments that are slices of the text,
sentences, languages, valid times.
"""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import succeeded
from contract.languages import ALIGNED_LANGUAGES as ALIGNED
from contract.languages import LANGUAGES
from hypothesis import given, settings
from hypothesis import strategies as st
from material import CHINESE, ENGLISH, chunk_of, silence, voice
from recording.chunk import SAMPLE_RATE, AudioChunk
from result.account import Admitted, LostResults, check_account, coverage
from result.transcript import merge
from speech.admission import chunk_priority
from speech.word_times import estimated_words
from speech.words import ChunkResult
from utterance import plain

# One sentence or two for each of the languages: marks, apostrophes, digits, quotes, several
# scripts, emoji.
SPOKEN = {
    "Chinese": "今天天气很好，气温25度。“我们”去公园吧！",
    "English": "Don't stop-gap it: \"Dr. Who\" isn't here (yet)… 3.14 👍 OK?",
    "Cantonese": "你食咗飯未呀？我哋聽日去「旺角」行街。",
    "Japanese": "カメラを５つください。「ガラス」は東京で買った！",
    "Korean": "안녕하세요, 여러분! 오늘은 3월 1일입니다.",
    "French": "L'été, qu'est-ce que c'est ? « Rien », dit-il.",
    "German": "Größe, Übermut und „Straße“ – das kostet 12,50 €.",
    "Spanish": "¿Qué tal? ¡Muy bien! El niño comió 2 piñas.",
    "Portuguese": "Não, ação é pão-de-ló; às 8h30.",
    "Italian": "L'università è qui: perché no? Sì!",
    "Arabic": "مرحبا، كيف حالك؟ أنا بخير، ١٢ كتابًا.",
    "Russian": "Привет – мир! Ёлка стоит 100 рублей.",
    "Thai": "สวัสดีครับ ผมชื่อสมชาย อายุ ๒๕ ปี",
    "Vietnamese": "Xin chào! Tiếng Việt có dấu, được không?",
    "Indonesian": "Selamat pagi, anak-anak! Apa kabar?",
    "Turkish": "İstanbul'da ılık bir gün; değil mi?",
    "Hindi": "नमस्ते दुनिया। आप कैसे हैं? मैं ठीक हूँ!",
    "Malay": "Selamat datang! Buku-buku itu mahal.",
    "Dutch": "'s Ochtends drinkt hij koffie; zo'n 3 koppen.",
    "Swedish": "Åsa äter kött – på fredag?",
    "Danish": "Rødgrød med fløde, tak! Ærlig talt.",
    "Finnish": "Hyvää päivää! Äiti söi 5 omenaa.",
    "Polish": "Cześć, jak się masz? Źdźbło trawy…",
    "Czech": "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Filipino": "Kumusta ka? Mabuti naman, salamat po!",
    "Persian": "سلام! حال شما چطور است؟ می‌روم خانه.",
    "Greek": "Καλημέρα! Τι κάνεις; Είμαι «καλά».",
    "Romanian": "Bună ziua! Ştiţi că-i frig în ţară?",
    "Hungarian": "Jó napot! Árvíztűrő tükörfúrógép.",
    "Macedonian": "Здраво! Ќе дојдеш ли утре? Ѓорѓи чека.",
}


def chunk_result(
    text: str,
    start: float = 0.0,
    language: str = "English",
    seconds: float = 4.0,
    speech: float | None = None,
) -> ChunkResult:
    """A chunk whose words are spread over its seconds."""
    chunk = chunk_of(silence(seconds), offset=round(start * SAMPLE_RATE))
    return ChunkResult(
        start, start + seconds, speech or seconds, text, language, estimated_words(chunk, text)
    )


# text and segments


def test_the_examples_cover_every_language():
    assert set(SPOKEN) == set(LANGUAGES) and len(LANGUAGES) == 30 and len(ALIGNED) == 11


@pytest.mark.parametrize("language", SPOKEN)
def test_segments_are_slices_of_the_text_and_with_punctuation_hold_all_of_it(language):
    text = SPOKEN[language]
    output = merge([chunk_result(text, 0, language), chunk_result(text, 4, language)], 8).to_output(
        punctuation=True
    )
    position, rebuilt = 0, ""
    for s in output["segments"]:
        assert output["text"][s["offset"] : s["offset"] + s["length"]] == s["text"]
        between = output["text"][position : s["offset"]]
        assert between.strip() == ""
        rebuilt += between + s["text"]
        position = s["offset"] + s["length"]
    assert rebuilt == output["text"]


@pytest.mark.parametrize("language", SPOKEN)
def test_words_without_punctuation_are_slices_that_begin_with_a_letter_and_end_before_punctuation(
    language,
):
    output = merge([chunk_result(SPOKEN[language], 0, language)], 4).to_output()
    for s in output["segments"]:
        assert output["text"][s["offset"] :][: s["length"]] == s["text"]
        assert s["text"][0].isalnum() and not s["text"].endswith((".", ",", "!", "?", "。", "，"))


def test_punctuation_goes_with_the_word_it_belongs_to():
    output = merge([chunk_result('He said: "Go (now)!" ¿Sí? 他说：「走」。')], 4).to_output(
        punctuation=True
    )
    assert [s["text"] for s in output["segments"]] == [
        "He",
        "said:",
        '"Go',
        '(now)!"',
        "¿Sí?",
        "他",
        "说：",
        "「走」。",
    ]


# sentences


def sentences(text: str, **fields) -> list[str]:
    return [
        s["text"]
        for s in merge([chunk_result(text, **fields)], 9).to_output("sentence")["segments"]
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One two. Three four! Five?", ["One two.", "Three four!", "Five?"]),
        ("今天很好。明天呢？好！", ["今天很好。", "明天呢？", "好！"]),
        (
            "It costs 3.14 today. J. Smith of the U.S. knows.",
            ["It costs 3.14 today.", "J. Smith of the U.S. knows."],
        ),
        ('"Go." "No!" he said', ['"Go."', '"No!"', "he said"]),
        ("नमस्ते दुनिया। आप कैसे हैं?", ["नमस्ते दुनिया।", "आप कैसे हैं?"]),
        ("مرحبا. كيف حالك؟ بخير", ["مرحبا.", "كيف حالك؟", "بخير"]),
        ("no end", ["no end"]),
    ],
)
def test_sentences_end_at_terminators(text, expected):
    assert sentences(text) == expected


def test_a_long_pause_ends_a_sentence():
    chunks = [chunk_result("and then", 0, seconds=1), chunk_result("he went", 4, seconds=1)]
    output = merge(chunks, 5).to_output("sentence")
    assert [(s["text"], s["start"], s["end"]) for s in output["segments"]] == [
        ("and then", 0.0, 1.0),
        ("he went", 4.0, 5.0),
    ]


def test_a_sentence_has_a_longest_length():
    found = sentences("word " * 200 + "end.", seconds=60)
    assert (
        len(found) > 2
        and all(len(s) <= 240 for s in found)
        and " ".join(found) == "word " * 200 + "end."
    )


def test_both_gives_words_and_sentences_that_share_their_times():
    output = merge([chunk_result("One two. Three four.")], 4).to_output("both")
    words, sentences = output["segments"], output["sentences"]
    assert len(words) == 4 and [s["text"] for s in sentences] == ["One two.", "Three four."]
    assert [s["start"] for s in sentences] == [words[0]["start"], words[2]["start"]]
    assert [s["end"] for s in sentences] == [words[1]["end"], words[3]["end"]]


# the account


ADMITTED = [Admitted(None, *span) for span in ((0.0, 2.0), (2.0, 5.0), (6.0, 8.0))]
RESULTS = [ChunkResult(*span, 1) for span in ((0, 2), (2, 3.5), (3.5, 5), (6, 8))]


def test_results_that_tile_every_admitted_chunk_are_an_account_in_any_order():
    check_account(RESULTS, ADMITTED)
    check_account(RESULTS[::-1], ADMITTED)
    check_account([], [])


@pytest.mark.parametrize("lost", range(len(RESULTS)))
def test_a_lost_result_is_no_silence(lost):
    with pytest.raises(LostResults):
        check_account(RESULTS[:lost] + RESULTS[lost + 1 :], ADMITTED)


@pytest.mark.parametrize("span", [(0, 2), (1, 3), (5, 6), (4, 7), (8, 9)], ids=str)
def test_a_result_too_many_is_found(span):
    with pytest.raises(LostResults):
        check_account([*RESULTS, ChunkResult(*span, 1)], ADMITTED)


def test_a_result_over_two_chunks_is_found():
    with pytest.raises(LostResults):
        check_account([ChunkResult(0, 5, 1), RESULTS[-1]], ADMITTED)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 9), st.sampled_from([None, "loop"])), max_size=8
    ),
    st.integers(0, 5),
)
def test_the_account_fails_exactly_the_seconds_of_failed_chunks(parts, tail):
    at, chunks = 0, []
    for gap, length, failure in parts:
        at += gap
        chunks.append(ChunkResult(at, at + length, length, failure=failure))
        at += length
    failed = [s for s in coverage(chunks, at + tail) if s.state == "failed"]
    assert [(s.start, s.end) for s in failed] == [(c.start, c.end) for c in chunks if c.failure]
    assert {s.reason for s in failed} <= {"loop"}


# times


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=6),
    st.integers(1, 30),
)
@settings(max_examples=300)
def test_estimated_words_lie_in_speech_and_keep_the_contract(runs, count):
    at, speech = 0, []
    for gap, length in runs:
        at += (gap + bool(speech)) * 480
        speech.append((at, at + length * 480))
        at += length * 480
    words = estimated_words(
        AudioChunk(0, 0, np.zeros(at + 480, np.int16), tuple(speech)), "word " * count
    )
    total = sum(b - a for a, b in speech) // 16
    end_before = 0.0
    for word in words:
        assert word.estimated and end_before <= word.start < word.end <= (at + 480) / SAMPLE_RATE
        if total >= 20 * count:
            assert any(a / SAMPLE_RATE <= word.start < b / SAMPLE_RATE for a, b in speech)
            assert any(a / SAMPLE_RATE < word.end <= b / SAMPLE_RATE for a, b in speech)
        end_before = word.end


# whole jobs


@pytest.fixture
def job(worker, file_server):
    def run(pcm, **fields):
        soundfile.write(file_server.folder / "trust.wav", pcm, SAMPLE_RATE)
        job_input = {"audio_url": file_server.url("trust.wav"), **fields}
        return succeeded(asyncio.run(worker.handler({"id": "test", "input": job_input})))

    return run


@pytest.fixture
def say(worker, monkeypatch):
    """Replace the engine's answers for the first chunk by these texts, one for each call."""

    def say(*texts):
        real, left = worker.asr._engine.generate, list(texts)

        async def said(text):
            yield SimpleNamespace(
                prompt_token_ids=[],
                outputs=[SimpleNamespace(text=text, finish_reason="stop", token_ids=[])],
            )

        def generate(prompt, sampling, request_id, priority):
            text = left.pop(0) if left and priority == chunk_priority(0) else None
            return (
                said(text)
                if text is not None
                else real(prompt, sampling, request_id=request_id, priority=priority)
            )

        monkeypatch.setattr(worker.asr._engine, "generate", generate)

    return say


def test_a_language_without_an_aligner_is_timed_by_its_speech_with_one_warning_text_injected(
    job, say
):
    say("language Hindi<asr_text>नमस्ते दुनिया। आप कैसे हैं?")
    output = job(np.concatenate([voice(1.5), silence(1.0), voice(1.5)]))
    assert [s["text"] for s in output["segments"]] == ["नमस्ते", "दुनिया", "आप", "कैसे", "हैं"]
    assert output["warnings"] == ["Times of Hindi are estimated: there is no aligner for it."]
    assert not any("estimated" in s for s in output["segments"])
    assert not [s for s in output["segments"] if 1.7 < s["start"] < 2.4]


def test_alternating_languages_are_given_for_every_word(job):
    turns = [
        u
        for pair in zip(*([u for u in pool if u.duration > 4] for pool in (ENGLISH, CHINESE)))
        for u in pair
    ][:6]
    output = job(np.concatenate([part for u in turns for part in (u.pcm, silence(1.6))]))
    by_word = [s["language"] for s in output["segments"]]
    assert by_word == [u.language for u in turns for _ in u.words]
    assert {entry["language"]: entry["code"] for entry in output["languages"]} == {
        "English": "en",
        "Chinese": "zh",
    }
    for entry in output["languages"]:
        spoken = sum(
            u.words[-1].end - u.words[0].start for u in turns if u.language == entry["language"]
        )
        assert entry["seconds"] == pytest.approx(spoken, rel=0.25)


def test_one_language_is_not_repeated_at_every_segment(job):
    output = job(ENGLISH[0].pcm)
    assert [e["language"] for e in output["languages"]] == ["English"] and "language" not in output[
        "segments"
    ][0]


def test_a_short_chunk_in_another_language_is_recognised_in_that_of_the_rest_text_injected(
    job, say
):
    short = min(ENGLISH, key=lambda u: u.duration)
    long = [u for u in ENGLISH if u.duration > 4][:2]
    say("language Chinese<asr_text>天地")
    output = job(np.concatenate([short.pcm, silence(2), long[0].pcm, silence(1), long[1].pcm]))
    assert output["language_detected"] == "English" and len(output["languages"]) == 1
    assert [(r["reasons"], r["outcome"]) for r in output["retries"]] == [(["language"], "mended")]
    assert [plain(s["text"]) for s in output["segments"][: len(short.words)]] == [
        plain(w.text) for w in short.words
    ]


def test_two_short_chunks_in_another_language_keep_it(job):
    long = [u for u in ENGLISH if u.duration > 4][:3]
    short = sorted(CHINESE, key=lambda u: u.duration)[:2]
    output = job(
        np.concatenate(
            [
                part
                for u in (long[0], short[0], long[1], short[1], long[2])
                for part in (u.pcm, silence(2))
            ]
        )
    )
    assert {e["language"] for e in output["languages"]} == {
        "English",
        "Chinese",
    } and "retries" not in output


def test_speech_behind_the_last_word_is_recognised_by_itself_text_injected(job, say):
    u = max(ENGLISH, key=lambda u: u.words[-1].end - u.words[0].start)
    say("language English<asr_text>" + " ".join(w.text for w in u.words[:2]))
    output = job(u.pcm)
    (retried,) = output["retries"]
    assert (retried["reasons"], retried["outcome"]) == (["tail_missing"], "mended") and retried[
        "start"
    ] >= u.words[1].start
    assert [plain(s["text"]) for s in output["segments"][:2]] == [
        plain(w.text) for w in u.words[:2]
    ]
    assert abs(len(output["segments"]) - len(u.words)) <= 2


def test_sentences_of_a_real_recording_are_those_that_were_said(job):
    pool = ENGLISH[:4]
    output = job(
        np.concatenate([part for u in pool for part in (u.pcm, silence(0.5))]), segment_level="both"
    )
    said = [
        s.strip() for s in " ".join(u.text for u in pool).replace(".", ".|").split("|") if s.strip()
    ]
    assert [s["text"] for s in output["sentences"]] == said
