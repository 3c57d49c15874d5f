"""Parts of a recording and single channels: the samples and times of the whole, and nothing decoded
behind the end of the part.
"""

import asyncio
import random
import shutil
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import media
import numpy as np
import pytest
import soundfile
from conftest import ROOT, FileServer, _QuietFiles, succeeded
from contract.errors import AudioTooLong, DecodeError, EmptyAudio, InvalidRequest
from contract.request import Request, parse_request
from hypothesis import given, settings
from hypothesis import strategies as st
from job import Progress
from material import CHINESE, ENGLISH, silence
from recording import source
from recording.chunk import SAMPLE_RATE
from recording.pcm_stream import decode
from recording.vad import CutRules, Splitter
from result.account import coverage
from result.delivery import output_of
from result.transcript import merge
from result.usage import Usage
from speech.words import ChunkResult, Word
from test_audio import one_warning
from test_end_to_end import run, words_of
from utterance import plain

MINUTE = np.resize(np.concatenate([u.pcm for u in ENGLISH[:20]]), 60 * SAMPLE_RATE)
FORMATS = {  # suffix → how it is encoded
    ".wav": dict(rate=44_100, channels=2),
    ".flac": dict(),
    ".mp3": dict(rate=44_100, channels=2, bitrate=64_000),
    ".opus": dict(rate=48_000, bitrate=32_000),
    ".m4a": dict(rate=44_100, movflags="+faststart"),
}
in_each_format = pytest.mark.parametrize("suffix", FORMATS)


@pytest.fixture(scope="module")
def minutes(tmp_path_factory) -> dict[str, Path]:
    """A minute of speech, by suffix."""
    folder = tmp_path_factory.mktemp("minutes")
    for suffix, how in FORMATS.items():
        media.encode(MINUTE, folder / f"a{suffix}", **how)
    return {suffix: folder / f"a{suffix}" for suffix in FORMATS}


def decoded(path: Path, max_seconds: float = 3600, **how) -> tuple[np.ndarray, str | None]:
    """(samples, warning)."""

    async def collect():
        async with decode(path, max_seconds, **how) as pcm:
            blocks = [block async for block in pcm]
            assert pcm.samples == sum(map(len, blocks)) and all(map(len, blocks))
            assert (pcm.start, pcm.end) == (
                pcm.offset / SAMPLE_RATE,
                (pcm.offset + pcm.samples) / SAMPLE_RATE,
            )
            return np.concatenate(blocks), one_warning(pcm)

    return asyncio.run(asyncio.wait_for(collect(), 60))


def refusal(path: Path, error: type[Exception], **how) -> str:
    with pytest.raises(error) as refused:
        decoded(path, **how)
    assert type(refused.value) is error
    return str(refused.value)


# the samples of a part


@in_each_format
def test_a_part_has_the_samples_that_the_whole_has_there(minutes, suffix):
    whole, _ = decoded(minutes[suffix])
    for start, end in ((0, 1), (0.5, 60), (9.99, 20.013), (33, 33.25), (59, None), (7, 3600)):
        part, warning = decoded(minutes[suffix], start=start, end=end)
        until = len(whole) if end is None else round(end * SAMPLE_RATE)
        assert np.array_equal(part, whole[round(start * SAMPLE_RATE) : until]) and warning is None


@given(st.floats(0, 59.9, allow_subnormal=False), st.floats(1e-9, 70, allow_subnormal=False))
@settings(max_examples=12)
def test_any_part_of_a_recording_is_a_slice_of_it_and_never_empty(minutes, start, seconds):
    part, _ = decoded(minutes[".flac"], start=start, end=start + seconds)
    first = round(start * SAMPLE_RATE)
    assert len(part) and np.array_equal(
        part, MINUTE[first : max(first + 1, round((start + seconds) * SAMPLE_RATE))]
    )


