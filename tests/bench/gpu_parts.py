"""The parts of gpu.py, each a function. gpu.py starts this file: SESSION PIPE OPTIONS STEP…

Each part reports its figures as soon as it has them; `Bench` is what those of a session share.
"""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import gpu_load
import psutil
from gpu_load import chunk_of, rtfx

MIB = 1024**2
REPEATS = 3  # each point of a sweep is measured 3 times, and the median counts
BLOCKS_CONVOLVED = (500, 128, 30)  # blocks of a second that the aligner convolves together
TEXT_CHUNKS, TEXT_SECONDS = 8, 20
LEFT_FREE = 256 * MIB  # what another process leaves free on the GPU
# Of vLLM's log: what it says of time and memory.
TELLING = re.compile(r"GiB|took \d|takes \d|captur|KV cache size|attention backend", re.I)


class Bench:
    """Sizes, the loaded worker, and the pipe to gpu.py."""

    worker: ModuleType  # handler, with its models loaded

    def __init__(self, session: str, pipe: int, options: dict):
        self.session, self.small = session, options["small"]
        self.lengths, self.in_flight = options["lengths"], options["in_flight"]
        self.jobs, self.seconds = options["jobs"], options["seconds"]
        self.out, self.work = Path(options["out"]), Path(options["work"])
        self._pipe = open(pipe, "w")  # noqa: SIM115  open until the process ends
        self._step = ""

    def run(self, step: str) -> None:
        self._step = step
        self._send("begin", step)
        STEPS[step](self)
        self._send("end", step)

    def report(self, name: str, value) -> None:
        self._send("figure", self._step, name, value)

    def _send(self, *message) -> None:
        print(json.dumps(message), file=self._pipe, flush=True)

    def close(self) -> None:
        if hasattr(self, "worker"):
            self.worker.aligner.close()
            self.worker.asr.close()


def checkpoints(bench: Bench) -> None:
    import checkpoints

    began = time.monotonic()
    checkpoints.build(bench.work, true_shape=not bench.small)
    bench.report("written_s", round(time.monotonic() - began, 1))


