"""300 jobs cancelled at random moments of every phase: bash tests/run.sh tests/stress.py -s

Each must end at once and leave no folder, no decoder, no place at the gate and no descriptor, and
the next job must work. The models are scripted. Download, decoder, gate, the aligner's thread,
upload and clean-up are the worker's. Takes some minutes, so `bash tests/run.sh` leaves it out.
"""

import asyncio
import gc
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, closing
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import handler
import psutil
import pytest
import soundfile
from contract.settings import load_settings
from recording import pcm_stream
from recording.chunk import SAMPLE_RATE
from runpod.serverless.modules.rp_job import run_job
from scripted_worker import Aligner, Recogniser, spoken
from speech.admission import Gate
from speech.watched_models import WatchedModels
from standin import Platform
from test_shutdown import half_a_file

PHASES = (
    "download",
    "decoder start",
    "decoding",
    "gate",
    "recognition",
    "alignment",
    "clean-up",
    "delivery",
)
CANCELLED = 300
AT_ONCE = 8  # jobs; their decoders alone take all cores of a small machine
MAX_DELAY_SECONDS = 0.15  # between the start of the phase and the cancellation
HANG_SECONDS = 20  # a job that has not ended by then after its cancellation hangs
MAX_ATTEMPTS = 30  # for a cancellation in a phase that a job may end before
SETTLE_SECONDS = 10
RECORDING_SECONDS = 60
RESULT_BYTES = (
    10_000  # MAX_RESULT_BYTES; with segments at two levels the result is larger and is uploaded
)

rng = random.Random(7)


@dataclass(eq=False)
class Victim:
    """A job that is cancelled some time after it has reached a phase."""

    phase: str
    task: asyncio.Task | None = None
    reached: bool = False
    cancelled: bool = False
    folder: Path | None = None
    decoder: int | None = None  # process id
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def at(self, phase: str) -> None:
        """The job has reached `phase`. From any thread."""
        if phase == self.phase and not self.reached:
            self.reached = True
            delay = MAX_DELAY_SECONDS * rng.random() ** 4  # a quarter within the first millisecond
            self.loop.call_soon_threadsafe(self.loop.call_later, delay, self.cancel)

    def cancel(self) -> None:
        self.cancelled = self.task.cancel()

    def left(self) -> list[str]:
        """What the job has left behind."""
        folder = ["folder"] if self.folder and self.folder.exists() else []
        decoder = ["decoder"] if self.decoder and psutil.pid_exists(self.decoder) else []
        return folder + decoder


current: ContextVar[Victim | None] = ContextVar("current", default=None)


def reach(phase: str) -> None:
    if victim := current.get():
        victim.at(phase)


def marking(phase: str, function: Callable) -> Callable:
    def call(*args, **kwargs):
        reach(phase)
        return function(*args, **kwargs)

    return call


@pytest.fixture
def scripted(monkeypatch) -> Iterator:
    """The handler module with scripted models; each phase reports its start."""
    monkeypatch.setenv("MAX_RESULT_BYTES", str(RESULT_BYTES))

    async def answer(chunk) -> None:
        await asyncio.sleep(0.1)

    models = {
        "asr": Recogniser(answer),
        "aligner": Aligner(lambda batch: time.sleep(0.05)),
        "gate": Gate(4),
    }
    for name, value in models.items() | {("settings", load_settings(os.environ))}:
        monkeypatch.setattr(handler, name, value, raising=False)
    steps = {
        "recording": "download",
        "split_recording": "decoding",
    }
    calls = {"recognise": "recognition", "align": "alignment"}
    for name, phase in calls.items():
        monkeypatch.setattr(WatchedModels, name, marking(phase, getattr(WatchedModels, name)))
    for name, phase in (steps | {"deliver": "delivery"}).items():
        monkeypatch.setattr(handler, name, marking(phase, getattr(handler, name)))
    report_the_rest(monkeypatch)
    yield handler
    models["asr"].close()
    models["aligner"].close()


def report_the_rest(monkeypatch) -> None:
    """Watch what a job holds, and the phases that do not begin with a call of the handler's."""
    enter, folder_of = handler.gate.enter, handler.temporary_folder
    child_of = pcm_stream.child_process

    async def enter_gate(holder, priority) -> None:
        if not handler.gate._free:
            reach("gate")
        await enter(holder, priority)

    @asynccontextmanager
    async def child_process(*args, **kwargs):
        reach("decoder start")
        async with child_of(*args, **kwargs) as child:
            if victim := current.get():
                victim.decoder = child.pid
            yield child

    @asynccontextmanager
    async def temporary_folder():
        async with folder_of() as folder:
            if victim := current.get():
                victim.folder = folder
            yield folder
            reach("clean-up")

    monkeypatch.setattr(handler.gate, "enter", enter_gate)
    monkeypatch.setattr(pcm_stream, "child_process", child_process)
    monkeypatch.setattr(handler, "temporary_folder", temporary_folder)


