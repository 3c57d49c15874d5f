"""The time that a job is allowed. Its progress needs a platform and is tested in test_runpod.py."""

import asyncio
from contextlib import suppress

import pytest

from errors import DeadlineExceeded, WorkerStopped
from job import Progress, progress_of, seconds_allowed, seconds_left, time_allowed
from shutdown import Shutdown


async def lasts(seconds: float, job: dict) -> str:
    async with time_allowed(job, Shutdown()):
        await asyncio.sleep(seconds)
    return "done"


def run(seconds: float, **job: object) -> str:
    return asyncio.run(lasts(seconds, job))


def test_a_job_over_its_execution_timeout_less_the_margin_fails():
    with pytest.raises(DeadlineExceeded, match="executionTimeout of 50 ms"):
        run(10, policy={"executionTimeout": 50})


def test_a_job_within_its_time_is_not_interrupted():
    assert run(0.01, policy={"executionTimeout": 60_000}) == "done"


@pytest.mark.parametrize("milliseconds, seconds", [(600_000, 595), (25_000, 20), (10_000, 8), (5_000, 4)])
def test_the_margin_is_a_fifth_of_the_timeout_and_at_most_five_seconds(milliseconds, seconds):
    assert seconds_allowed({"policy": {"executionTimeout": milliseconds}}) == seconds


@pytest.mark.parametrize("policy", [None, [], "fast", {}, {"executionTimeout": None}, {"executionTimeout": "10"}, {"executionTimeout": True},
                                    {"executionTimeout": 0}, {"executionTimeout": -5}, {"executionTimeout": float("nan")}], ids=repr)  # fmt: skip
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