def memory(bench: Bench) -> None:
    """MiB: what NVML and CUDA call all of the GPU, and what a context takes."""
    import torch

    if not torch.cuda.is_available():
        bench.report("gpu", None)
        return
    before = nvml_memory()
    torch.zeros(1, device="cuda")
    after, (free, total) = nvml_memory(), torch.cuda.mem_get_info()
    bench.report("gpu", torch.cuda.get_device_name())
    bench.report("nvml_total_mib", before["total"] // MIB)
    bench.report("cuda_total_mib", total // MIB)
    bench.report("cuda_free_mib", free // MIB)
    bench.report("context_mib", (after["used"] - before["used"]) // MIB)


def marks(bench: Bench) -> None:
    """The aligner by itself: a full batch by blocks convolved together, and by type."""
    import speech.models.aligner_network as aligner_network
    import torch
    from speech.models.aligner import Aligner

    device = "cpu" if bench.small else "cuda"
    aligner = Aligner(str(bench.work / "aligner"), device, "bfloat16", 480, 180)
    model = aligner._model.model.to(device)
    aligner._model.device = model.device
    count, seconds = (2, 2) if bench.small else (16, 30)
    batch = aligner_batch(aligner, count, seconds)
    chosen = aligner_network.ALIGNER_BLOCKS_CONVOLVED
    for blocks in BLOCKS_CONVOLVED:
        aligner_network.ALIGNER_BLOCKS_CONVOLVED = blocks
        bench.report(f"{blocks} blocks convolved together", measured_marks(aligner, batch)[0])
    aligner_network.ALIGNER_BLOCKS_CONVOLVED = chosen
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        model.to(dtype)
        cost, found[dtype] = measured_marks(aligner, batch)
        bench.report(str(dtype), cost)
    bench.report("bfloat16 against float32", difference(*found.values()))


def aligner_batch(aligner, count: int, seconds: int) -> list:
    chunks = [chunk_of(seconds, seed) for seed in range(count)]
    return [
        aligner._prepared(chunk, gpu_load.words_for(seconds), "English", None) for chunk in chunks
    ]


def measured_marks(aligner, batch: list) -> tuple[dict, list[int]]:
    """({"s", and on a GPU "peak_mib"} of the second of two passes, marks in ms of all chunks)."""
    import torch

    on_gpu = torch.cuda.is_available()
    for _ in range(2):
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        found = [mark for chunk_marks in aligner._marks(batch) for mark in chunk_marks]
        seconds = round(time.monotonic() - began, 3)
    peak = {"peak_mib": torch.cuda.max_memory_allocated() // MIB} if on_gpu else {}
    return {"s": seconds} | peak, found


def difference(ours: list[int], theirs: list[int]) -> dict:
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return {"marks": len(gaps), "equal": gaps.count(0), "largest_ms": max(gaps)}


def start(bench: Bench) -> None:
    """Seconds of a start, and vLLM's own account of it."""
    began = time.monotonic()
    import handler
    from contract.settings import load_settings

    handler.settings = load_settings(os.environ)
    imported = time.monotonic()
    bench.report("imports_s", round(imported - began, 1))
    handler.load_models()
    loaded = time.monotonic()
    bench.worker = handler
    bench.report("models_s", round(loaded - imported, 1))
    with gpu_load.forced_answers(handler.asr):  # random weights do not end an answer
        asyncio.run(handler.fitness_check())
    bench.report("warm_up_s", round(time.monotonic() - loaded, 1))
    bench.report("ready_s", round(time.monotonic() - began, 1))
    bench.report("memory", process_memory())
    log = (bench.out / f"{bench.session}.log").read_text(errors="replace")
    bench.report(
        "vllm", [line.strip()[:300] for line in log.splitlines() if TELLING.search(line)][-80:]
    )


def engine(bench: Bench) -> None:
    with gpu_load.forced_answers(bench.worker.asr):
        sweep(bench, lambda chunk: bench.worker.asr.transcribe(chunk, "English", ""))


def aligner(bench: Bench) -> None:
    def align(chunk):
        return bench.worker.aligner.align(chunk, gpu_load.words_for(chunk.duration), "English")

    sweep(bench, align)


def sweep(bench: Bench, work) -> None:
    """Report times real time by chunk length and number in flight.

    A point has two chunks for each in flight, and is the median of REPEATS.
    """
    for length in bench.lengths:
        pool = [chunk_of(length, seed) for seed in range(8)]
        for count in bench.in_flight:
            chunks = [pool[i % len(pool)] for i in range(2 * count)]
            runs = sorted(asyncio.run(rtfx(work, chunks, count)) for _ in range(REPEATS))
            bench.report(f"{length} s x {count}", round(runs[REPEATS // 2], 1))


def texts(bench: Bench) -> None:
    """Answers to the same chunks, equal to those of the other model runner or not."""
    length = 2 if bench.small else TEXT_SECONDS
    chunks = [chunk_of(length, seed) for seed in range(TEXT_CHUNKS)]

    async def answers() -> list[str]:
        asr = bench.worker.asr
        return [
            heard.text
            for heard in await asyncio.gather(*(asr.transcribe(c, "English", "") for c in chunks))
        ]

    found = asyncio.run(answers())
    (bench.out / f"texts-{bench.session}.json").write_text(json.dumps(found))
    bench.report("characters", sum(map(len, found)))
    other = bench.out / "texts-worker.json"
    if bench.session != "worker" and other.exists():
        bench.report("equal", sum(a == b for a, b in zip(found, json.loads(other.read_text()))))


def jobs(bench: Bench) -> None:
    """Whole jobs at once, and MiB of each process every second."""
    samples, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(1):
            samples.append(process_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with (
            gpu_load.forced_answers(bench.worker.asr),
            gpu_load.recording(bench.work, bench.seconds) as url,
        ):
            seconds = asyncio.run(gpu_load.run_jobs(bench.worker, url, bench.jobs))
    finally:
        ended.set()
        watcher.join()
    bench.report("s", round(seconds, 1))
    bench.report("times_real_time", round(bench.jobs * bench.seconds / seconds, 1))
    samples.append(process_memory())
    (bench.out / "memory.json").write_text(json.dumps(samples))
    peaks = {name: max(sample[name] for sample in samples) for name in samples[0]}
    bench.report("peak_memory", peaks)


def reference(bench: Bench) -> None:
    worker, length = bench.worker, bench.lengths[0]
    chunks = [chunk_of(length, seed) for seed in range(5)]

    async def one_by_one() -> None:
        for chunk in chunks:
            heard = await worker.asr.transcribe(chunk, "English", "")
            await worker.aligner.align(chunk, heard.text, "English")

    with gpu_load.forced_answers(worker.asr):
        began = time.monotonic()
        asyncio.run(one_by_one())
    bench.report(
        "times_real_time", round(sum(c.duration for c in chunks) / (time.monotonic() - began), 1)
    )


def crowded(bench: Bench) -> None:
    """How a job ends while another process has the free memory, and after the engine was killed."""
    with gpu_load.forced_answers(bench.worker.asr), gpu_load.recording(bench.work, 20) as url:
        command = [sys.executable, __file__, "occupy"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            try:
                bench.report("taken_mib", int(other.stdout.readline()))
                bench.report("job beside it", outcome(bench, url))
            finally:
                other.stdin.close()  # it then ends
        bench.worker.asr.kill()
        began = time.monotonic()
        bench.report("job after the engine was killed", outcome(bench, url))
        bench.report("s until it ended", round(time.monotonic() - began, 1))


def outcome(bench: Bench, url: str) -> str:
    """ "ok", with the warnings there are, or the error code of a job."""
    job = {"id": "crowded", "input": {"audio_url": url, "language": "English"}}
    result = asyncio.run(bench.worker.handler(job))
    return result.get("error_code") or ", ".join(["ok", *result.get("warnings", [])])


def occupy() -> None:
    """Take the GPU's free memory until stdin ends. Prints how many MiB it has taken."""
    import torch

    kept, taken = [], 0
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
        taken = max(0, torch.cuda.mem_get_info()[0] - LEFT_FREE)
        kept.append(torch.empty(taken, dtype=torch.uint8, device="cuda"))
    print(taken // MIB, flush=True)
    sys.stdin.read()


def process_memory() -> dict[str, int]:
    """MiB of this process, of its children, and of the GPU where there is one."""
    import torch

    this = psutil.Process()
    children = 0
    for child in this.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            children += child.memory_info().rss
    found = {"worker_mib": this.memory_info().rss // MIB, "children_mib": children // MIB}
    if torch.cuda.is_available():
        found["gpu_mib"] = nvml_memory()["used"] // MIB
        found["aligner_mib"] = torch.cuda.memory_reserved() // MIB
        found["aligner_peak_mib"] = torch.cuda.max_memory_allocated() // MIB
    return found


def nvml_memory() -> dict[str, int]:
    """Bytes of the first GPU, as its driver counts them for all processes."""
    from vllm.third_party import pynvml

    pynvml.nvmlInit()
    try:
        info = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
        return {"total": info.total, "used": info.used}
    finally:
        pynvml.nvmlShutdown()


STEPS = {
    step.__name__: step
    for step in (
        checkpoints,
        memory,
        marks,
        start,
        engine,
        texts,
        jobs,
        aligner,
        reference,
        crowded,
    )
}


def main() -> None:
    if sys.argv[1] == "occupy":
        return occupy()
    session, pipe, options, *steps = sys.argv[1:]
    bench = Bench(session, int(pipe), json.loads(options))
    try:
        for step in steps:
            bench.run(step)
    finally:
        bench.close()


if __name__ == "__main__":
    main()
