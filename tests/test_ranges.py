"""Decoding time ranges side by side gives, sample by sample, what one pass gives. Each test starts real decoders."""

import asyncio
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import AsyncExitStack, contextmanager
from functools import cache
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

import audio
import media
from audio import DECODER, SAMPLE_RATE
from material import ENGLISH
from ranges import RANGE_SECONDS

SPEECH = np.concatenate([u.pcm for u in ENGLISH])
MINUTES = np.resize(SPEECH, 70 * SAMPLE_RATE)  # three ranges and a rest
FORMATS = [
    (".mp3", dict(rate=44_100, channels=2, bitrate=128_000)),
    (".mp3", dict(rate=48_000, channels=1, bitrate=320_000)),
    (".mp3", dict(rate=22_050, channels=1, bitrate=32_000)),
    (".mp3", dict(rate=16_000, channels=1, bitrate=24_000)),
    (".mp3", dict(rate=8_000, channels=1, bitrate=8_000)),  # a frame refers to many before it
    (".flac", dict(rate=44_100, channels=2)),
    (".flac", dict(rate=16_000)),
    (".flac", dict(rate=96_000, channels=2)),
]

def decoded(path: Path, helpers: int = 3) -> tuple[bytes, str]:
    """(samples, report)."""
    child = subprocess.run([sys.executable, "-B", DECODER, str(SAMPLE_RATE), str(helpers), path], capture_output=True, timeout=60)
    return child.stdout, child.stderr.decode()


@contextmanager
def decoding(*arguments: object):
    """The decoder at work, for a minute at most."""
    with subprocess.Popen([sys.executable, "-B", DECODER, str(SAMPLE_RATE), "3", *map(str, arguments)], stdout=subprocess.PIPE) as child:
        watchdog = threading.Timer(60, child.kill)
        watchdog.start()
        try:
            yield child
        finally:
            watchdog.cancel()


def in_one_pass(path: Path) -> tuple[bytes, str]:
    return decoded(path, helpers=0)


def decoders_of(process: psutil.Process) -> list[psutil.Process]:
    running = [p for p in process.children(recursive=True) if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in running if str(DECODER) in p.cmdline()]


@pytest.mark.parametrize("suffix, options", FORMATS, ids=str)
def test_ranges_side_by_side_give_the_samples_of_one_pass(tmp_path, suffix, options):
    media.encode(MINUTES, tmp_path / f"a{suffix}", **options)
    assert decoded(tmp_path / f"a{suffix}") == in_one_pass(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("seconds", [RANGE_SECONDS + s for s in (-0.1, 0, 0.02, 0.3, 0.6)] + [2 * RANGE_SECONDS + s for s in (-0.03, 0.03)])
def test_whatever_the_length(tmp_path, seconds):
    media.encode(MINUTES[: round(seconds * SAMPLE_RATE)], tmp_path / "a.mp3", rate=44_100, channels=2)
    assert decoded(tmp_path / "a.mp3") == in_one_pass(tmp_path / "a.mp3")


def test_a_variable_bit_rate_with_tags_and_a_second_file_behind_it(tmp_path):
    """As joined by hand; the second one's header is a frame of silence in the midst."""
    for name, pcm in (("a.mp3", MINUTES[: 50 * SAMPLE_RATE]), ("b.mp3", MINUTES[-45 * SAMPLE_RATE :])):
        with av.open(str(tmp_path / name), "w") as container:
            track = container.add_stream("libmp3lame", rate=44_100, layout="stereo", options={"q": "5"})
            frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, 0
            container.mux([*track.encode(frame), *track.encode(None)])
    (tmp_path / "c.mp3").write_bytes((tmp_path / "a.mp3").read_bytes() + (tmp_path / "b.mp3").read_bytes())
    samples, report = decoded(tmp_path / "c.mp3")
    assert (samples, report) == in_one_pass(tmp_path / "c.mp3") and len(samples) > 2 * 94 * SAMPLE_RATE


@pytest.mark.parametrize("suffix", [".mp3", ".flac"])
def test_times_in_whole_milliseconds_say_little_of_samples(tmp_path, suffix):
    media.encode(MINUTES, tmp_path / f"a{suffix}", rate=44_100)
    media.remux(tmp_path / f"a{suffix}", tmp_path / "a.mka", container="matroska")
    assert decoded(tmp_path / "a.mka") == in_one_pass(tmp_path / "a.mka")


@pytest.mark.parametrize("rate, channels", [(48_000, 1), (44_100, 2)])
def test_a_rate_or_a_layout_that_changes_in_the_midst(tmp_path, rate, channels):
    parts = []
    for options in (dict(rate=44_100, channels=1), dict(rate=rate, channels=channels)):
        media.encode(MINUTES[: 45 * SAMPLE_RATE], tmp_path / "part.mp3", bitrate=64_000, **options)
        parts.append((tmp_path / "part.mp3").read_bytes())
    (tmp_path / "a.mp3").write_bytes(b"".join(parts))
    samples, report = decoded(tmp_path / "a.mp3")
    assert (samples, report) == in_one_pass(tmp_path / "a.mp3") and len(samples) > 2 * 89 * SAMPLE_RATE


def test_silence_that_was_never_sent(tmp_path):
    """MP4 counts in samples, so that all times but those of the hole are exact."""
    media.encode(MINUTES, tmp_path / "a.mp3", rate=16_000)
    media.remux(tmp_path / "a.mp3", tmp_path / "b.mp4", without=(45, 49))
    samples, report = decoded(tmp_path / "b.mp4")
    assert (samples, report) == in_one_pass(tmp_path / "b.mp4") and len(samples) > 2 * 69 * SAMPLE_RATE


@pytest.mark.parametrize("codec", ["libmp3lame", "flac"])
def test_sound_that_starts_after_the_pictures(tmp_path, codec):
    media.encode_film(MINUTES, tmp_path / "a.mkv", late=3.0, codec=codec)
    samples, report = decoded(tmp_path / "a.mkv")
    assert (samples, report) == in_one_pass(tmp_path / "a.mkv") and len(samples) > 2 * 72 * SAMPLE_RATE


@pytest.mark.parametrize("suffix", [".flac", ".mkv"])
def test_a_file_cut_short_is_told_as_in_one_pass(tmp_path, suffix):
    media.encode_film(MINUTES, tmp_path / "a.mkv", codec="libmp3lame") if suffix == ".mkv" else media.encode(MINUTES, tmp_path / "a.flac")
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) * 8 // 10])
    samples, report = decoded(tmp_path / "cut")
    assert (samples, report) == in_one_pass(tmp_path / "cut") and "declares 70.0 seconds" in report


