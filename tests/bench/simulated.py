"""Whole jobs on simulated GPUs: does the GPU wait for the worker, does a short job wait for long
ones, what does the worker cost?

The worker is complete: download, decoder, splitter, gate, vLLM's rendering and its message to the
engine, the aligner's preparation and its handling of marks. A clock replaces the forward passes
only. It takes as long as the true 0.6B models would by their sizes: weights and cache are read once
a step; encoder, prefill and aligner run at 40 % of the peak; a step takes at least 2 ms. The ratio
is the job's wall time over that of the same chunks on the same clock, all available at once.
"""

import asyncio
import gc
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from types import SimpleNamespace

import inputs
import measure
import psutil
import soundfile
from measure import cost_of, table
from recording.chunk import SAMPLE_RATE, AudioChunk
from scripted import VOCABULARY
from speech.models.gpu_memory import STEP_BY_MEMORY
from speech.models.recogniser import EMPTY_VOCABULARY
from speech.models.token_limits import AUDIO_TOKENS_PER_SECOND

# In bfloat16: FLOP/s, bytes/s, GiB.
GPUS = {
    "L4": (121e12, 300e9, 24),
    "RTX 4090": (165e12, 1008e9, 24),
    "H100": (989e12, 3350e9, 80),
}
WANTED = {"L4": 1.15, "RTX 4090": 1.15, "H100": 1.3}
UTILISATION = 0.4  # a share of the card's peak
WEIGHT_BYTES, CACHE_BYTES = 1.19e9, 112 * 1024  # the decoder's weights; the cache for one token
# Per second of audio: the encoder and the prefill, and the aligner's single pass.
RECOGNISE_FLOP, ALIGN_FLOP = (
    21.6e9,
    34.6e9,
)
TEXT_TOKENS, WORDS = 4.5, 2.5  # per second of audio
MIN_STEP = 0.002  # seconds
CROWDS = (16, 32)  # long jobs at once
CROWD_SECONDS = (
    60  # until the long jobs have filled the engine's batch; their memory is measured meanwhile
)
QUICK_CROWD_SECONDS = 15  # the long jobs of --quick take little more
GIL_SECONDS = 3  # for which a stage is measured
CHUNK_SECONDS = 60
TICK_SECONDS = 0.02  # that the ticker sleeps; what it takes beyond is a stall of its event loop
CLOCK = "clock"  # CPU time of the simulation itself, which does not count as the worker's


@dataclass(eq=False)
class _Chunk:
    """A chunk on the clock."""

    priority: tuple[int, int]
    seconds: float
    done: Callable[[], None]
    context: float = 0.0  # tokens in the cache
    left: int = 0  # tokens to say


@dataclass(eq=False)
class Gpu:
    """A card whose time the recogniser's steps and the aligner's batches book in turn."""

    flops: float
    bandwidth: float
    gib: float
    free_at: float = 0.0  # on the clock
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def step(self) -> tuple[int, int]:
        """Chunks and tokens in one step."""
        return next(step for limit, *step in STEP_BY_MEMORY if self.gib <= limit)

    def book(self, work: float, ready: float) -> float:
        """Book `work` seconds of the card, from `ready` on; returns when they end, on the clock."""
        with self.lock:
            self.free_at = max(self.free_at, ready) + work
            return self.free_at

    def seconds_for(self, flop: float) -> float:
        return flop / (self.flops * UTILISATION)

    def begin_step(self, waiting: list[_Chunk], running: list[_Chunk]) -> float:
        """Admit as vLLM does; returns the seconds that the step takes."""
        work = 0.0
        waiting.sort(key=lambda c: c.priority)
        while waiting and len(running) < self.step[0]:
            chunk = waiting.pop(0)
            work += self.seconds_for(RECOGNISE_FLOP * chunk.seconds)
            chunk.context, chunk.left = (
                AUDIO_TOKENS_PER_SECOND * chunk.seconds,
                max(1, round(TEXT_TOKENS * chunk.seconds)),
            )
            running.append(chunk)
        return work + max(
            MIN_STEP,
            (WEIGHT_BYTES + CACHE_BYTES * sum(c.context for c in running)) / self.bandwidth,
        )

    def end_step(self, running: list[_Chunk]) -> None:
        """Add a token to every chunk; chunks that are complete are done and leave."""
        for chunk in running:
            chunk.context, chunk.left = chunk.context + 1, chunk.left - 1
            if chunk.left == 0:
                chunk.done()
        running[:] = [chunk for chunk in running if chunk.left > 0]


