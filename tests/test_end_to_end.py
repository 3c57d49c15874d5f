"""Whole jobs: the real handler, a real download from loopback, real vLLM, the real aligner;
recordings of 5 minutes with known words, known word times and pauses of 0.2-1.5 s, cut at 8 s.
"""

import asyncio
import string
from dataclasses import dataclass, replace
from pathlib import Path

import clips
import media
import numpy as np
import pytest
import speech.word_times as timing
import srt
import webvtt
from conftest import succeeded
from contract.request import Request
from material import CHINESE, ENGLISH, chunk_of
from recording.chunk import AudioChunk
from recording.pcm_stream import decode
from recording.vad import CutRules, split_at_pauses
from result.subtitles import cues_of, to_srt, to_vtt
from result.transcript import Transcript
from result.usage import Usage
from scoring import matched
from speech.models.recogniser import EMPTY_VOCABULARY, Hypothesis
from utterance import Utterance, plain

POOLS = {"English": ENGLISH, "Chinese": CHINESE}
SECONDS, SEED = 320, 11
SHORT_SECONDS = 80  # the length of the recordings that are compared in all formats
CHUNKS_ALONE = 8  # about as many chunks of each recording are transcribed alone
FORMATS = {  # as recordings come: suffix → rate, channels, bit rate
    "wav": (16_000, 1, None),
    "mp3": (44_100, 2, 128_000),
    "m4a": (44_100, 2, 128_000),
    "opus": (48_000, 1, 64_000),
}
# The mean distance of word boundaries from the truth in the recordings of tests/models/README.md,
# cut by a simple splitter.
MEAN_OFF_MS = {"English": 56, "Chinese": 50}

per_language = pytest.mark.parametrize("language", POOLS)


@dataclass(frozen=True)
class Case:
    """A recording in WAV, what the worker made of it, and what its models said meanwhile."""

    whole: Utterance
    output: dict
    transcript: Transcript
    chunks: list[AudioChunk]
    answers: dict[int, Hypothesis]  # the recogniser's last, by the chunk's first sample
    engine_calls: int

    @property
    def said(self) -> list[str]:
        return [plain(w.text) for w in self.whole.words]

    @property
    def heard(self) -> list[str]:
        return words_of(self.output)


def words_of(output: dict) -> list[str]:
    return [plain(s["text"]) for s in output["segments"]]


def run(worker, url: str, **fields) -> dict:
    return asyncio.run(worker.handler({"id": "test", "input": {"audio_url": url, **fields}}))


def served(file_server, whole: Utterance, name: str, suffix: str = "wav") -> str:
    """The URL of a recording in one of the formats."""
    rate, channels, bitrate = FORMATS[suffix]
    path = file_server.folder / f"{name}.{suffix}"
    media.encode(whole.pcm, path, rate=rate, channels=channels, bitrate=bitrate)
    return file_server.url(path.name)


async def chunks_of(worker, path: Path) -> list[AudioChunk]:
    settings = worker.settings
    rules = CutRules(settings.chunk_target_seconds, settings.chunk_limit_seconds, settings.vad_mode)
    async with decode(path, 3600) as pcm:
        return [c async for c in split_at_pauses(pcm, rules)]


def case_of(worker, file_server, language: str, seconds: float = SECONDS) -> Case:
    """A recording in that language, transcribed by the whole worker."""
    whole = clips.recording(POOLS[language], seconds, SEED)
    url = served(file_server, whole, language)
    generate, transcribe, deliver = (
        worker.asr._engine.generate,
        worker.asr.transcribe,
        worker.deliver,
    )
    calls, answers, transcripts = [], {}, []

    def counted(*args, **kwargs):
        calls.append(1)
        return generate(*args, **kwargs)

    async def kept(chunk, *args, **options):
        answers[chunk.offset] = await transcribe(chunk, *args, **options)
        return answers[chunk.offset]

    async def noted(transcript, *args):
        transcripts.append(transcript)
        return await deliver(transcript, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worker.asr._engine, "generate", counted)
        patched.setattr(worker.asr, "transcribe", kept)
        patched.setattr(worker, "deliver", noted)
        output = succeeded(run(worker, url))
    chunks = asyncio.run(chunks_of(worker, file_server.folder / f"{language}.wav"))
    return Case(whole, output, transcripts[0], chunks, answers, len(calls))


@pytest.fixture(scope="module")
def cases(worker, file_server) -> dict[str, Case]:
    return {language: case_of(worker, file_server, language) for language in POOLS}


