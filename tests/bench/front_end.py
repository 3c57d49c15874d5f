"""Download, decoding, voice detection and splitting, without an engine: this worker, the reference
worker, and a floor for both.

The floor is one pass in one process, without a download: decode, resample to 16 kHz mono, run
webrtcvad over the samples, by the cheaper of PyAV and libsndfile with soxr.
"""

import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import inputs
import measure
import numpy as np
from measure import Cost, cost_of, in_turn, table

TARGET_SECONDS = 60
FLOORS = {"PyAV": ("mp3", "m4a", "opus", "wav"), "libsndfile+soxr": ("mp3", "wav")}


def run(quick: bool) -> None:
    seconds, repeats = (300, 3) if quick else (3600, 3)
    lengths = (120, 600) if quick else (600, 3600, 36_000)
    found = {"seconds": seconds, "formats": {}, "lengths": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with inputs.served(folder) as address:
            for suffix in inputs.FORMATS:
                path = inputs.recording(folder, seconds, suffix)
                sides = {
                    "ours": _side("ours", f"{address}/{path.name}"),
                    "reference": _side("reference", f"{address}/{path.name}"),
                }
                sides |= {
                    name: _side(name, str(path))
                    for name, formats in FLOORS.items()
                    if suffix in formats
                }
                found["formats"][suffix] = costs = in_turn(sides, repeats)
                floor = min(
                    (costs[name] for name in FLOORS if name in costs), key=lambda cost: cost.cpu
                )
                rows = [
                    [name, c.wall, c.cpu, c.cpu / floor.cpu, c.peak] for name, c in costs.items()
                ]
                print(
                    table(
                        f"front end, {seconds / 60:.0f} min of {suffix}",
                        ["", "wall s", "CPU s", "CPU / floor", "peak MiB"],
                        rows,
                    )
                )
                ours, reference = costs["ours"], costs["reference"]
                print(
                    f"reference / ours: CPU {reference.cpu / ours.cpu:.2f}, wall "
                    f"{reference.wall / ours.wall:.2f}, memory "
                    f"{reference.peak / ours.peak:.1f}\n",
                    flush=True,
                )
            for length in lengths:
                path = inputs.recording(folder, length, "mp3")
                found["lengths"][length] = in_turn(
                    {"ours": _side("ours", f"{address}/{path.name}")},
                    1 if length > 3600 else repeats,
                )["ours"]
                path.unlink()
    first = found["lengths"][lengths[0]]
    rows = [
        [f"{n / 60:.0f} min", c.cpu, c.cpu / n * 3600, c.peak, c.peak - first.peak]
        for n, c in found["lengths"].items()
    ]
    print(
        table(
            "ours by length, MP3", ["", "CPU s", "CPU s per hour", "peak MiB", "growth MiB"], rows
        ),
        flush=True,
    )
    measure.write("front_end", found, quick)


def _side(name: str, source: str):
    def once() -> Cost:
        cost, said = cost_of([__file__, name, source])
        assert said["chunks"] > 0
        # The time of the imports is left out, because a worker makes them once.
        return Cost(said["wall"], said["cpu"], cost.peak)

    return once


async def _ours(url: str) -> int:
    from recording.download import download
    from recording.pcm_stream import decode
    from recording.vad import CutRules, split_at_pauses

    with tempfile.TemporaryDirectory() as folder:
        async with (
            download(url, Path(folder), max_bytes=2**40, timeout=3600) as file,
            decode(file.path, 1e6, file.size, file.complete_marker) as pcm,
        ):
            return len(
                [
                    chunk.index
                    async for chunk in split_at_pauses(pcm, CutRules(TARGET_SECONDS, 180, 2))
                ]
            )


def _reference(url: str) -> int:
    import reference

    with tempfile.TemporaryDirectory() as folder:
        return len(reference.front_end(url, Path(folder), TARGET_SECONDS))


def _pyav(path: str) -> int:
    import av

    with av.open(path) as container:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
        frames = (
            bytes(r.planes[0])[: r.samples * 2]
            for frame in container.decode(audio=0)
            for r in resampler.resample(frame)
        )
        return _listen(frames)


def _sndfile(path: str) -> int:
    import soundfile
    import soxr

    with soundfile.SoundFile(path) as file:
        stream = soxr.ResampleStream(file.samplerate, 16_000, 1, dtype="float32")
        blocks = (
            stream.resample_chunk(block.mean(axis=1))
            for block in file.blocks(1 << 16, dtype="float32", always_2d=True)
        )
        return _listen((block * 32767).astype(np.int16).tobytes() for block in blocks)


def _listen(blocks) -> int:
    import webrtcvad

    vad, held, frames = webrtcvad.Vad(2), b"", 0
    for block in blocks:
        held += block
        whole = len(held) // 960 * 960
        for start in range(0, whole, 960):
            frames += vad.is_speech(held[start : start + 960], 16_000)
        held = held[whole:]
    return frames


def _cpu_seconds() -> float:
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    side, source = sys.argv[1:]
    imported = {
        "ours": ("recording.pcm_stream", "recording.download", "recording.vad"),
        "reference": ("reference",),
    }
    for module in imported.get(side, ("av", "soundfile", "soxr", "webrtcvad")):
        __import__(module)
    work = {
        "ours": lambda s: asyncio.run(_ours(s)),
        "reference": _reference,
        "PyAV": _pyav,
        "libsndfile+soxr": _sndfile,
    }
    wall, cpu = time.monotonic(), _cpu_seconds()
    count = work[side](source)
    print(
        json.dumps({"chunks": count, "wall": time.monotonic() - wall, "cpu": _cpu_seconds() - cpu})
    )
