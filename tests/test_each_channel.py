"""Every channel by itself: samples, copies, chunks, contexts, and whole jobs of calls."""

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import succeeded
from contract.errors import DecodeError, InvalidRequest, WorkerError
from contract.request import EACH
from hypothesis import given, settings
from hypothesis import strategies as st
from material import ENGLISH, noise, silence, voice
from recording.chunk import SAMPLE_RATE, AudioChunk
from recording.each_channel import COPY_SAMPLES, EachChannel, copies_in, split_recording
from recording.pcm_stream import PcmStream, decode
from recording.vad import CutRules, Splitter
from speech.context import Contexts
from speech.words import ChunkResult
from test_end_to_end import run, words_of
from test_tracks_and_channels import (
    IS_QUIET,
    A,
    B,
    at,
    channel_file,
    only,
    opposite,
    track_file,
    wav,
    with_unknown_codec,
)
from utterance import Utterance, plain

RULES = CutRules(4.8, 8, 2)
STEREO = np.stack([A, B], 1)
CHANNEL, TRACK = {"channel": EACH}, {"track": EACH}
MAX_LATE = 0.4  # seconds


@dataclass(frozen=True)
class Decoded:
    pcm: np.ndarray
    channels: tuple[int, ...]
    warnings: tuple[str, ...]


async def decoded(path: Path, **asked) -> Decoded | WorkerError:
    try:
        async with asyncio.timeout(60), decode(path, 3600, **asked) as pcm:
            blocks = [block async for block in pcm]
    except WorkerError as error:
        return error
    return Decoded(np.concatenate(blocks), pcm.channels, pcm.warnings)


def decoded_now(path: Path, **asked) -> Decoded | WorkerError:
    return asyncio.run(decoded(path, **asked))


# -- samples

FILES = {  # name → how it is made, its suffix, what is asked, how many channels it has
    "WAV": (partial(wav, channels=STEREO), ".wav", CHANNEL, 2),
    "mono": (partial(wav, channels=STEREO[:, :1]), ".wav", CHANNEL, 1),
    "MP3": (
        partial(channel_file, channels=STEREO, codec="libmp3lame", layout="stereo", rate=44_100),
        ".mp3",
        CHANNEL,
        2,
    ),
    "Opus without a layout": (
        partial(
            channel_file,
            channels=only(2, 3),
            codec="libopus",
            layout="3 channels",
            rate=48_000,
        ),
        ".mka",
        CHANNEL,
        3,
    ),
    "nine channels": (partial(wav, channels=only(8, 9)), ".wav", CHANNEL, 9),
    "two tracks": (partial(track_file, tracks=[A, B]), ".mp4", TRACK, 2),
    "two tracks in Matroska": (partial(track_file, tracks=[A, B], codec="flac"), ".mkv", TRACK, 2),
    "one track": (partial(track_file, tracks=[A]), ".mp4", TRACK, 1),
}


