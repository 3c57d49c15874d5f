"""The time that a job is allowed, and its folder. test_runpod.py tests its progress."""

import asyncio
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from contract.errors import DeadlineExceeded, InvalidRequest, WorkerFailed, WorkerStopped
from job import (
    Progress,
    progress_of,
    seconds_allowed,
    seconds_left,
    temporary_folder,
    time_allowed,
)
from shutdown import Shutdown

HANG_SECONDS = 30  # what is not done by then never ends


async def lasts(seconds: float, job: dict) -> str:
    async with time_allowed(job, Shutdown()):
        await asyncio.sleep(seconds)
    return "done"


def run(seconds: float, **job: object) -> str:
    return asyncio.run(lasts(seconds, job))


def test_a_job_over_its_execution_timeout_less_the_margin_fails():
    with pytest.raises(DeadlineExceeded, match="executionTimeout of 50 ms"):
        run(10, policy={"executionTimeout": 50})


@pytest.mark.parametrize("milliseconds", [10**400, float("inf")], ids=["400 digits", "infinite"])
def test_a_timeout_that_is_no_time_is_refused_with_its_value(milliseconds):
    with pytest.raises(InvalidRequest, match="policy.executionTimeout is (1000|inf).*3600000"):
        run(0, policy={"executionTimeout": milliseconds})


def test_a_job_within_its_time_is_not_interrupted():
    assert run(0.01, policy={"executionTimeout": 60_000}) == "done"


@pytest.mark.parametrize(
    "milliseconds, seconds", [(600_000, 595), (25_000, 20), (10_000, 8), (5_000, 4)]
)
def test_the_margin_is_a_fifth_of_the_timeout_and_at_most_five_seconds(milliseconds, seconds):
    assert seconds_allowed({"policy": {"executionTimeout": milliseconds}}) == seconds


@pytest.mark.parametrize(
    "policy",
    [
        None,
        [],
        "fast",
        {},
        {"executionTimeout": None},
        {"executionTimeout": "10"},
        {"executionTimeout": True},
        {"executionTimeout": 0},
        {"executionTimeout": -5},
        {"executionTimeout": float("nan")},
    ],
    ids=repr,
)
def test_a_policy_without_a_timeout_limits_nothing(policy):
    assert seconds_allowed({"policy": policy}) is None and run(0, policy=policy) == "done"


@pytest.mark.parametrize("policy", [None, {"executionTimeout": 60_000}])
def test_a_job_that_a_shutdown_ends_says_so_and_not_that_its_deadline_passed(policy):
    async def stopped() -> None:
        shutdown = Shutdown()
        async with time_allowed({"policy": policy}, shutdown):
            shutdown.begin(0)
            await asyncio.sleep(10)

    with pytest.raises(WorkerStopped):
        asyncio.run(stopped())


def test_a_job_whose_deadline_passes_during_a_shutdown_says_that_it_passed():
    async def late() -> None:
        shutdown = Shutdown()
        async with time_allowed({"policy": {"executionTimeout": 50}}, shutdown):
            shutdown.begin(60)
            await asyncio.sleep(10)

    with pytest.raises(DeadlineExceeded):
        asyncio.run(late())


LEFT = [(None, 120, 120), (600, 120, 120), (30, 20, 30), (0, 0, 0)]


@pytest.mark.parametrize("seconds, low, high", LEFT)
async def test_an_upload_gets_what_is_left_of_the_jobs_time(seconds, low, high):
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds) as limit:
            await asyncio.sleep(0)
    assert low <= seconds_left(limit, 120) <= high


def test_a_timeout_error_from_inside_passes_through():
    async def fails() -> None:
        async with time_allowed({"policy": {"executionTimeout": 60_000}}, Shutdown()):
            raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(fails())


def test_without_a_platform_nothing_is_posted(monkeypatch):
    monkeypatch.delenv("RUNPOD_WEBHOOK_POST_OUTPUT", raising=False)

    async def tasks() -> int:
        async with progress_of({"id": "1"}) as progress:
            assert progress == Progress()
            return len(asyncio.all_tasks())

    assert asyncio.run(tasks()) == 1


# the folder


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder in which the folders of jobs are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def job_with_a_file() -> None:
    async with temporary_folder() as folder:
        (folder / "source").write_bytes(b"sound")


def test_a_job_that_is_cancelled_while_its_folder_waits_to_be_removed_leaves_none(temporary):
    busy = threading.Event()

    async def cancelled() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        other = asyncio.create_task(asyncio.to_thread(busy.wait, HANG_SECONDS))
        job = asyncio.create_task(job_with_a_file())
        for _ in range(5):
            await asyncio.sleep(0)
        job.cancel()
        await asyncio.sleep(0)
        busy.set()
        await asyncio.wait([job, other], timeout=HANG_SECONDS)
        assert job.cancelled()

    asyncio.run(cancelled())
    assert list(temporary.iterdir()) == []


def test_a_folder_that_cannot_be_removed_is_tried_again_fault_injected(temporary, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", lambda *_, **__: None)
        asyncio.run(job_with_a_file())
        assert len(list(temporary.iterdir())) == 1
    asyncio.run(job_with_a_file())
    assert list(temporary.iterdir()) == []


def test_a_folder_is_removed_where_no_thread_can_be_started_fault_injected(temporary, monkeypatch):
    def refused(*_) -> None:
        raise RuntimeError("can't start new thread")

    async def without_threads() -> None:
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", refused)
            await job_with_a_file()

    asyncio.run(without_threads())
    assert list(temporary.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_the_workers_trouble(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(WorkerFailed, match="Not a directory"):
        asyncio.run(job_with_a_file())