@cache
def healthy(suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        media.encode(MINUTES, Path(folder) / f"a{suffix}", rate=44_100)
        return (Path(folder) / f"a{suffix}").read_bytes()


def damaged(folder: Path, suffix: str, at: float, share: float) -> Path:
    data = bytearray(healthy(suffix))
    start, size = round(at * len(data)), max(4, round(share * len(data)))
    data[start : start + size] = random.Random(1).randbytes(len(data[start : start + size]))
    (folder / f"b{suffix}").write_bytes(data)
    return folder / f"b{suffix}"


@pytest.mark.parametrize("share", [0.00001, 0.001, 0.01])
@pytest.mark.parametrize("at", [0.05, 0.31, 0.97])
@pytest.mark.parametrize("suffix", [".mp3", ".flac"])
def test_light_damage_is_mended_as_in_one_pass(tmp_path, suffix, at, share):
    path = damaged(tmp_path, suffix, at, share)
    assert decoded(path) == in_one_pass(path)


@pytest.mark.parametrize("at", [0.05, 0.31, 0.8])
@pytest.mark.parametrize("suffix", [".mp3", ".flac"])
def test_heavy_damage_is_refused_as_in_one_pass(tmp_path, suffix, at):
    path = damaged(tmp_path, suffix, at, share=0.1)
    assert all("is damaged" in report for _, report in (decoded(path), in_one_pass(path)))


def test_sound_comes_while_its_range_is_the_last_that_has_arrived(tmp_path):
    """What helpers have decoded isn't held back until more of the file is there."""
    media.encode(MINUTES, tmp_path / "a.mp3", rate=44_100, channels=2, bitrate=128_000)
    content = (tmp_path / "a.mp3").read_bytes()
    growing = tmp_path / "growing"
    growing.write_bytes(content[: len(content) * 3 // 4])
    with decoding(growing, len(content), tmp_path / "whole") as child:
        arrived = child.stdout.read(2 * 35 * SAMPLE_RATE)  # returns once there are so many
        with growing.open("ab") as file:
            file.write(content[len(content) * 3 // 4 :])
        (tmp_path / "whole").touch()
        rest = child.stdout.read()
    assert (arrived + rest, "") == in_one_pass(tmp_path / "a.mp3")


@pytest.mark.parametrize("victim", ["a helper", "the decoder"])
def test_who_is_killed_takes_no_sound_and_leaves_no_process(tmp_path, victim):
    media.encode(np.resize(MINUTES, 180 * SAMPLE_RATE), tmp_path / "a.mp3", rate=44_100)
    with decoding(tmp_path / "a.mp3") as child:
        first = child.stdout.read(2 * 2 * RANGE_SECONDS * SAMPLE_RATE)
        helpers = decoders_of(psutil.Process(child.pid))  # the pipe is full: they all wait
        assert helpers
        if victim == "a helper":
            helpers[0].kill()
            assert (first + child.stdout.read(), 0) == (in_one_pass(tmp_path / "a.mp3")[0], child.wait(timeout=30))
        else:
            child.kill()
    assert gone(helpers)


def test_a_job_that_ends_early_takes_the_helpers_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "CORES", 6)
    media.encode(np.resize(MINUTES, 180 * SAMPLE_RATE), tmp_path / "a.mp3", rate=44_100)

    async def two_ranges_only() -> list[psutil.Process]:
        async with audio.decode(tmp_path / "a.mp3", 3600) as pcm:
            async for _ in pcm:
                if pcm.duration > 2 * RANGE_SECONDS:
                    return decoders_of(psutil.Process())

    processes = asyncio.run(two_ranges_only())
    assert len(processes) == 1 + 4 and gone(processes)


def test_decoders_share_the_cores_but_for_two(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "CORES", 6)
    media.encode(MINUTES[: 5 * SAMPLE_RATE], tmp_path / "a.mp3")

    async def helpers_of_three_at_once() -> list[str]:
        async with AsyncExitStack() as stack:
            told = []
            for _ in range(3):
                before = set(decoders_of(psutil.Process()))
                await stack.enter_async_context(audio.decode(tmp_path / "a.mp3", 3600))
                (decoder,) = set(decoders_of(psutil.Process())) - before
                arguments = decoder.cmdline()
                told.append(arguments[arguments.index(str(SAMPLE_RATE)) + 1])
            return told

    assert asyncio.run(helpers_of_three_at_once()) == ["4", "2", "1"]


def gone(processes: list[psutil.Process]) -> bool:
    deadline = time.monotonic() + 5
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
