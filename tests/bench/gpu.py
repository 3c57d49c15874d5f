"""What a GPU does with the worker: python tests/bench/gpu.py --out FOLDER [--part NAME]…

Models of the true 0.6B shape with random weights, with the speed and memory of the real ones.
Answers are forced to a realistic length (4.5 tokens per second of audio) and number of words.

The parts run in this order, each within its own time limit. A figure is printed and saved in
gpu.json as soon as it is known, so a run that is cut short keeps what it has. A part that fails or
hangs is ended, and the next one runs. The first ten minutes on a GPU are:

{plan}

--small runs the parts with the tiny checkpoints on vLLM's CPU build, as a test of this script; its
figures mean nothing. --work keeps checkpoints and caches for the next call, which then starts warm.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDERS = [str(ROOT / folder) for folder in ("src", "tests", "tests/bench", "tests/models/recipe")]
BOOT_SECONDS = 120  # until a process reports its first part, or after one its next
START_SECONDS, TEXTS_SECONDS = 150, 30
END_SECONDS = 30  # for a process to close its models
PATIENCE_ON_CPU = 4  # with --small all limits are 4 times longer


@dataclass(frozen=True, slots=True)
class Part:
    """What is measured under one name."""

    session: str  # parts of one session share a process, and so one start of the models
    seconds: int  # limit on a GPU
    what: str
    planned: bool = True  # in the first ten minutes


PARTS = {
    "checkpoints": Part("bare", 60, "the two models with random weights are written"),
    "memory": Part("bare", 20, "mem_get_info against NVML, and the size of a CUDA context"),
    "marks": Part(
        "bare",
        90,
        "aligner: memory and time by blocks convolved and type; marks of both types compared",
    ),
    "start": Part(
        "worker",
        START_SECONDS,
        "imports, models, warm-up; vLLM's own account of time and memory in its DEBUG log",
    ),
    "engine": Part("worker", 90, "recognition alone, by chunk length and number in flight"),
    "texts": Part("worker", TEXTS_SECONDS, "greedy answers as they come, for the comparison in v2"),
    "jobs": Part("worker", 120, "whole jobs at once, with the memory of each process every second"),
    "aligner": Part(
        "worker", 120, "alignment alone, by chunk length and number in flight", planned=False
    ),
    "reference": Part("worker", 60, "one chunk at a time, as public workers do it", planned=False),
    "crowded": Part(
        "worker", 60, "a job while another process takes the free memory; then the engine is killed"
    ),
    "v2": Part(
        "v2", START_SECONDS + TEXTS_SECONDS, "start and texts with VLLM_USE_V2_MODEL_RUNNER=1"
    ),
    "again": Part("again", START_SECONDS, "a second start, with warm caches"),
}
STEPS = {"v2": ("start", "texts"), "again": ("start",)}  # sessions of one part
ENVIRONMENT = {
    "worker": {"VLLM_USE_V2_MODEL_RUNNER": "0"},
    "v2": {"VLLM_USE_V2_MODEL_RUNNER": "1"},
    "again": {"VLLM_USE_V2_MODEL_RUNNER": "0"},
}
SMALL = {
    "CHUNK_TARGET_SECONDS": "4",
    "CHUNK_LIMIT_SECONDS": "8",
    "MAX_NUM_SEQS": "8",
    "DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "GPU_MEMORY_UTILIZATION": "0.3",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}


def main() -> int:
    a = arguments()
    a.out.mkdir(parents=True, exist_ok=True)
    results = Results(a.out / "gpu.json")
    patience = PATIENCE_ON_CPU if a.small else 1
    last = time.monotonic() + 60 * a.minutes * patience
    with tempfile.TemporaryDirectory() as temporary:
        work = a.work or Path(temporary)
        sizes = {
            "lengths": a.lengths,
            "in_flight": a.in_flight,
            "jobs": a.jobs,
            "seconds": a.seconds,
        }
        options = sizes | {
            "small": a.small,
            "patience": patience,
            "out": str(a.out.resolve()),
            "work": str(work.resolve()),
        }
        for session, steps in sessions(a.part or [n for n, part in PARTS.items() if part.planned]):
            run_session(session, steps, options, results, last)
    print(json.dumps(results.found, indent=2))
    return 1 if results.failed else 0


def arguments() -> argparse.Namespace:
    plan = "\n".join(
        f"  {name:11} {part.seconds:4d} s  {part.what}" + ("" if part.planned else " (if named)")
        for name, part in PARTS.items()
    )
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__.format(plan=plan), formatter_class=formatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for gpu.json and the logs")
    add("--work", type=Path, help="folder for checkpoints and caches; without it a temporary one")
    add("--part", action="append", choices=PARTS, help="only this part; may be given several times")
    add("--lengths", type=numbers, help="seconds of the chunks (60)")
    add("--in-flight", type=numbers, help="chunks at once (1,64,256)")
    add("--jobs", type=int, help="jobs at once (4)")
    add("--seconds", type=int, help="length of a job's recording (3600)")
    add("--minutes", type=float, default=10, help="the whole run ends then (10)")
    add("--small", action="store_true", help="tiny checkpoints on the CPU, few points")
    a = parser.parse_args()
    defaults = dict(lengths=[2], in_flight=[1, 4], jobs=2, seconds=20) if a.small else {}
    for name, value in (
        dict(lengths=[60], in_flight=[1, 64, 256], jobs=4, seconds=3600) | defaults
    ).items():
        setattr(a, name, getattr(a, name) or value)
    return a


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def sessions(parts: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(session, its steps), in the order of PARTS. Those of a worker begin with its start."""
    chosen: dict[str, list[str]] = {"bare": ["checkpoints"]}
    for name, part in PARTS.items():
        if name in parts and name != "checkpoints":
            chosen.setdefault(part.session, ["start"] if part.session == "worker" else [])
            chosen[part.session] += STEPS.get(name, [name] if name != "start" else [])
    yield from chosen.items()