@in_each_format
def test_a_decoder_ends_at_the_end_of_the_part_where_the_rest_never_arrives(
    minutes, tmp_path, suffix
):
    content = minutes[suffix].read_bytes()
    (tmp_path / "growing").write_bytes(content[: len(content) // 2])
    part, warning = decoded(
        tmp_path / "growing",
        size=len(content),
        complete_marker=tmp_path / "never there",
        start=10,
        end=20,
    )
    assert np.array_equal(part, decoded(minutes[suffix], start=10, end=20)[0]) and warning is None


def test_a_start_behind_the_end_of_the_recording_is_refused_with_that_end(minutes):
    for start in (60, 1e6):
        message = refusal(minutes[".flac"], EmptyAudio, start=start)
        assert (
            message == f"start is {start:.3f}, but the audio at audio_url ends at 60.000 seconds."
        )


def test_missing_sound_gives_a_warning_only_inside_the_part(minutes, tmp_path):
    content = minutes[".wav"].read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    assert decoded(tmp_path / "cut.wav", end=25)[1] is None
    part, warning = decoded(tmp_path / "cut.wav", start=20, end=45)
    assert len(part) == pytest.approx(10 * SAMPLE_RATE, abs=20)
    assert (
        warning
        == "The file declares 60.0 seconds of audio, but holds only 30.0; the rest is missing."
    )
    assert "ends at 30" in refusal(tmp_path / "cut.wav", EmptyAudio, start=45, end=50)


def test_damage_up_to_the_end_of_the_part_counts_and_behind_it_does_not(minutes, tmp_path):
    data = bytearray(minutes[".mp3"].read_bytes())
    first, last = len(data) // 20, len(data) * 19 // 20
    data[first:last] = random.Random(1).randbytes(last - first)
    (tmp_path / "a.mp3").write_bytes(data)
    assert len(decoded(tmp_path / "a.mp3", start=1, end=2.5)[0]) == 1.5 * SAMPLE_RATE
    assert "damaged" in refusal(tmp_path / "a.mp3", DecodeError, start=5, end=55)


# the limit


@in_each_format
@pytest.mark.parametrize(
    "part", [dict(start=20, end=30), dict(end=10), dict(start=55), dict(start=52, end=1e6)], ids=str
)
def test_the_limit_is_for_the_part_not_for_the_file(minutes, suffix, part):
    assert 5 <= len(decoded(minutes[suffix], max_seconds=10, **part)[0]) / SAMPLE_RATE <= 10


@in_each_format
@pytest.mark.parametrize(
    "part", [dict(start=20, end=50), dict(end=20), dict(start=40), dict(start=40, end=1e6)], ids=str
)
def test_a_part_over_the_limit_is_refused_before_it_is_decoded_where_the_file_declares_its_length(
    minutes, suffix, part
):
    async def samples_before_the_refusal():
        async with decode(minutes[suffix], 10, **part) as pcm:
            with pytest.raises(
                AudioTooLong, match="10 seconds allowed; start and end can choose a part of it"
            ):
                async for _ in pcm:
                    pass
            return pcm.samples

    assert (asyncio.run(samples_before_the_refusal()) == 0) is (suffix != ".opus")


# channels


@pytest.mark.parametrize("channels", [1, 2, 6, 12])
def test_each_channel_is_extracted_bit_by_bit(tmp_path, channels):
    sound = np.stack(
        [np.roll(MINUTE[: 5 * SAMPLE_RATE], 1000 * i) for i in range(channels)], axis=1
    )
    soundfile.write(tmp_path / "a.wav", sound, SAMPLE_RATE)
    for channel in {0, channels // 2, channels - 1}:
        assert np.array_equal(decoded(tmp_path / "a.wav", channel=channel)[0], sound[:, channel])


def test_channel_0_of_a_mono_recording_is_the_mix(minutes):
    for suffix in (".flac", ".opus", ".m4a"):
        assert np.array_equal(decoded(minutes[suffix], channel=0)[0], decoded(minutes[suffix])[0])


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".opus", ".webm"])
def test_a_channel_of_a_compressed_recording_holds_nothing_of_the_other(tmp_path, suffix):
    sound = np.stack([MINUTE[: 5 * SAMPLE_RATE], silence(5)], axis=1)
    media.encode(sound, tmp_path / f"a{suffix}", rate=48_000, bitrate=192_000)
    loud, quiet = (
        np.abs(decoded(tmp_path / f"a{suffix}", channel=channel)[0].astype(int)).mean()
        for channel in (0, 1)
    )
    assert loud > 0.9 * np.abs(sound[:, 0].astype(int)).mean() and quiet < 0.02 * loud


@pytest.mark.parametrize(
    "channels, told", [(1, "only 1 channel, number 0."), (2, "only 2 channels, numbers 0 to 1.")]
)
def test_a_missing_channel_is_refused_with_those_that_exist(tmp_path, channels, told):
    media.encode(MINUTE[:SAMPLE_RATE], tmp_path / "a.wav", channels=channels)
    for channel in (channels, 7, 511):
        assert (
            refusal(tmp_path / "a.wav", InvalidRequest, channel=channel)
            == f"channel is {channel}; the audio at audio_url has {told}"
        )


def test_a_channel_that_ends_before_the_part_is_refused(tmp_path):
    """Two recordings joined by hand, the second one mono."""
    for name, channels in {"a.mp3": 2, "b.mp3": 1}.items():
        media.encode(MINUTE[: 10 * SAMPLE_RATE], tmp_path / name, rate=44_100, channels=channels)
    (tmp_path / "c.mp3").write_bytes(
        (tmp_path / "a.mp3").read_bytes() + (tmp_path / "b.mp3").read_bytes()
    )
    assert "only 1 channel" in refusal(tmp_path / "c.mp3", InvalidRequest, channel=1)
    assert len(decoded(tmp_path / "c.mp3", channel=1, end=9)[0]) == 9 * SAMPLE_RATE


# the times of a part


def test_the_chunks_of_a_part_have_their_places_in_the_file():
    rules, offset = CutRules(4.8, 8, 2), 12_345
    alone, part = Splitter(rules), Splitter(rules, offset)
    chunks = [[*splitter.push(MINUTE), *splitter.finish()] for splitter in (alone, part)]
    assert len(chunks[0]) > 5 and [c.offset + offset for c in chunks[0]] == [
        c.offset for c in chunks[1]
    ]
    assert all(np.array_equal(a.pcm, b.pcm) and a.speech == b.speech for a, b in zip(*chunks))


def test_the_account_tiles_the_part():
    chunks = [ChunkResult(101, 103, 2), ChunkResult(103, 104, 1, failure="timeout")]
    spans = [(s.start, s.end, s.state) for s in coverage(chunks, 105, start=100)]
    assert spans == [
        (100, 101, "silent"),
        (101, 103, "transcribed"),
        (103, 104, "failed"),
        (104, 105, "silent"),
    ]
    assert [(s.start, s.end) for s in coverage([], 105, start=100)] == [(100, 105)]


def test_subtitles_and_verbose_json_of_a_part_have_the_times_of_the_file_and_its_own_duration():
    word = Word("Yes", 101.0, 101.2, 0)
    transcript = merge([ChunkResult(101, 102, 1, "Yes.", "English", (word,))], 110, start=100)
    assert (
        "00:01:41,000 --> 00:01:42,000"
        in output_of(transcript, Request("", output_format="srt"))["srt"]
    )
    verbose = output_of(transcript, Request("", output_format="verbose_json"))["verbose_json"]
    assert verbose["duration"] == 10 and verbose["words"] == [
        {"word": "Yes", "start": 101.0, "end": 101.2}
    ]


# whole jobs

DEMO = "demo.mp3"
MEAN_OFF_SECONDS = 0.1  # with the tiny aligner a word's time depends on the rest of its chunk
IN_PAUSES = [(0, 31.5), (6, 22.5), (12.4, 40.5), (14.8, 15.4), (27.3, None), (40.5, 3600)]


@pytest.fixture(scope="module")
def demo(file_server) -> str:
    """The URL of the demo recording."""
    shutil.copy(ROOT / "tests" / "recordings" / DEMO, file_server.folder)
    return file_server.url(DEMO)


@pytest.fixture(scope="module")
def of_the_whole(worker, demo) -> list[dict]:
    return succeeded(run(worker, demo))["segments"]


@pytest.mark.parametrize("start, end", IN_PAUSES, ids=str)
def test_the_words_of_a_part_are_those_of_the_whole_at_their_times_in_the_file(
    worker, demo, of_the_whole, start, end
):
    there = [s for s in of_the_whole if start <= s["start"] and (end is None or s["end"] <= end)]
    output = succeeded(run(worker, demo, start=start, end=end))
    assert words_of(output) == [plain(s["text"]) for s in there]
    off = [
        abs(a[edge] - b[edge])
        for a, b in zip(there, output["segments"])
        for edge in ("start", "end")
    ]
    print(
        f"\n{len(there)} words, boundaries off by mean {np.mean([0, *off]):.3f} s, most "
        f"{max([0, *off]):.3f}"
    )
    assert np.mean([0, *off]) <= MEAN_OFF_SECONDS
    assert all(start <= s["start"] < s["end"] <= (end or 3600) for s in output["segments"])


def test_progress_counts_the_seconds_of_the_part(worker, demo, tmp_path):
    progress = Progress()
    request = parse_request({"audio_url": demo, "start": 6, "end": 22.5})
    transcript = asyncio.run(worker.transcribe_recording(request, tmp_path, progress, Usage()))
    assert progress.seconds_known == 16.5 and 10 < progress.seconds_done <= 16.5
    assert (transcript.spans[0].start, transcript.spans[-1].end) == (6, 22.5)


def test_failed_spans_of_a_part_have_times_of_the_file_fault_injected(worker, demo, monkeypatch):
    async def never(*_):
        raise TimeoutError

    monkeypatch.setattr(worker.asr, "transcribe", never)
    monkeypatch.setattr(worker.health, "failed", lambda *_, **__: asyncio.sleep(0))
    failed = run(worker, demo, start=27.3, end=31.5)["failed_spans"]
    assert (
        [s["reason"] for s in failed] == ["timeout"]
        and 27.3 <= failed[0]["start"] < 28.3
        and 30.6 < failed[0]["end"] <= 31.5
    )


@pytest.fixture
def stuck_server(tmp_path):
    """A file server that sends half of a file, and then neither the rest nor an end."""
    over = threading.Event()

    class Stuck(_QuietFiles):
        def copyfile(self, source, outputfile):
            outputfile.write(source.read(Path(source.name).stat().st_size // 2))
            outputfile.flush()
            over.wait(600)

    server = FileServer(tmp_path, Stuck)
    yield server
    over.set()
    server.close()


def test_a_job_does_not_wait_for_what_lies_behind_its_part(
    worker, stuck_server, demo, of_the_whole
):
    shutil.copy(ROOT / "tests" / "recordings" / DEMO, stuck_server.folder)
    output = succeeded(run(worker, stuck_server.url(DEMO), start=6, end=22.5))
    assert words_of(output) == [plain(s["text"]) for s in of_the_whole if 6 <= s["start"] < 22.5]


def test_a_download_ends_with_the_decoder_while_chunks_are_still_recognised(
    worker, stuck_server, monkeypatch
):
    ended, recording = asyncio.Event(), source.recording

    @asynccontextmanager
    async def watched(*args, **limits):
        async with recording(*args, **limits) as file:
            yield file
        ended.set()

    async def waits(chunk, *_):
        await asyncio.wait_for(ended.wait(), 60)
        return [ChunkResult(chunk.start, chunk.end, chunk.speech_seconds)]

    monkeypatch.setattr(source, "recording", watched)
    monkeypatch.setattr(worker, "transcribe_chunk", waits)
    shutil.copy(ROOT / "tests" / "recordings" / DEMO, stuck_server.folder)
    assert succeeded(run(worker, stuck_server.url(DEMO), start=6, end=22.5))["segments"] == []


def test_two_who_speak_at_once_are_transcribed_by_channel(worker, file_server):
    speakers = [next(u for u in pool if 4 < u.duration < 6) for pool in (ENGLISH, CHINESE)]
    length = max(len(u.pcm) for u in speakers)
    soundfile.write(
        file_server.folder / "call.wav",
        np.stack([np.pad(u.pcm, (0, length - len(u.pcm))) for u in speakers], axis=1),
        SAMPLE_RATE,
    )
    outputs = [
        succeeded(run(worker, file_server.url("call.wav"), channel=channel)) for channel in (0, 1)
    ]
    assert [words_of(output) for output in outputs] == [
        [plain(w.text) for w in u.words] for u in speakers
    ]
    assert [output["language_detected"] for output in outputs] == ["English", "Chinese"]


@pytest.mark.parametrize(
    "fields, code, part",
    [
        (dict(start=100), "audio_empty", "start is 100.000, but"),
        (
            dict(start=5, end=5),
            "input_invalid",
            "end is 5; it must be more than start, which is 5.",
        ),
        (dict(channel=2), "input_invalid", "channel is 2; the audio at audio_url has only"),
    ],
    ids=str,
)
def test_an_impossible_part_or_channel_has_its_own_error(worker, demo, fields, code, part):
    output = run(worker, demo, **fields)
    assert output["error_code"] == code and part in output["error"] and output["retryable"] is False
