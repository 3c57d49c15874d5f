"""Whole jobs: the real handler, a real download from loopback, real vLLM, the real aligner;
recordings of 5 minutes with known words, known word times and pauses of 0.2-1.5 s, cut at 8 s.
"""

import asyncio
from dataclasses import dataclass, replace

import clips
import media
import numpy as np
import pytest
import speech.word_times as timing
import srt
import webvtt
from material import CHINESE, ENGLISH, chunk_of
from recording.chunk import AudioChunk
from recording.pcm_stream import decode
from recording.vad import CutRules, split_at_pauses
from result.usage import Usage
from scoring import matched
from speech.models.recogniser import EMPTY_VOCABULARY
from utterance import Utterance, plain

POOLS = {"English": ENGLISH, "Chinese": CHINESE}
SECONDS, SEED = 320, 11
FORMATS = {  # as recordings come: suffix → rate, channels, bit rate
    "wav": (16_000, 1, None),
    "mp3": (44_100, 2, 128_000),
    "m4a": (44_100, 2, 128_000),
    "opus": (48_000, 1, 64_000),
}
# mean distance of word boundaries from the truth in the recordings of tests/models/README.md, cut
# by a simple splitter
MEAN_OFF_MS = {"English": 56, "Chinese": 50}

per_language = pytest.mark.parametrize("language", POOLS)


@dataclass(frozen=True)
class Case:
    whole: Utterance
    outputs: dict[str, dict]  # by format
    chunks: list[AudioChunk]
    engine_calls: dict[str, int]  # by format

    @property
    def said(self) -> list[str]:
        return [plain(w.text) for w in self.whole.words]

    @property
    def heard(self) -> list[str]:
        return words_of(self.outputs["wav"])


def words_of(output: dict) -> list[str]:
    return [plain(s["text"]) for s in output["segments"]]


def run(worker, url: str, **fields) -> dict:
    return asyncio.run(worker.handler({"id": "test", "input": {"audio_url": url, **fields}}))


def case_of(worker, file_server, language: str, formats: dict) -> Case:
    """A recording in that language, transcribed by the whole worker in each format; one of them
    must be WAV.
    """
    generate, calls = worker.asr._engine.generate, []

    def counted(*args, **kwargs):
        calls.append(1)
        return generate(*args, **kwargs)

    async def chunks_of(path):
        rules = CutRules(
            worker.settings.chunk_target_seconds,
            worker.settings.chunk_limit_seconds,
            worker.settings.vad_mode,
        )
        async with decode(path, 3600) as pcm:
            return [c async for c in split_at_pauses(pcm, rules)]

    whole, outputs, engine_calls = clips.recording(POOLS[language], SECONDS, SEED), {}, {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worker.asr._engine, "generate", counted)
        for suffix, (rate, channels, bitrate) in formats.items():
            path = file_server.folder / f"{language}.{suffix}"
            media.encode(whole.pcm, path, rate=rate, channels=channels, bitrate=bitrate)
            calls.clear()
            outputs[suffix] = run(worker, file_server.url(path.name))
            engine_calls[suffix] = len(calls)
    return Case(
        whole, outputs, asyncio.run(chunks_of(file_server.folder / f"{language}.wav")), engine_calls
    )


@pytest.fixture(scope="module")
def cases(worker, file_server) -> dict[str, Case]:
    return {language: case_of(worker, file_server, language, FORMATS) for language in POOLS}


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
    assert (
        case.whole.duration >= 300
        and worker.settings.chunk_limit_seconds == 8
        and len(case.chunks) > 40
    )


@per_language
def test_the_output_keeps_the_contract(cases, language):
    case = cases[language]
    for output in case.outputs.values():
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
            assert end <= segment["start"] < segment["end"] <= case.whole.duration + 0.1
            assert segment["text"] == output["text"][segment["offset"] :][: segment["length"]]
            end = segment["end"]