class Results:
    """Figures by session, part and name, in a file that is written anew with each of them."""

    def __init__(self, path: Path):
        self.found: dict[str, dict] = {"began": time.strftime("%Y-%m-%d %H:%M")}
        self.failed = False
        self._path = path

    def add(self, session: str, part: str, name: str, value) -> None:
        self.found.setdefault(session, {}).setdefault(part, {})[name] = value
        self.failed = self.failed or name == "failed"
        print(f"{session}/{part}: {name}: {json.dumps(value)}", flush=True)
        self._path.write_text(json.dumps(self.found, indent=2))


def run_session(
    session: str, steps: list[str], options: dict, results: Results, last: float
) -> None:
    """Run the steps in one process. After one that ends it, or takes too long, begin a new one.

    None is begun after `last`, on the clock of time.monotonic.
    """
    while steps and time.monotonic() < last:
        done, failure = watched(session, steps, options, results, last)
        if failure is None:
            return
        failed, steps = steps[done], steps[done + 1 :]
        results.add(session, failed, "failed", failure)
        if failed == "start":
            return
        if session == "worker" and steps:
            steps = ["start", *steps]


def watched(
    session: str, steps: list[str], options: dict, results: Results, last: float
) -> tuple[int, str | None]:
    """(number of steps that were completed, why the next one was not; None where all were)."""
    reading, writing = os.pipe()
    command = [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), session, str(writing)]
    command += [json.dumps(options), *steps]
    with open(Path(options["out"]) / f"{session}.log", "ab") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
            start_new_session=True,
            env=environment(session, options),
        )
    os.close(writing)
    messages: queue.SimpleQueue = queue.SimpleQueue()
    thread = threading.Thread(target=forward, args=(reading, messages))
    thread.start()
    try:
        return follow(session, steps, messages, results, last, options["patience"])
    finally:
        end(process)
        thread.join()


def environment(session: str, options: dict) -> dict[str, str]:
    """Of a session's process. Caches are in the work folder, so that the first start is cold."""
    paths = {"PYTHONPATH": os.pathsep.join(FOLDERS), "VLLM_CACHE_ROOT": f"{options['work']}/cache"}
    models = {"MODEL_NAME": f"{options['work']}/asr", "ALIGNER_NAME": f"{options['work']}/aligner"}
    logs = {
        "RUNPOD_LOG_LEVEL": "WARN",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true",
    }
    return (
        os.environ
        | paths
        | models
        | logs
        | ENVIRONMENT.get(session, {})
        | (SMALL if options["small"] else {})
    )


def forward(reading: int, messages: queue.SimpleQueue) -> None:
    """Put each line of the pipe into the queue, and None at its end."""
    with open(reading) as pipe:
        for line in pipe:
            messages.put(json.loads(line))
    messages.put(None)


def follow(
    session: str,
    steps: list[str],
    messages: queue.SimpleQueue,
    results: Results,
    last: float,
    patience: int,
) -> tuple[int, str | None]:
    """As `watched`, for a process's messages.

    They are ["begin", step], ["figure", step, name, value] and ["end", step].
    """
    done, deadline = 0, time.monotonic() + patience * BOOT_SECONDS
    while done < len(steps):
        try:
            message = messages.get(timeout=max(0, min(deadline, last) - time.monotonic()))
        except queue.Empty:
            return done, "its time was up"
        if message is None:
            return done, f"its process ended, see {session}.log"
        kind, step, *figure = message
        if kind == "begin":
            deadline = time.monotonic() + patience * PARTS[step].seconds
        elif kind == "end":
            done += 1
            deadline = time.monotonic() + patience * BOOT_SECONDS
        else:
            results.add(session, step, *figure)
    return done, None


def end(process: subprocess.Popen) -> None:
    """Wait until the process has closed its models; kill it and its children where it does not."""
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