@pytest.fixture(scope="module")
def in_formats(worker, file_server) -> dict[str, dict[str, dict]]:
    """Language → format → the output for the same short recording."""
    found = {}
    for language, pool in POOLS.items():
        short = clips.recording(pool, SHORT_SECONDS, SEED)
        urls = {
            suffix: served(file_server, short, f"{language}-short", suffix) for suffix in FORMATS
        }
        found[language] = {suffix: succeeded(run(worker, url)) for suffix, url in urls.items()}
    return found


def drawn(whole: Utterance, pool: list[Utterance]) -> list[Utterance]:
    """The utterances that a recording was strung together from."""
    at, found = 0, []
    while at < len(whole.words):
        rest = whole.words[at:]
        u = next(
            u
            for u in pool
            if all(
                a.text == b.text and abs((a.end - a.start) - (b.end - b.start)) < 1e-6
                for a, b in zip(u.words, rest)
            )
            and len(u.words) <= len(rest)
            and abs(
                (u.words[-1].end - u.words[0].start) - (rest[len(u.words) - 1].end - rest[0].start)
            )
            < 1e-6
        )
        found.append(u)
        at += len(u.words)
    return found


@per_language
def test_the_recording_has_five_minutes_and_over_forty_chunks(cases, worker, language):
    case = cases[language]
    assert case.whole.duration >= 300 and len(case.chunks) > 40
    assert worker.settings.chunk_limit_seconds == 8


@per_language
def test_the_output_keeps_the_contract(cases, in_formats, language):
    case = cases[language]
    assert_contract(case.output, language, case.whole.duration)
    for output in in_formats[language].values():
        assert_contract(output, language, output["duration"])


def assert_contract(output: dict, language: str, duration: float) -> None:
    assert set(output) == {
        "language_detected",
        "language_code",
        "languages",
        "duration",
        "text",
        "segments",
        "usage",
    }
    assert output["language_detected"] == language
    end = 0.0
    for segment in output["segments"]:
        assert set(segment) - {"estimated"} == {"start", "end", "text", "offset", "length"}
        assert end <= segment["start"] < segment["end"] <= duration + 0.1
        assert segment["text"] == output["text"][segment["offset"] :][: segment["length"]]
        end = segment["end"]


@per_language
def test_word_errors_are_within_half_a_point_of_the_same_utterances_one_by_one(
    cases, worker, language, record_property
):
    case = cases[language]
    utterances = drawn(case.whole, POOLS[language])

    models = worker.watched_models(Usage(), Request())

    async def one_by_one():
        return await asyncio.gather(
            *(
                worker.transcribe_chunk(chunk_of(u.pcm), None, "", EMPTY_VOCABULARY, models)
                for u in utterances
            )
        )

    alone = sum(
        matched(
            [plain(w.text) for w in u.words], [plain(w.text) for r in results for w in r.words]
        )[0]
        for u, results in zip(utterances, asyncio.run(one_by_one()))
    )
    together, _ = matched(case.said, case.heard)
    rate_alone, rate_together = 100 * alone / len(case.said), 100 * together / len(case.said)
    print(
        f"\n{language}: {len(case.said)} words, errors {rate_together:.2f} % in the "
        f"recording, {rate_alone:.2f} % one by one"
    )
    assert rate_together <= rate_alone + 0.5


@per_language
def test_no_word_is_lost_or_doubled_at_any_cut(cases, language):
    assert_words_are_whole_at_every_cut(cases[language])


def assert_words_are_whole_at_every_cut(case: Case) -> None:
    words = case.whole.words
    _, pairs = matched(case.said, case.heard)
    heard_at = dict(pairs)
    for chunk in case.chunks[:-1]:
        assert not [w.text for w in words if w.start + 0.03 < chunk.end < w.end - 0.03], (
            "cut inside a word"
        )
        before = max(i for i, w in enumerate(words) if w.start < chunk.end)
        assert before in heard_at and before + 1 in heard_at, f"a word lost at {chunk.end:.2f} s"
        assert heard_at[before + 1] == heard_at[before] + 1, f"a word doubled at {chunk.end:.2f} s"


@per_language
def test_word_boundaries_are_as_close_as_the_models_allow(cases, language):
    off = boundaries_off_ms(cases[language])
    print(
        f"\n{language}: {len(cases[language].chunks)} chunks, boundaries off by mean "
        f"{off.mean():.1f} ms, median {np.median(off):.0f}, 90 % under "
        f"{np.quantile(off, 0.9):.0f}"
    )
    assert off.mean() <= MEAN_OFF_MS[language]