def alone(gpu: Gpu, seconds: list[float]) -> float:
    """Seconds that the card takes for chunks of these lengths (seconds) without a worker."""
    aligned, running = [0.0], []
    waiting = [
        _Chunk((0, i), s, lambda s=s: aligned.append(gpu.seconds_for(ALIGN_FLOP * s)))
        for i, s in enumerate(seconds)
    ]
    while waiting or running:
        gpu.book(gpu.begin_step(waiting, running), 0)
        gpu.end_step(running)
    return gpu.book(sum(aligned), 0)


class ClockedEngine:
    """Replaces AsyncLLM: the same renderer and message to the engine's process, and a clock for the
    rest.
    """

    errored = False

    def __init__(self, gpu: Gpu, config, stages: "Stages"):
        """In the loop that will serve it."""
        from vllm.renderers import renderer_from_config
        from vllm.v1.engine.input_processor import InputProcessor
        from vllm.v1.serial_utils import MsgpackEncoder

        self.renderer = renderer_from_config(config)
        self._inputs, self._encoder = InputProcessor(config, self.renderer), MsgpackEncoder()
        self._message = stages.timed("message to the engine", self._encoded)
        self._gpu, self._tickets, self._rng = gpu, itertools.count(), random.Random(0)
        self._waiting: list[_Chunk] = []
        self._running: list[_Chunk] = []
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._steps())

    def _encoded(self, request_id, prompt, sampling, priority):
        return self._encoder.encode(
            self._inputs.process_inputs(
                request_id, prompt, sampling, ("generate",), priority=priority
            )
        )

    async def generate(self, prompt, sampling, request_id, priority):
        self._message(request_id, prompt, sampling, priority)
        said = asyncio.get_running_loop().create_future()
        seconds = prompt["mm_placeholders"]["audio"][0].length / AUDIO_TOKENS_PER_SECOND
        self._waiting.append(
            _Chunk(
                (priority, next(self._tickets)),
                seconds,
                lambda: said.done() or said.set_result(None),
            )
        )
        self._wake.set()
        await said
        words = self._rng.choices(VOCABULARY["English"], k=max(1, round(WORDS * seconds)))
        text = f"language English<asr_text>{' '.join(words).capitalize()}."
        yield SimpleNamespace(
            prompt_token_ids=[],
            outputs=[
                SimpleNamespace(
                    text=text, finish_reason="stop", token_ids=range(round(TEXT_TOKENS * seconds))
                )
            ],
        )

    def shutdown(self) -> None:
        self._task.cancel()
        self.renderer.shutdown()

    async def _steps(self) -> None:
        end = 0.0
        while True:
            if not (self._waiting or self._running):
                self._wake.clear()
                await self._wake.wait()
                end = time.monotonic()
            end = self._gpu.book(self._gpu.begin_step(self._waiting, self._running), end)
            await asyncio.sleep(max(0, end - time.monotonic()))
            self._gpu.end_step(self._running)


def clocked_aligner(gpu: Gpu, aligner, stages: "Stages"):
    """The aligner with a clock in place of its forward pass; the marks are spread evenly over the
    clip.
    """
    import speech.models.aligner as align
    import torch

    def classes_of(thinker, token_ids, spectra, timestamp_id):
        frames = [mel.shape[1] for mel in spectra]
        end = gpu.book(gpu.seconds_for(ALIGN_FLOP * sum(frames) / 100), time.monotonic())
        counts = [int((ids == timestamp_id).sum()) for ids in token_ids]
        lasts = [n / 8 - 1 for n in frames]  # classes of 80 ms
        classes = [torch.linspace(0, last, n).long() for n, last in zip(counts, lasts)]
        time.sleep(max(0, end - time.monotonic()))
        return torch.cat(classes)

    align.predicted_classes = stages.timed(CLOCK, classes_of)
    return aligner