@pytest.mark.parametrize("name", FILES)
def test_every_channel_has_the_samples_that_it_has_alone(name, tmp_path):
    make, suffix, asked, count = FILES[name]
    path = tmp_path / f"a{suffix}"
    make(path)
    [field] = asked
    together = decoded_now(path, **asked)
    assert together.channels == tuple(range(count)) and together.pcm.shape[1] == count
    for number in {0, count // 2, count - 1}:
        alone = decoded_now(path, **{field: number})
        assert np.array_equal(together.pcm[: len(alone.pcm), number], alone.pcm), number
        assert len(alone.pcm) == len(together.pcm)
    part = decoded_now(path, start=1.23, end=3.1, **asked)
    assert np.array_equal(part.pcm, together.pcm[round(1.23 * SAMPLE_RATE) : 31 * 1600])


def test_tracks_keep_their_numbers_beside_one_that_cannot_be_decoded(tmp_path):
    with_unknown_codec(tmp_path / "a.mov", [B, A])
    found = decoded_now(tmp_path / "a.mov", track=EACH)
    assert found.channels == (1,) and found.warnings[0].startswith("These tracks are in a format")


def test_more_channels_or_tracks_than_one_job_takes_are_refused(tmp_path):
    wav(tmp_path / "a.wav", only(0, 17, A[:1600]))
    refused = decoded_now(tmp_path / "a.wav", channel=EACH)
    assert type(refused) is InvalidRequest and str(refused) == (
        "channel is 'each', but the audio at audio_url has 17 channels; at most 16 can be "
        "transcribed in one job, and channel can be the number of one."
    )
    track_file(tmp_path / "a.mkv", [A[:1600]] * 17, "flac")
    refused = decoded_now(tmp_path / "a.mkv", track=EACH)
    assert type(refused) is InvalidRequest and str(refused) == (
        "track is 'each', but the file at audio_url has 17 audio tracks; at most 16 can be "
        "transcribed in one job, and track can be the number of one."
    )


def test_a_very_quiet_recording_is_amplified_and_keeps_the_levels_between_its_channels(tmp_path):
    wav(tmp_path / "a.wav", np.hstack([at(-50), at(-60)]), subtype="FLOAT")
    found = decoded_now(tmp_path / "a.wav", channel=EACH)
    loud, quiet = np.abs(found.pcm.astype(float)).max(0)
    assert loud / 32768 == pytest.approx(0.1, rel=0.05)
    assert loud / quiet == pytest.approx(10**0.5, rel=0.02)
    assert found.warnings[0].startswith(IS_QUIET)


def test_channels_that_join_or_leave_within_a_file_keep_the_times_of_the_others(tmp_path):
    for first, second in ((2, 1), (2, 3)):
        path = tmp_path / "a.wav"
        path.write_bytes(b"")
        for number, count in enumerate((first, second)):
            wav(tmp_path / f"{number}.wav", only(0, count))
            path.write_bytes(path.read_bytes() + (tmp_path / f"{number}.wav").read_bytes())
        found = decoded_now(path, channel=EACH)
        assert found.pcm.shape == (2 * len(A), 2)
        assert np.array_equal(found.pcm[:, 0], np.concatenate([A, A])) and not found.pcm[:, 1].any()
        assert [warning[:34] for warning in found.warnings] == (
            ["The audio begins with 2 channels a"] if second > first else []
        )


def test_a_decoder_that_does_not_tell_its_channels_is_an_error(tmp_path, monkeypatch):
    wav(tmp_path / "a.wav", STEREO)
    for numbers in (None, [], ["x"], [0] * 17):
        reports = [{"kind": "channels", "message": "", "numbers": numbers}]
        monkeypatch.setattr(PcmStream, "_reports", lambda _, reports=reports: reports)
        assert type(decoded_now(tmp_path / "a.wav", channel=EACH)) is DecodeError


# -- copies

SPOKEN = A[SAMPLE_RATE : 2 * SAMPLE_RATE]
OTHER = ENGLISH[18].pcm[:SAMPLE_RATE]
LOSS = np.abs(SPOKEN.astype(float)).std() * 10 ** (-45 / 20)
COPIES = {  # name → channels, the copies among them
    "the same": ([SPOKEN, SPOKEN], [(1, 0)]),
    "opposite phase": ([SPOKEN, -SPOKEN.clip(-32767)], [(1, 0)]),
    "half as loud": ([SPOKEN // 2, SPOKEN], [(0, 1)]),
    "a little louder": ([SPOKEN // 5 * 4, SPOKEN], [(1, 0)]),
    "rounded in another way": ([SPOKEN, SPOKEN + np.arange(SAMPLE_RATE) % 3 - 1], [(1, 0)]),
    "after a lossy codec": ([SPOKEN, SPOKEN + noise(1, LOSS)], [(1, 0)]),
    "both in the third": ([SPOKEN, OTHER, SPOKEN // 2 + OTHER // 2], []),
    "three of four": ([SPOKEN, OTHER, SPOKEN, OTHER], [(2, 0), (3, 1)]),
    "another speaker": ([SPOKEN, OTHER], []),
    "a faint speaker beneath": ([SPOKEN, SPOKEN + OTHER // 10], []),
    "silent": ([SPOKEN, 0 * SPOKEN], []),
    "all silent": ([0 * SPOKEN, 0 * SPOKEN], []),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_channel_with_the_sound_of_another_one_is_its_copy(name):
    channels, copies = COPIES[name]
    assert copies_in(np.stack(channels, 1).astype(np.int16)) == copies


# -- chunks


class Stream:
    """What EachChannel and split_recording read of a PcmStream."""

    is_each = True

    def __init__(self, blocks: list[np.ndarray], offset: int = 0):
        self.offset, self.warnings, self._blocks = offset, (), blocks
        self.channels = tuple(range(blocks[0].shape[1]))

    async def __aiter__(self):
        for block in self._blocks:
            yield block


def split(pcm: np.ndarray, cuts: list[int], offset: int = 0) -> tuple[list[AudioChunk], Stream]:
    stream = Stream(np.split(pcm, cuts), offset)

    async def chunks():
        return [chunk async for chunk in split_recording(stream, RULES)]

    return asyncio.run(chunks()), stream


def alone(pcm: np.ndarray, offset: int = 0) -> list[AudioChunk]:
    splitter = Splitter(RULES, offset)
    return [*splitter.push(pcm), *splitter.finish()]


def values(chunks: list[AudioChunk], channel: int) -> list[tuple]:
    of_channel = [chunk for chunk in chunks if chunk.channel == channel]
    return [(chunk.offset, chunk.pcm.tobytes(), chunk.speech) for chunk in of_channel]


CALL = np.stack([np.concatenate([A, B, voice(9)]), np.concatenate([B, A, silence(9)])], 1)


@given(st.lists(st.integers(0, len(CALL)), max_size=6).map(sorted))
@settings(max_examples=12)
def test_the_chunks_of_a_channel_are_those_that_it_has_alone_whatever_the_blocks(cuts):
    chunks, _ = split(CALL, cuts, offset=4711)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    for channel in (0, 1):
        expected = [(c.offset, c.pcm.tobytes(), c.speech) for c in alone(CALL[:, channel], 4711)]
        assert values(chunks, channel) == expected


def test_a_silent_channel_and_a_copy_have_no_chunk_and_the_copy_is_told():
    pcm = np.stack([A, A // 2, 0 * A, B], 1)
    chunks, stream = split(pcm, [5000])
    assert {chunk.channel for chunk in chunks} == {0, 3}
    assert values(chunks, 0) == [(c.offset, c.pcm.tobytes(), c.speech) for c in alone(A)]
    seconds = sum(np.any(A[i : i + COPY_SAMPLES]) for i in range(0, len(A), COPY_SAMPLES))
    assert stream.warnings == (
        f"Channel 1 has the sound of channel 0 for {seconds:.1f} seconds; "
        "there it was transcribed only as that channel.",
    )


def test_memory_does_not_depend_on_the_length():
    block = np.stack([noise(1), voice(1), silence(1), 0 * noise(1)], 1)
    splitter = EachChannel(Stream([block]), RULES)
    for _ in range(120):
        splitter.push(block)
        held = sum(len(each._held) for each in splitter._splitters.values())
        assert held <= 2 * len(block.T) * RULES.limit_seconds * SAMPLE_RATE
        assert sum(map(len, splitter._held)) < COPY_SAMPLES


# -- contexts


def test_every_channel_has_a_chain_of_contexts():
    async def answer(text: str) -> list[ChunkResult]:
        return [ChunkResult(0, 1, 1, text)]

    async def contexts_of(use_previous: bool) -> list[str]:
        contexts, found = Contexts("Names.", use_previous), []
        for channel, text in ((0, "one"), (1, "two"), (0, ""), (1, "x" * 300), (0, ""), (1, "")):
            chunk = AudioChunk(0, 0, silence(1), (), channel)
            found.append(await contexts.of_next(chunk))
            contexts.keep(chunk, found[-1], asyncio.create_task(answer(text)))
        return found

    assert asyncio.run(contexts_of(True)) == ["Names.", "Names.", "one", "two", "one", "x" * 200]
    assert asyncio.run(contexts_of(False)) == ["Names.", "Names.", "", "", "", ""]


# -- whole jobs


def spoken(turns: list[tuple[float, Utterance]], seconds: float) -> np.ndarray:
    """Utterances at their starts in seconds."""
    pcm = silence(seconds)
    for start, utterance in turns:
        first = round(start * SAMPLE_RATE)
        pcm[first : first + len(utterance.pcm)] = utterance.pcm
    return pcm


# By turns, and in the end at the same time.
SIDES = (
    [(0.5, ENGLISH[6]), (6.0, ENGLISH[3]), (12.0, ENGLISH[9])],
    [(3.0, ENGLISH[18]), (9.0, ENGLISH[10]), (12.3, ENGLISH[16])],
)
SECONDS = 17
SPOKEN_SIDES = [spoken(side, SECONDS) for side in SIDES]


@pytest.fixture(scope="module")
def urls(file_server) -> dict[str, str]:
    one, other = SPOKEN_SIDES
    recordings = {
        "call": np.stack([one, other], 1),
        "mono": one[:, None],
        "mono as stereo": np.stack([one, one], 1),
        "one side silent": np.stack([0 * one, one], 1),
    }
    for name, pcm in recordings.items():
        soundfile.write(file_server.folder / f"each {name}.flac", pcm, SAMPLE_RATE)
    track_file(file_server.folder / "each tracks.mka", [one, other], "flac")
    names = {name: f"each {name}.flac" for name in recordings} | {"tracks": "each tracks.mka"}
    return {name: file_server.url(file.replace(" ", "%20")) for name, file in names.items()}


def of_channel(output: dict, channel: int) -> list[tuple[float, float, str]]:
    return [
        (segment["start"], segment["end"], segment["text"])
        for segment in output["segments"]
        if segment["channel"] == channel
    ]


def test_both_sides_of_a_call_have_their_words_and_times_at_the_cost_of_two_jobs(worker, urls):
    together = succeeded(run(worker, urls["call"], channel="each", segment_level="both"))
    cost = together["usage"]
    assert "warnings" not in together and together["duration"] == SECONDS
    for number, side in enumerate(SIDES):
        alone = succeeded(run(worker, urls["call"], channel=number))
        words = of_channel(together, number)
        assert words == [(s["start"], s["end"], s["text"]) for s in alone["segments"]]
        said = [(start + word.start, word.text) for start, said in side for word in said.words]
        assert [plain(text) for _, _, text in words] == [plain(text) for _, text in said]
        assert max(abs(word[0] - start) for word, (start, _) in zip(words, said)) < MAX_LATE
        assert together["channels"][number] == {
            "channel": number,
            "language_detected": "English",
            "language_code": "en",
            "text": alone["text"],
        }
        for name in ("chunks", "recognitions", "speech_seconds", "output_tokens"):
            cost[name] -= alone["usage"][name]
    assert not any(abs(cost[name]) > 0.001 for name in ("chunks", "recognitions", "output_tokens"))
    sentences = together["sentences"]
    assert [s["start"] for s in sentences] == sorted(s["start"] for s in sentences)
    assert [s["channel"] for s in sentences[:4]] == [0, 1, 0, 1]
    for found in (*sentences, *together["segments"]):
        assert together["text"][found["offset"] :][: found["length"]] == found["text"]


def test_a_mono_call_stored_as_stereo_costs_as_much_as_mono_and_a_silent_side_nothing(worker, urls):
    mono = succeeded(run(worker, urls["mono"], channel=0))
    for name, speaks in (("mono", 0), ("mono as stereo", 0), ("one side silent", 1)):
        output = succeeded(run(worker, urls[name], channel="each"))
        assert output["text"] == mono["text"], name
        assert {segment["channel"] for segment in output["segments"]} == {speaks}, name
        for measure in ("chunks", "recognitions", "input_tokens", "speech_seconds"):
            assert output["usage"][measure] == mono["usage"][measure], (name, measure)
        warnings = output.get("warnings", [])
        assert [said[:38] for said in warnings] == (
            ["Channel 1 has the sound of channel 0 f"] if name == "mono as stereo" else []
        )


def test_every_track_is_transcribed_by_itself_with_the_context_of_its_own(worker, urls):
    asked = {"use_previous_context": True, "track": "each", "output_format": "verbose_json"}
    output = succeeded(run(worker, urls["tracks"], **asked))
    by_channels = succeeded(
        run(worker, urls["call"], **{**asked, "track": "default", "channel": "each"})
    )
    assert output["channels"] == by_channels["channels"] and output["text"] == by_channels["text"]
    words = output["verbose_json"]["words"]
    assert {word["channel"] for word in words} == {0, 1}


def test_without_words_the_level_is_told(worker, file_server):
    soundfile.write(file_server.folder / "no words.wav", np.zeros((8000, 2)), SAMPLE_RATE)
    output = succeeded(run(worker, file_server.url("no%20words.wav"), channel="each"))
    assert output["text"] == "" and words_of(output) == []
    assert [said[:27] for said in output["warnings"]] == ["No words were recognised. T"]
    assert [channel["text"] for channel in output["channels"]] == ["", ""]


def test_opposite_phase_is_heard_once(worker, file_server):
    wav(file_server.folder / "opposite each.wav", opposite(pcm=SPOKEN_SIDES[0]))
    output = succeeded(run(worker, file_server.url("opposite%20each.wav"), channel="each"))
    assert {segment["channel"] for segment in output["segments"]} == {0}