def boundaries_off_ms(case: Case) -> np.ndarray:
    """Of the starts and ends of all words that were heard right."""
    _, pairs = matched(case.said, case.heard)
    truth, found = case.whole.words, case.output["segments"]
    return 1000 * np.array(
        [
            abs(x - y)
            for i, j in pairs
            for x, y in ((truth[i].start, found[j]["start"]), (truth[i].end, found[j]["end"]))
        ]
    )


@per_language
def test_the_repair_moves_boundaries_no_further_from_the_truth(cases, worker, language):
    """Compares the model's raw marks, the package's repair of them, and ours."""
    case = cases[language]
    off = {"the model's marks": [], "upstream's repair": [], "ours": []}
    for chunk in case.chunks[::5]:
        hypothesis = case.answers[chunk.offset]
        true = [w for w in case.whole.words if chunk.start <= w.start < chunk.end]
        task = worker.aligner._prepared(chunk, hypothesis.text, language, hypothesis.spectrum)
        units, (marks,) = task.units, worker.aligner._marks([task])
        _, pairs = matched([plain(w.text) for w in true], [plain(u) for u in units])
        theirs = worker.aligner._model.aligner_processor.fix_timestamp(np.array(marks))
        ours = [
            1000 * (t - chunk.start)
            for w in timing.aligned_words(chunk, hypothesis.text, units, marks)
            for t in (w.start, w.end)
        ]
        for way, times in zip(off, (marks, theirs, ours)):
            off[way] += [
                abs(times[2 * j + e] - 1000 * (t - chunk.start))
                for i, j in pairs
                for e, t in enumerate((true[i].start, true[i].end))
            ]
    means = {way: np.mean(found) for way, found in off.items()}
    print(
        f"\n{language}: boundaries off by",
        ", ".join(f"{mean:.1f} ms ({way})" for way, mean in means.items()),
    )
    assert means["ours"] <= means["the model's marks"] + 1


@per_language
def test_healthy_audio_costs_one_engine_call_a_chunk(cases, language):
    case = cases[language]
    assert case.engine_calls == len(case.chunks)
    assert "retries" not in case.output


@per_language
def test_every_merged_time_is_the_chunks_own_time_plus_its_offset(cases, worker, language):
    """Chunks from all over the recording are transcribed once more as recordings of their own."""
    case = cases[language]
    chunks = case.chunks[:: len(case.chunks) // CHUNKS_ALONE]

    models = worker.watched_models(Usage(), Request())

    async def alone():
        own = [replace(c, offset=0) for c in chunks]
        return await asyncio.gather(
            *(worker.transcribe_chunk(c, None, "", EMPTY_VOCABULARY, models) for c in own)
        )

    assert all(chunk.offset % 16 == 0 for chunk in chunks)
    found = [(s["start"], s["end"]) for s in case.output["segments"]]
    for chunk, results in zip(chunks, asyncio.run(alone())):
        offset_ms = chunk.offset // 16
        times = [(w.start, w.end) for result in results for w in result.words]
        expected = [tuple((round(1000 * t) + offset_ms) / 1000 for t in pair) for pair in times]
        assert expected == [pair for pair in found if chunk.start <= pair[0] < chunk.end]


@per_language
def test_the_same_file_in_every_format_gives_the_same_words(in_formats, language):
    outputs = in_formats[language]
    assert len(words_of(outputs["wav"])) > 50
    for suffix, output in outputs.items():
        assert words_of(output) == words_of(outputs["wav"]), suffix


@per_language
def test_subtitles_hold_the_words_of_the_json_at_their_times(cases, language):
    """Read by strict parsers. The words of a cue are those that begin in it."""
    case = cases[language]
    cues = cues_of(list(case.transcript.words(punctuation=True)), case.transcript.end)
    captions = [
        (c.start.total_seconds(), c.end.total_seconds(), c.content) for c in srt.parse(to_srt(cues))
    ]
    vtt = webvtt.from_string(to_vtt(cues)).captions
    assert [c.raw_text for c in vtt] == [text for *_, text in captions]
    together = "".join(text for *_, text in captions)
    assert "".join(together.split()) == "".join(case.output["text"].split())
    starts = {segment["start"] for segment in case.output["segments"]}
    for start, end, text in captions:
        assert start in starts
        within = [s for s in case.output["segments"] if start <= s["start"] < end]
        assert letters(text) == letters("".join(s["text"] for s in within))
        assert end >= min(within[-1]["end"], start + 7)


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def test_the_text_of_chunks_is_joined_with_spaces_in_english_and_without_in_chinese(cases):
    english, chinese = cases["English"].output["text"], cases["Chinese"].output["text"]
    assert ". " in english and "  " not in english
    assert not any(f".{letter}" in english for letter in string.ascii_uppercase)
    assert " " not in chinese
