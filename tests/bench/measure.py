"""The cost of a command: wall and CPU seconds and memory of all its processes.

Medians of sides in turn, tables, files.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

RESULTS = Path(__file__).parent / "results"
SAMPLE_SECONDS = 0.05  # between two samples of the memory


@dataclass(frozen=True)
class Cost:
    """One run of one side."""

    wall: float  # seconds
    cpu: float  # seconds of user and system time, of every process that was waited for
    # MiB of proportional memory (shared pages divided among their users), all processes together
    peak: float


def cost_of(arguments: Sequence[str], **environment: str) -> tuple[Cost, dict]:
    """Run `python arguments`; returns its cost and the JSON object on the last line of its output.

    Raises RuntimeError if it fails.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        env=os.environ | environment,
        start_new_session=True,
    )
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], _memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    watcher.join()
    process.stdout.close()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))} ended with {process.returncode}")
    said = json.loads(out.splitlines()[-1])
    return Cost(time.monotonic() - began, usage.ru_utime + usage.ru_stime, peak[0]), said


def _memory(pid: int) -> float:
    """MiB of the process and its descendants."""
    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total / 2**20


def in_turn(sides: Mapping[str, Callable[[], Cost]], repeats: int) -> dict[str, Cost]:
    """Medians of `repeats` runs of each side.

    The sides take turns, so that a disturbance of the machine affects all of them.
    """
    runs: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            runs[name].append(run())
    return {
        name: Cost(
            *(
                statistics.median(getattr(c, part) for c in costs)
                for part in ("wall", "cpu", "peak")
            )
        )
        for name, costs in runs.items()
    }


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need be; numbers with three significant digits."""
    cells = [
        [
            cell
            if isinstance(cell, str)
            else f"{cell:.3g}"
            if isinstance(cell, float) and abs(cell) < 1000
            else f"{cell:.0f}"
            for cell in row
        ]
        for row in rows
    ]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
        for row in [list(head), *cells]
    ]
    return "\n".join([title, "-" * len(title), *lines, ""])


def write(name: str, data: object, quick: bool) -> None:
    """Write results/NAME.json with the machine that it comes from; rough figures of --quick go to
    results/quick.
    """
    folder = RESULTS / "quick" if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    machine = {
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "quick": quick,
        "date": time.strftime("%Y-%m-%d"),
    }
    (folder / f"{name}.json").write_text(
        json.dumps({"machine": machine, "figures": data}, indent=1, default=asdict) + "\n"
    )