class Stages:
    """CPU seconds of the threads in which each stage of the worker runs."""

    def __init__(self):
        self.seconds: Counter[str] = Counter()

    def timed(self, name: str, function):
        def run(*args, **kwargs):
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.thread_time() - began

        return run

    def watch(self, owner: object, function: str, name: str) -> None:
        setattr(owner, function, self.timed(name, getattr(owner, function)))


def worker_on(gpu: Gpu, stages: Stages):
    """The handler module, loaded as usual, with the clock in place of the forward passes."""
    import handler
    import recording.vad as vad
    import result.delivery as delivery
    import result.transcript as transcript
    import speech.models.aligner as align
    import speech.models.recogniser as asr
    import speech.retries as retries
    from contract.settings import load_settings
    from vllm.renderers.base import BaseRenderer

    async def start(engine_args):
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext

        return ClockedEngine(
            gpu,
            AsyncEngineArgs(**engine_args).create_engine_config(UsageContext.ENGINE_CONTEXT),
            stages,
        )

    asr._start_engine = start
    for owner, function, name in (
        (vad.Splitter, "push", "voice detection, cuts"),
        (asr, "waveform", "spectrum"),
        (BaseRenderer, "_process_multimodal", "spectrum"),
        (align.Aligner, "_prepared", "aligner's input"),
        (align, "aligned_words", "text and times"),
        (asr, "parsed", "text and times"),
        (retries, "fault_in", "text and times"),
        (handler, "merge_channels", "text and times"),
        (Gpu, "begin_step", CLOCK),
        (Gpu, "end_step", CLOCK),
        (transcript.Transcript, "to_output", "JSON"),
        (delivery, "size_of", "JSON"),
    ):
        stages.watch(owner, function, name)
    handler.settings = load_settings(os.environ)
    handler.load_models()
    clocked_aligner(gpu, handler.aligner, stages)
    return handler


async def _record_stalls(stalls: list[float]) -> None:
    """Append, at every tick, the seconds by which the running event loop was late."""
    while True:
        began = time.monotonic()
        await asyncio.sleep(TICK_SECONDS)
        stalls.append(time.monotonic() - began - TICK_SECONDS)


async def _chunks(handler, url: str) -> list[AudioChunk]:
    from recording.download import download
    from recording.pcm_stream import decode
    from recording.vad import CutRules, split_at_pauses

    s = handler.settings
    rules = CutRules(s.chunk_target_seconds, s.chunk_limit_seconds, s.vad_mode)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            download(url, Path(folder), max_bytes=2**40, timeout=3600) as file,
            decode(file.path, 1e6, file.size, file.complete_marker) as pcm,
        ):
            return [chunk async for chunk in split_at_pauses(pcm, rules)]


async def _job(handler, url: str) -> float:
    began = time.monotonic()
    output = await handler.handler(
        {"id": "simulated", "input": {"audio_url": url, "language": "English"}}
    )
    assert output.get("segments"), output
    return time.monotonic() - began


async def _single(handler, gpu: Gpu, stages: Stages, url: str) -> dict:
    """One long job: its time and that of the card alone, stalls of both event loops, CPU seconds by
    stage for an hour of audio.
    """
    seconds = [chunk.duration for chunk in await _chunks(handler, url)]
    hours = sum(seconds) / 3600
    stages.seconds.clear()
    loops = [
        asyncio.create_task(_record_stalls(own := [0.0])),
        asyncio.run_coroutine_threadsafe(_record_stalls(engines := [0.0]), handler.asr._loop),
    ]
    cpu, children = time.process_time(), getrusage(RUSAGE_CHILDREN)
    wall = await _job(handler, url)
    cpu = time.process_time() - cpu
    after = getrusage(RUSAGE_CHILDREN)
    for loop in loops:
        loop.cancel()
    decoder = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    parts = {
        "decoder's process": decoder,
        **stages.seconds,
        "loops, download, rest": cpu - sum(stages.seconds.values()),
    }
    del parts[CLOCK]
    return {
        "engine alone": alone(Gpu(gpu.flops, gpu.bandwidth, gpu.gib), seconds),
        "job": wall,
        "stall": max(own),
        "engine loop's stall": max(engines),
        "cpu": {name: part / hours for name, part in parts.items()},
    }


