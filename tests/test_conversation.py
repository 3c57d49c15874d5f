"""The transcripts of all channels → one: sentence by sentence, every text a slice of it."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
import srt
import webvtt
from contract.errors import TranscriptIncomplete
from contract.request import Request
from hypothesis import given
from hypothesis import strategies as st
from openai.types.audio import TranscriptionVerbose
from recording.chunk import SAMPLE_RATE, AudioChunk
from result.account import Admitted, LostResults, check_account, raise_if_incomplete
from result.conversation import merge_channels
from result.delivery import deliver, output_of, size_of
from result.transcript import merge
from speech.admission import Gate
from speech.language_retry import LanguageOutliers
from speech.models.recogniser import EMPTY_VOCABULARY
from speech.words import ChunkResult
from test_language_retry import Models
from test_tokens import with_tokens
from test_trust import chunk_result

REQUEST = Request("http://a/b")


def said(text: str, start: float, channel: int, seconds: float = 4, **fields) -> ChunkResult:
    return replace(chunk_result(text, start, seconds=seconds, **fields), channel=channel)


def decoded(end: float, channels: tuple[int, ...]) -> SimpleNamespace:
    """What a stream of samples tells when it has ended."""
    return SimpleNamespace(start=0.0, end=end, warnings=(), damaged_spans=(), channels=channels)


def output(*chunks: ChunkResult, channels=(0, 1), end: float = 60, **asked) -> dict:
    request = replace(REQUEST, **asked)
    return output_of(merge_channels(chunks, decoded(end, channels)), request)


CALL = (
    said("Hello there. How are you?", 0, 0, seconds=8),
    said("Fine, thanks.", 3, 1, seconds=2),
    said("Good.", 9, 0),
    said("好的。", 14, 1, language="Chinese"),
)


def test_the_sentences_of_all_channels_come_in_the_order_of_their_starts():
    found = output(*CALL, segment_level="both")
    assert found["text"] == "Hello there. Fine, thanks. How are you? Good. 好的。"
    assert [(s["channel"], s["text"]) for s in found["sentences"]] == [
        (0, "Hello there."),
        (1, "Fine, thanks."),
        (0, "How are you?"),
        (0, "Good."),
        (1, "好的。"),
    ]
    assert [word["channel"] for word in found["segments"]] == [0, 0, 1, 1, 0, 0, 0, 0, 1, 1]
    assert found["channels"] == [
        {
            "channel": 0,
            "language_detected": "English",
            "language_code": "en",
            "text": "Hello there. How are you? Good.",
        },
        {
            "channel": 1,
            "language_detected": "Chinese",
            "language_code": "zh",
            "text": "Fine, thanks. 好的。",
        },
    ]
    assert found["duration"] == 60


texts = st.lists(
    st.sampled_from(["One two.", "three ", "四五。", "六", "… ", "Dr. No said: “Go!” ", "!"]),
    min_size=1,
    max_size=4,
).map("".join)
chunks = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), texts | st.just("")), max_size=8)


@given(chunks, st.booleans())
def test_every_text_is_a_slice_and_no_channel_loses_a_character(turns, punctuation):
    at = [0, 0, 0]
    results = []
    for channel, gap, text in turns:
        start = at[channel] + gap
        results.append(said(text.strip(), start, channel))
        at[channel] = start + 4
    found = output(
        *results, channels=(0, 1, 2), end=100, segment_level="both", punctuation=punctuation
    )
    listed = {channel["channel"]: channel["text"] for channel in found["channels"]}
    for segment in (*found["segments"], *found["sentences"]):
        assert found["text"][segment["offset"] :][: segment["length"]] == segment["text"]
    offsets = [segment["offset"] for segment in found["segments"]]
    assert offsets == sorted(set(offsets))
    starts = [sentence["start"] for sentence in found["sentences"]]
    assert starts == sorted(starts)
    assert letters(found["text"]) == letters("".join(listed.values()))
    for channel, text in listed.items():
        alone = merge([result for result in results if result.channel == channel], 100)
        assert text == alone.text
        times = [(s["start"], s["end"], s["text"]) for s in of(channel, found["segments"])]
        assert times == [
            (round(word.start, 3), round(word.end, 3), word.text)
            for word in alone.words(punctuation)
        ]


def letters(text: str) -> list[str]:
    return sorted(text.replace(" ", ""))


def of(channel: int, segments: list[dict]) -> list[dict]:
    return [segment for segment in segments if segment["channel"] == channel]


def test_one_channel_is_as_the_mix_with_its_number():
    chunks = [said("One  two. Three…", 0, 0), said("四。五。", 5, 0, language="Chinese")]
    found = output(*chunks, channels=(0,), segment_level="both")
    mixed = output_of(merge(chunks, 60), replace(REQUEST, segment_level="both"))
    del found["channels"]
    for name in ("segments", "sentences"):
        assert {segment.pop("channel") for segment in found[name]} == {0}
    assert found == mixed


def test_without_word_times_the_chunks_come_in_the_order_of_their_starts():
    chunks = [replace(chunk, words=()) for chunk in CALL]
    found = output(*chunks, timestamps=False)
    assert found["text"] == "Hello there. How are you? Fine, thanks. Good. 好的。"
    assert [(s["channel"], s["start"]) for s in found["segments"]] == [
        (0, 0),
        (1, 3),
        (0, 9),
        (1, 14),
    ]
    for segment in found["segments"]:
        assert found["text"][segment["offset"] :][: segment["length"]] == segment["text"]


def test_subtitles_are_in_the_order_of_time_and_those_of_two_channels_may_overlap():
    found = [(cue.start.total_seconds(), cue.content) for cue in srt.parse(output_format("srt"))]
    assert found == sorted(found)
    said = " ".join(content for _, content in found)
    assert said == "Hello there. Fine, thanks. How are you? Good. 好的。"
    cues = list(webvtt.from_string(output_format("vtt")))
    assert [cue.text for cue in cues] == [content for _, content in found]


def output_format(form: str) -> str:
    return output(*CALL, output_format=form)[form]


def test_openais_type_takes_a_call_and_its_figures_are_those_of_the_channel():
    first = with_tokens(
        said("One two. Three.", 0, 0, seconds=20), [("One two.", 1), (" Three.", 1)]
    )
    second = with_tokens(said("Four five.", 8, 1, seconds=4), [("Four", 0.5), (" five.", 0.5)])
    found = output(first, second, output_format="verbose_json")["verbose_json"]
    TranscriptionVerbose.model_validate(found, strict=True)
    assert [(s["text"], s["seek"], len(s["tokens"])) for s in found["segments"]] == [
        ("One two.", 0, 1),
        ("Four five.", 800, 2),
        ("Three.", 0, 1),
    ]


def test_failures_and_retries_name_their_channel():
    failed = ChunkResult(2, 5, 3, failure="timeout", retries=("timeout",), channel=1)
    found = output(CALL[0], failed)
    assert found["failed_spans"] == [{"start": 2, "end": 5, "reason": "timeout", "channel": 1}]
    assert found["retries"] == [
        {"start": 2, "end": 5, "reasons": ["timeout"], "outcome": "failed", "channel": 1}
    ]
    with pytest.raises(TranscriptIncomplete) as raised:
        raise_if_incomplete([CALL[0], failed])
    assert raised.value.to_output()["failed_spans"] == found["failed_spans"]


def test_reduced_results_keep_the_channel_of_each_segment():
    long = [said(f"Sentence {i} has words. " * 4, 5 * i, i % 2) for i in range(40)]
    steps: dict[str | None, dict] = {}
    transcript, found, max_bytes = merge_channels(long, decoded(300, (0, 1))), {}, 10**9
    while found.get("reduced_to") != "text":
        found = asyncio.run(deliver(transcript, REQUEST, {}, max_bytes, None, "job.json"))
        max_bytes = size_of(found) - 1
        steps[found.get("reduced_to")] = found
    assert list(steps) == [None, "compact", "sentences", "text"]
    for name in ("compact", "sentences"):
        assert {segment["channel"] for segment in steps[name]["segments"]} == {0, 1}
    assert "channels" in steps["compact"] and "channels" not in steps["text"]


def test_the_account_of_each_channel_is_checked():
    results = [ChunkResult(0, 2, 1, channel=c) for c in (0, 1)]
    admitted = [Admitted(c, 0.0, 2.0) for c in (1, 0)]
    check_account(results, admitted)
    for wrong in (results[:1], [results[0], results[0]], [*results, results[1]]):
        with pytest.raises(LostResults):
            check_account(wrong, admitted)


async def test_a_short_chunk_is_retried_in_the_main_language_of_its_own_channel():
    outliers, results = LanguageOutliers(), []
    for channel, (main, other) in enumerate((("English", "Welsh"), ("Chinese", "Korean"))):
        results.append(ChunkResult(0, 8, 5.0, "one", main, channel=channel))
        pcm, speech = [0] * SAMPLE_RATE, ((0, SAMPLE_RATE),)
        outliers.keep_if_short(AudioChunk(1, 10 * SAMPLE_RATE, pcm, speech, channel))
        results.append(ChunkResult(10, 11, 1.0, "two", other, channel=channel))
    retried = await outliers.retried(results, EMPTY_VOCABULARY, Models(), Gate(1))
    assert [(r.channel, r.language) for r in retried] == [
        (0, "English"),
        (0, "English"),
        (1, "Chinese"),
        (1, "Chinese"),
    ]