@per_language
def test_word_errors_are_within_half_a_point_of_the_same_utterances_one_by_one(
    cases, worker, language, record_property
):
    case = cases[language]
    utterances = drawn(case.whole, POOLS[language])

    async def one_by_one():
        return await asyncio.gather(
            *(
                worker.transcribe_chunk(chunk_of(u.pcm), None, "", EMPTY_VOCABULARY, Usage())
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
    truth, found = case.whole.words, case.outputs["wav"]["segments"]
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

    async def heard():
        return await asyncio.gather(*(worker.asr.transcribe(c, None, "") for c in case.chunks))

    off = {"the model's marks": [], "upstream's repair": [], "ours": []}
    for chunk, hypothesis in zip(case.chunks, asyncio.run(heard())):
        true = [w for w in case.whole.words if chunk.start <= w.start < chunk.end]
        task = worker.aligner._prepared(chunk, hypothesis.text, language, hypothesis.spectrum)
        units, (marks,) = task.units, worker.aligner._marks([task])
        _, pairs = matched([plain(w.text) for w in true], [plain(u) for u in units])
        theirs = worker.aligner._model.aligner_processor.fix_timestamp(np.array(marks))
        ours = [
            1000 * (t - chunk.start)
            for w in timing.words(chunk, hypothesis.text, units, marks)
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
    assert case.engine_calls["wav"] == len(case.chunks)
    assert not [output for output in case.outputs.values() if "retries" in output]


@per_language
def test_every_merged_time_is_the_chunks_own_time_plus_its_offset(cases, worker, language):
    """Each chunk is transcribed once more as a recording of its own."""
    case = cases[language]

    async def alone():
        own = [replace(c, offset=0) for c in case.chunks]
        return await asyncio.gather(
            *(worker.transcribe_chunk(c, None, "", EMPTY_VOCABULARY, Usage()) for c in own)
        )

    expected = [
        (round(1000 * w.start) + chunk.offset // 16, round(1000 * w.end) + chunk.offset // 16)
        for chunk, results in zip(case.chunks, asyncio.run(alone()))
        for result in results
        for w in result.words
    ]
    assert all(chunk.offset % 16 == 0 for chunk in case.chunks)
    found = [(s["start"], s["end"]) for s in case.outputs["wav"]["segments"]]
    assert found == [(a / 1000, b / 1000) for a, b in expected]


@per_language
def test_the_same_file_in_every_format_gives_the_same_words(cases, language):
    outputs = cases[language].outputs
    for suffix, output in outputs.items():
        assert words_of(output) == words_of(outputs["wav"]), suffix


@per_language
def test_subtitles_hold_the_words_of_the_json_at_their_times(worker, file_server, cases, language):
    """Read by strict parsers; the words of a cue are those that begin in it."""
    whole = cases[language].outputs["wav"]
    url = file_server.url(f"{language}.wav")
    captions = [
        (c.start.total_seconds(), c.end.total_seconds(), c.content)
        for c in srt.parse(run(worker, url, output_format="srt")["srt"])
    ]
    vtt = webvtt.from_string(run(worker, url, output_format="vtt")["vtt"]).captions
    assert [c.raw_text for c in vtt] == [text for *_, text in captions]
    assert "".join("".join(text for *_, text in captions).split()) == "".join(whole["text"].split())
    starts = {segment["start"] for segment in whole["segments"]}
    letters = lambda text: "".join(filter(str.isalnum, text))
    for start, end, text in captions:
        assert start in starts
        within = [segment for segment in whole["segments"] if start <= segment["start"] < end]
        assert letters(text) == letters(
            "".join(segment["text"] for segment in within)
        ) and end >= min(within[-1]["end"], start + 7)


def test_the_text_of_chunks_is_joined_with_spaces_in_english_and_without_in_chinese(cases):
    english, chinese = (
        cases["English"].outputs["wav"]["text"],
        cases["Chinese"].outputs["wav"]["text"],
    )
    assert (
        ". " in english
        and "  " not in english
        and not any(f".{letter}" in english for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    )
    assert " " not in chinese