@dataclass
class Tally:
    cancelled: Counter = field(default_factory=Counter)
    hung: Counter = field(default_factory=Counter)
    left: Counter = field(default_factory=Counter)
    # Jobs that ended before the phase, and those with another output than alone.
    wrong: list = field(default_factory=list)
    hung_at: Counter = field(default_factory=Counter)

    def table(self) -> str:
        rows = [f"{'phase':<16}{'cancelled':>10}{'hung':>8}{'left behind':>14}"]
        rows += [
            f"{p:<16}{self.cancelled[p]:>10}{self.hung[p]:>8}{self.left[p]:>14}" for p in PHASES
        ]
        return "\n".join(rows)


def job_of(url: str, bucket: str) -> dict:
    config = {"accessId": "id", "accessSecret": "s", "bucketName": "b", "endpointUrl": bucket}
    return {
        "id": "stress",
        "input": {"audio_url": url, "segment_level": "both"},
        "s3Config": config,
    }


async def run_alone(job: dict) -> dict:
    return (await run_job(handler.handler, job))["output"]


async def cancel_one(phase: str, job: dict, expected: dict, tally: Tally) -> bool:
    """Whether a job was cancelled in the phase, or after it."""
    victim = Victim(phase)
    current.set(victim)  # in the context of this coroutine's task, which the job's task copies
    victim.task = asyncio.create_task(run_job(handler.handler, job))
    while not victim.task.done() and not victim.cancelled:
        await asyncio.wait([victim.task], timeout=0.02)
    await asyncio.wait([victim.task], timeout=HANG_SECONDS)
    if not victim.task.done():
        tally.hung[phase] += 1
        tally.hung_at[innermost(victim.task)] += 1
    elif not victim.task.cancelled() and text_of(victim.task.result()["output"]) != text_of(
        expected
    ):
        tally.wrong.append((phase, victim.task.result()))
    if not victim.cancelled:
        return False
    tally.cancelled[phase] += 1
    tally.left[phase] += bool(victim.left())
    if sum(tally.cancelled.values()) % 50 == 0:
        print(f"{sum(tally.cancelled.values())} cancelled", flush=True)
    return True


def text_of(output: dict) -> str | None:
    return output.get("text")


def innermost(task: asyncio.Task) -> str:
    """The function in which a task waits."""
    waiting = task.get_coro()
    while (
        getattr(waiting, "cr_await", None) is not None
        or getattr(waiting, "ag_await", None) is not None
    ):
        waiting = getattr(waiting, "cr_await", None) or waiting.ag_await
    return getattr(waiting, "__qualname__", type(waiting).__name__)


async def cancel_all(urls: dict[str, str], bucket: str, expected: dict) -> Tally:
    tally = Tally()
    phases = [PHASES[i % len(PHASES)] for i in range(CANCELLED)]
    rng.shuffle(phases)

    async def runner() -> None:
        while phases:
            phase = phases.pop()
            for _ in range(MAX_ATTEMPTS):
                slow = phase == "download" and rng.random() < 0.5
                if await cancel_one(
                    phase, job_of(urls["half" if slow else "whole"], bucket), expected, tally
                ):
                    break

    await asyncio.gather(*(asyncio.create_task(runner()) for _ in range(AT_ONCE)))
    return tally


def held(folder: Path) -> dict[str, int]:
    """What the process holds when no job runs."""
    gc.collect()
    own = psutil.Process()
    return {
        "folders": len(list(folder.glob("job-*"))),
        "children": len(own.children(recursive=True)),
        "descriptors": own.num_fds(),
        "places at the gate": handler.gate._free,
    }


async def settled(folder: Path, before: dict[str, int]) -> dict[str, int]:
    """What is held once it is what it was before, or after SETTLE_SECONDS."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (now := held(folder)) != before and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    return now


async def stress(urls: dict[str, str], bucket: str, folder: Path) -> None:
    expected = await run_alone(job_of(urls["whole"], bucket))
    assert expected["result_url"], expected
    before = held(folder)
    tally = await cancel_all(urls, bucket, expected)
    after = await settled(folder, before)
    last = await asyncio.wait_for(run_alone(job_of(urls["whole"], bucket)), 60)
    print(f"\n{tally.table()}\nhung in: {dict(tally.hung_at)}\nbefore: {before}\nafter:  {after}")
    assert sum(tally.cancelled.values()) == CANCELLED
    assert not +tally.hung and not +tally.left and not tally.wrong
    assert after["descriptors"] <= before["descriptors"] + 2
    assert {**after, "descriptors": 0} == {**before, "descriptors": 0}
    assert text_of(last) == text_of(expected)


def test_three_hundred_cancelled_jobs_end_at_once_and_leave_nothing(
    scripted, tmp_path, file_server, monkeypatch
):
    path = file_server.folder / "whole.wav"
    soundfile.write(path, spoken(RECORDING_SECONDS), SAMPLE_RATE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # not asyncio.run: at its end it waits for the jobs that hang
    with (
        closing(asyncio.new_event_loop()) as loop,
        closing(Platform()) as platform,
        half_a_file(path) as half,
    ):
        urls = {"whole": file_server.url("whole.wav"), "half": half}
        loop.run_until_complete(stress(urls, platform.bucket_url, tmp_path))