async def _crowd(handler, long: str, short: str, jobs: int, seconds: float) -> dict:
    """Seconds of a short job alone and beside `jobs` long ones, and the memory that these take."""
    process = psutil.Process()
    by_itself = [await _job(handler, short) for _ in range(3)]
    idle = process.memory_info().rss
    crowd = [
        asyncio.create_task(handler.handler({"id": str(i), "input": {"audio_url": long}}))
        for i in range(jobs)
    ]
    memory, ends = [], time.monotonic() + seconds
    while time.monotonic() < ends:
        await asyncio.sleep(0.25)
        memory.append(process.memory_info().rss - idle)
    beside = [await _job(handler, short) for _ in range(3)]
    assert not any(job.done() for job in crowd)
    for job in crowd:
        job.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    return {
        "alone": statistics.median(by_itself),
        "beside": statistics.median(beside),
        "MiB": max(memory) / 2**20,
    }


def _gil_share(function: Callable[[], object]) -> float:
    """Share of `function`'s CPU time for which it holds the GIL: a thread that always wants the GIL
    sleeps as long.
    """
    slept, over = [0.0], threading.Event()

    def compete() -> None:
        began, active = time.monotonic(), _active_seconds()
        while not over.is_set():
            pass
        slept[0] = time.monotonic() - began - (_active_seconds() - active)

    thread = threading.Thread(target=compete)
    ends, cpu = time.monotonic() + GIL_SECONDS, time.thread_time()
    thread.start()
    while time.monotonic() < ends:
        function()
    cpu = time.thread_time() - cpu
    over.set()
    thread.join()
    return min(1.0, slept[0] / cpu)


def _active_seconds() -> float:
    """For which this thread was on a CPU or waited for one: the kernel's schedstats."""
    running, waiting, _ = map(
        int, Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()
    )
    return (running + waiting) / 1e9


async def _gil(handler, url: str) -> dict[str, float]:
    """Stage → share of its CPU time with the GIL, measured on one chunk."""
    import recording.vad as vad
    from result.transcript import merge
    from speech.word_times import aligned_words
    from speech.words import ChunkResult

    chunk = (await _chunks(handler, url))[1]
    rng = random.Random(0)
    text = " ".join(rng.choices(VOCABULARY["English"], k=round(WORDS * chunk.duration)))
    prompt, renderer = (
        handler.asr._prompt("", "English", EMPTY_VOCABULARY),
        handler.asr._engine.renderer,
    )
    _, spectrum = asyncio.run_coroutine_threadsafe(
        handler.asr._rendered(chunk, prompt), handler.asr._loop
    ).result()
    task = handler.aligner._prepared(chunk, text, "English", spectrum)
    marks = [
        round(1000 * chunk.duration * i / (2 * len(task.units))) for i in range(2 * len(task.units))
    ]
    found = aligned_words(chunk, text, task.units, marks)
    transcript = merge(
        [ChunkResult(chunk.start, chunk.end, chunk.speech_seconds, text, "English", found)],
        chunk.end,
    )
    splitter = vad.Splitter(vad.CutRules(60, 180, 2))
    audio = {"audio": [(chunk.pcm.astype("float32") / 32768, SAMPLE_RATE)]}
    return {
        "voice detection, cuts": _gil_share(lambda: splitter.push(chunk.pcm)),
        "spectrum": _gil_share(
            lambda: renderer.render_cmpl([{"prompt_token_ids": prompt, "multi_modal_data": audio}])
        ),
        "aligner's input": _gil_share(
            lambda: handler.aligner._prepared(chunk, text, "English", spectrum)
        ),
        "text and times": _gil_share(lambda: aligned_words(chunk, text, task.units, marks)),
        "JSON": _gil_share(lambda: json.dumps(transcript.to_output()).encode()),
        "message to the engine": 1.0,
        "loops, download, rest": 1.0,
        "decoder's process": 0.0,
    }


