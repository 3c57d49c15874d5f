"""Whole jobs on simulated GPUs: does the engine wait for the worker?

The engine here is a clock: it admits chunks as vLLM does and sleeps as long as a step would take by the sizes of the true
0.6B models (weights and cache read once a step, encoder, prefill and aligner at 40 % of the peak, at least 2 ms a step).
Everything else is the worker itself, decoding a real file. The ratio is the job's wall time over that of the same chunks
given to the same clock at once.
"""

import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import soundfile

import inputs
import measure
from audio import SAMPLE_RATE
from engine import STEP_BY_MEMORY
from measure import cost_of, table

GPUS = {"L4": (121e12, 300e9, 24), "RTX 4090": (165e12, 1008e9, 24), "H100": (989e12, 3350e9, 80)}  # bf16 FLOP/s, bytes/s, GiB
WANTED = {"L4": 1.10, "RTX 4090": 1.10, "H100": 1.3}
UTILISATION = 0.4  # of the peak
WEIGHT_BYTES, CACHE_BYTES = 1.19e9, 112 * 1024  # of the decoder; of one token
RECOGNISE_FLOP, ALIGN_FLOP = 21.6e9, 34.6e9  # per second of audio: encoder and prefill; the aligner's single pass
AUDIO_TOKENS, TEXT_TOKENS, WORDS = 13, 4.5, 2.5  # per second of audio
SHORTEST_STEP = 0.002  # seconds


@dataclass(eq=False)
class _Running:
    context: float  # tokens in the cache
    left: int  # tokens to say
    done: asyncio.Future


class Gpu:
    """Stands in for `handler.asr` and `handler.aligner` both: one GPU's time."""

    dead = False

    def __init__(self, flops: float, bandwidth: float, gib: float):
        self._flops, self._bandwidth = flops * UTILISATION, bandwidth
        self.capacity = next(chunks for limit, chunks, _ in STEP_BY_MEMORY if gib <= limit)
        self._waiting: list[tuple[int, float, asyncio.Future]] = []
        self._running: list[_Running] = []
        self._alignments: list[tuple[float, asyncio.Future]] = []
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._steps())

    async def transcribe(self, chunk, language, context, temperature=0.0):
        from asr import Hypothesis

        done = asyncio.get_running_loop().create_future()
        self._waiting.append((chunk.index, chunk.duration, done))
        self._wake.set()
        await done
        text = " ".join(["alpha"] * max(1, round(WORDS * chunk.duration)))
        return Hypothesis(text, "English", "stop", round(TEXT_TOKENS * chunk.duration))

    async def align(self, chunk, text, language):
        from timing import words

        done = asyncio.get_running_loop().create_future()
        self._alignments.append((chunk.duration, done))
        self._wake.set()
        await done
        units = text.split()
        step = int(1000 * chunk.duration / len(units))
        return words(chunk, text, units, [t for i in range(len(units)) for t in (i * step, i * step + step)])

    def close(self) -> None:
        self._task.cancel()

    async def _steps(self) -> None:
        clock = time.monotonic()
        while True:
            if not (self._waiting or self._running or self._alignments):
                self._wake.clear()
                await self._wake.wait()
                clock = time.monotonic()
            work = 0.0
            self._waiting.sort(key=lambda w: w[0])
            while self._waiting and len(self._running) < self.capacity:
                _, seconds, done = self._waiting.pop(0)
                work += RECOGNISE_FLOP * seconds / self._flops
                self._running.append(_Running(AUDIO_TOKENS * seconds, max(1, round(TEXT_TOKENS * seconds)), done))
            aligned, self._alignments = self._alignments, []
            work += sum(ALIGN_FLOP * seconds / self._flops for seconds, _ in aligned)
            if self._running:
                work += max(SHORTEST_STEP, (WEIGHT_BYTES + CACHE_BYTES * sum(r.context for r in self._running)) / self._bandwidth)
            clock = clock + work
            await asyncio.sleep(max(0, clock - time.monotonic()))
            for _, done in aligned:
                if not done.done():
                    done.set_result(None)
            for one in self._running:
                one.context, one.left = one.context + 1, one.left - 1
                if one.left == 0 and not one.done.done():
                    one.done.set_result(None)
            self._running = [one for one in self._running if one.left > 0]


def run(quick: bool) -> None:
    # MP3 costs the most to decode; of WAV as the models want it, what is left is the worker's own
    recordings, repeats = (((300, "mp3"), (900, "mp3"), (900, "wav")), 1) if quick else (((3600, "mp3"), (14_400, "mp3"), (14_400, "wav")), 3)
    found: dict[str, dict[str, dict]] = {gpu: {} for gpu in GPUS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with inputs.served(folder) as address:
            for seconds, suffix in recordings:
                path = _wav(folder, seconds) if suffix == "wav" else inputs.recording(folder, seconds, suffix)
                for gpu in GPUS:
                    _, said = cost_of([__file__, gpu, f"{address}/{path.name}", repeats], MODEL_NAME="-", ALIGNER_NAME="-", CHUNK_TARGET_SECONDS="60", CHUNK_LIMIT_SECONDS="180", MAX_CHUNKS_PER_JOB="0")
                    found[gpu][f"{seconds / 60:.0f} min of {suffix.upper()}"] = said | {"ratio": said["job"] / said["engine alone"]}
    rows = [[f"{gpu}, {length}", f["engine alone"], f["job"], f["ratio"], f"<= {WANTED[gpu]}", 1000 * f["stall"]] for gpu, by in found.items() for length, f in by.items()]
    print(table("simulated GPUs", ["", "engine alone s", "job s", "ratio", "wanted", "stall ms"], rows), flush=True)
    measure.write("simulated", found, quick)


def _wav(folder: Path, seconds: float) -> Path:
    """16 kHz mono."""
    path = folder / f"{seconds}.wav"
    soundfile.write(path, inputs.speech(seconds), SAMPLE_RATE, "PCM_16")
    return path


async def _measured(gpu: str, url: str, repeats: int) -> dict[str, float]:
    import handler
    import models
    from audio import decode
    from download import download
    from settings import load_settings
    from vad import CutRules, split_at_pauses
    from whole_job import _heart

    handler.settings = load_settings(os.environ)
    gc.collect()
    gc.freeze()  # as load_models does
    with tempfile.TemporaryDirectory() as folder:
        async with download(url, Path(folder), max_bytes=2**40, timeout=3600) as file, decode(file.path, 1e6, file.size, file.whole) as pcm:
            s = handler.settings
            chunks = [chunk async for chunk in split_at_pauses(pcm, CutRules(s.chunk_target_seconds, s.chunk_limit_seconds, s.vad_mode))]
    handler.asr = handler.aligner = clock = Gpu(*GPUS[gpu])
    began = time.monotonic()
    await models.direct(handler, chunks, len(chunks))
    alone = time.monotonic() - began  # a clock's time is the same whenever it is taken
    clock.close()
    jobs, stalls = [], [0.0]
    for _ in range(repeats):
        handler.asr = handler.aligner = clock = Gpu(*GPUS[gpu])
        beating = asyncio.create_task(_heart(stalls))
        began = time.monotonic()
        output = await handler.handler({"id": "simulated", "input": {"audio_url": url, "language": "English"}})
        jobs.append(time.monotonic() - began)
        beating.cancel()
        clock.close()
        assert output.get("segments"), output
    return {"engine alone": alone, "job": statistics.median(jobs), "stall": max(stalls)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measured(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
