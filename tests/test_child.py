"""The decoder's process starts outside the event loop and ends with its job, whenever that ends."""

import asyncio
import errno
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager

import media
import psutil
import pytest
from contract.errors import WorkerFailed
from material import silence
from recording.child import child_process
from recording.pcm_stream import decode
from recording.shield import to_the_end

HANG_SECONDS = 30  # what is not done by then never ends
CANCELLED_STEPS = 8  # a job is cancelled after up to 8 steps of the event loop
FILL_SECONDS, STEP_SECONDS = 2.5, 0.02  # for which the event loop is held


@pytest.fixture
def recording(tmp_path):
    """Its decoder writes more than the worker reads ahead: an unread pipe is paused."""
    path = tmp_path / "recording.wav"
    media.encode(silence(120), path)
    return path


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory, monkeypatch):
    """After every test: no temp file, no child process, no open file."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    processes, files = set(psutil.Process().children(recursive=True)), psutil.Process().num_fds()
    yield
    assert list(folder.iterdir()) == []
    assert set(psutil.Process().children(recursive=True)) <= processes
    assert psutil.Process().num_fds() <= files


async def decoded_unread(path) -> None:
    async with decode(path, 3600):
        await asyncio.sleep(3600)


async def ends_when_cancelled(job: asyncio.Task) -> None:
    job.cancel()
    done, _ = await asyncio.wait([job], timeout=HANG_SECONDS)
    assert done and job.cancelled()


async def held_event_loop() -> None:
    """Hold the loop as a burst does: until the decoders have filled their pipes, then each step."""
    await asyncio.sleep(0)
    time.sleep(FILL_SECONDS)
    for _ in range(2 * CANCELLED_STEPS):
        await asyncio.sleep(0)
        time.sleep(STEP_SECONDS)


def test_a_job_that_is_cancelled_in_any_step_of_its_decoders_start_ends(recording):
    async def cancelled_after(steps: int) -> None:
        job = asyncio.create_task(decoded_unread(recording))
        for _ in range(steps):
            await asyncio.sleep(0)
        await ends_when_cancelled(job)

    async def together() -> None:
        jobs = [cancelled_after(steps) for steps in range(CANCELLED_STEPS)]
        await asyncio.gather(*jobs, held_event_loop())

    asyncio.run(together())


def test_a_process_is_not_started_in_the_thread_of_the_event_loop(recording, monkeypatch):
    threads, start = [], subprocess.Popen.__init__

    def watched(*args, **options) -> None:
        threads.append(threading.current_thread())
        start(*args, **options)

    async def once() -> None:
        async with decode(recording, 3600):
            pass

    monkeypatch.setattr(subprocess.Popen, "__init__", watched)
    asyncio.run(once())
    assert threads and threading.current_thread() not in threads


def test_the_exit_status_of_a_process_is_known():
    async def status() -> int:
        command = [sys.executable, "-S", "-c", "import sys; sys.stdin.read(); sys.exit(7)"]
        with tempfile.TemporaryFile() as report:
            options = {"stderr": report, "descriptors": [], "buffer_bytes": 1}
            async with child_process(command, **options) as child:
                child.close_stdin()
                return await asyncio.wait_for(child.wait(), HANG_SECONDS)

    assert asyncio.run(status()) == 7


# what the worker lacks


@contextmanager
def one_more_open_file():
    """The limit of open files allows one more than there are now."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_worker_without_open_files_left_is_itself_the_cause(recording):
    async def starved() -> None:
        with one_more_open_file():
            await decoded_unread(recording)

    with pytest.raises(WorkerFailed, match="could not start its decoder: Too many open files"):
        asyncio.run(starved())


SHORTAGES = [errno.EAGAIN, errno.ENOMEM, errno.ENFILE]


@pytest.mark.parametrize("number", SHORTAGES, ids=errno.errorcode.get)
def test_a_process_that_cannot_be_started_is_the_workers_trouble_fault_injected(
    recording, monkeypatch, number
):
    def refused(*_, **__) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess.Popen, "_execute_child", refused)
    with pytest.raises(WorkerFailed, match=os.strerror(number)):
        asyncio.run(decoded_unread(recording))


# work to the end


def test_a_cancellation_waits_for_the_work_and_is_then_raised():
    async def cancelled_twice() -> list[str]:
        done, go = [], asyncio.Event()

        async def work() -> None:
            await go.wait()
            done.append("work")

        job = asyncio.create_task(to_the_end(work()))
        for _ in range(2):
            await asyncio.sleep(0)
            job.cancel()
        await asyncio.sleep(0)
        assert not job.done()
        go.set()
        await asyncio.wait([job], timeout=HANG_SECONDS)
        assert job.cancelled()
        return done

    assert asyncio.run(cancelled_twice()) == ["work"]


def test_work_to_the_end_gives_its_result_or_its_error():
    async def result() -> int:
        return 5

    async def error() -> None:
        raise ValueError("wrong")

    assert asyncio.run(to_the_end(result())) == 5
    with pytest.raises(ValueError, match="wrong"):
        asyncio.run(to_the_end(error()))