def _measured(what: str, gpu: str, *args: str) -> dict:
    card, stages = Gpu(*GPUS[gpu]), Stages()
    os.environ |= dict(zip(("MAX_NUM_SEQS", "MAX_NUM_BATCHED_TOKENS"), map(str, card.step)))
    handler = worker_on(card, stages)
    gc.freeze()
    try:
        if what == "single":
            return asyncio.run(_single(handler, card, stages, args[0]))
        if what == "crowd":
            return asyncio.run(_crowd(handler, args[0], args[1], int(args[2]), float(args[3])))
        return asyncio.run(_gil(handler, args[0]))
    finally:
        handler.aligner.close()
        handler.asr.close()


def run(quick: bool) -> None:
    recordings = ((900, "mp3"), (900, "wav")) if quick else ((14_400, "mp3"), (14_400, "wav"))
    # the renderer is that of the tiny checkpoint, whose config allows shorter inputs only
    settings = dict(
        CHUNK_TARGET_SECONDS=str(CHUNK_SECONDS),
        CHUNK_LIMIT_SECONDS="180",
        VLLM_ALLOW_LONG_MAX_MODEL_LEN="1",
    )
    found: dict = {"gpus": {gpu: {} for gpu in GPUS}, "crowds": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        short = _wav(folder, 5)
        with inputs.served(folder) as address:
            for seconds, suffix in recordings:
                path = (
                    _wav(folder, seconds)
                    if suffix == "wav"
                    else inputs.recording(folder, seconds, suffix)
                )
                url = f"{address}/{path.name}"
                for gpu in GPUS:
                    _, said = cost_of([__file__, "single", gpu, url], **settings)
                    found["gpus"][gpu][f"{seconds / 60:.0f} min of {suffix.upper()}"] = said | {
                        "ratio": said["job"] / said["engine alone"]
                    }
            for jobs in CROWDS:
                _, found["crowds"][jobs] = cost_of(
                    [
                        __file__,
                        "crowd",
                        "L4",
                        url,
                        f"{address}/{short.name}",
                        jobs,
                        QUICK_CROWD_SECONDS if quick else CROWD_SECONDS,
                    ],
                    **settings,
                )
            _, held = cost_of([__file__, "gil", "L4", url], **settings)
    found["held"] = held
    rows = [
        [
            f"{gpu}, {length}",
            f["engine alone"],
            f["job"],
            f["ratio"],
            f"<= {WANTED[gpu]}",
            1000 * f["stall"],
            1000 * f["engine loop's stall"],
        ]
        for gpu, by in found["gpus"].items()
        for length, f in by.items()
    ]
    print(
        table(
            "simulated GPUs",
            ["", "engine alone s", "job s", "ratio", "wanted", "stall ms", "engine's loop ms"],
            rows,
        ),
        flush=True,
    )
    for length, f in found["gpus"]["L4"].items():
        rows = [
            [name, seconds, seconds * held.get(name, 1.0)] for name, seconds in f["cpu"].items()
        ]
        rows.append(["all", *(sum(row[i] for row in rows) for i in (1, 2))])
        print(
            table(
                f"CPU seconds per hour of audio, L4, {length}", ["", "CPU s", "with the GIL"], rows
            ),
            flush=True,
        )
    rows = [
        [f"beside {jobs} long jobs", f["alone"], f["beside"], f["beside"] / f["alone"], f["MiB"]]
        for jobs, f in found["crowds"].items()
    ]
    print(
        table(
            "a job of 5 s, L4",
            ["", "alone s", "beside s", "ratio", "worker's memory over idle MiB"],
            rows,
        ),
        flush=True,
    )
    measure.write("simulated", found, quick)


def _wav(folder: Path, seconds: float) -> Path:
    """16 kHz mono."""
    path = folder / f"{seconds}.wav"
    soundfile.write(path, inputs.speech(seconds), SAMPLE_RATE, "PCM_16")
    return path


if __name__ == "__main__":
    print(json.dumps(_measured(*sys.argv[1:])))
