"""What surrounds every job: its timeout, its progress in /status, its temporary folder.

Knows the SDK, but no audio and no models.
"""

import asyncio
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contract.errors import DeadlineExceeded, InvalidRequest, WorkerFailed, WorkerStopped
from contract.shown import shown
from recording.shield import to_the_end
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import send_result
from shutdown import Shutdown

MIN_INTERVAL_SECONDS = 1.0  # progress is posted no more often than this
MAX_LAST_POST_SECONDS = 2.0  # the result waits no longer for a post that is still being sent
# The smaller of both is kept of executionTimeout: to stop, to clean up and to send the answer.
MARGIN_SECONDS = 5.0
MARGIN_SHARE = 0.2

Job = dict[str, Any]  # as the SDK gives it
Output = dict[str, Any]
Handler = Callable[[Job], Coroutine[Any, Any, Output]]

_unremoved: set[Path] = set()  # folders that ended jobs could not remove


@dataclass(slots=True)
class Progress:
    """How far a job has come. No value ever decreases."""

    phase: str = "downloading"  # then "decoding", and "transcribing" once everything is decoded
    seconds_known: float = 0.0  # seconds decoded so far
    seconds_done: float = 0.0  # seconds transcribed so far
    chunks_done: int = 0


def seconds_allowed(job: Job) -> float | None:
    """Seconds in which a job must be answered: its execution timeout less a margin.

    None without a policy: a worker does not know the endpoint's own timeout.
    """
    milliseconds = _execution_timeout(job)
    if milliseconds is None:
        return None
    seconds = milliseconds / 1000
    return seconds - min(MARGIN_SECONDS, MARGIN_SHARE * seconds)


def _execution_timeout(job: Job) -> float | None:
    """`policy.executionTimeout` in milliseconds; None where it is absent or no positive number.

    Raises InvalidRequest for a larger number than a float can hold.
    """
    policy = job.get("policy")
    milliseconds = policy.get("executionTimeout") if isinstance(policy, dict) else None
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    if milliseconds > sys.float_info.max:
        raise InvalidRequest(
            f"policy.executionTimeout is {shown(milliseconds)}; it must be in milliseconds, "
            "such as 3600000 for an hour."
        )
    return milliseconds if milliseconds > 0 else None


@asynccontextmanager
async def time_allowed(job: Job, shutdown: Shutdown) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the body of the context before the platform kills the worker for its timeout.

    Raises DeadlineExceeded, or WorkerStopped where `shutdown` ended the time; InvalidRequest for a
    timeout that cannot be one.
    """
    allowed = seconds_allowed(job)
    began = asyncio.get_running_loop().time()
    try:
        async with shutdown.timeout(allowed) as limit:
            yield limit
    except TimeoutError:
        if not limit.expired():
            raise
        when = limit.when()
        if allowed is None or (when is not None and when < began + allowed):
            raise WorkerStopped("The worker was stopped. Please send the job again.") from None
        raise DeadlineExceeded(
            f"policy.executionTimeout of {_execution_timeout(job):.0f} ms was about to pass; "
            "a larger one is needed for this recording."
        ) from None


def seconds_left(limit: asyncio.Timeout, max_seconds: float) -> float:
    """Seconds until `limit`, but no more than `max_seconds`."""
    if (when := limit.when()) is None:
        return max_seconds
    return min(max_seconds, max(0, when - asyncio.get_running_loop().time()))


def cancellation_wins(handler: Handler) -> Handler:
    """The same handler; a job that is cancelled gives no answer, even if it fails in the same step.

    A TaskGroup drops a cancellation that comes together with a failure. On Python 3.11 and 3.12 it
    also counts its own cancellations wrongly, so the count is read in a task without a TaskGroup.
    """

    @functools.wraps(handler)
    async def stoppable(job: Job) -> Output:
        output = await asyncio.create_task(handler(job))
        this_task = asyncio.current_task()
        if this_task and this_task.cancelling():
            raise asyncio.CancelledError
        return output

    return stoppable


@asynccontextmanager
async def temporary_folder() -> AsyncIterator[Path]:
    """A folder for the files of one job. Its removal fails no job, and a cancellation waits for it.

    Raises WorkerFailed where it cannot be made.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="job-"))
    except OSError as error:
        sentence = f"The worker could not make a temporary folder: {error.strerror}."
        raise WorkerFailed(sentence) from error
    try:
        yield folder
    finally:
        await to_the_end(_removed_in_thread([folder, *_unremoved]))


async def _removed_in_thread(folders: list[Path]) -> None:
    """Remove the folders in a thread: a large file takes long and would block other jobs."""
    try:
        await asyncio.to_thread(_remove, folders)
    except RuntimeError:  # no thread can be started
        _remove(folders)


def _remove(folders: list[Path]) -> None:
    """A folder that cannot be removed is tried again at the end of each later job."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        if os.path.lexists(folder):
            _unremoved.add(folder)
        else:
            _unremoved.discard(folder)


@asynccontextmanager
async def progress_of(job: Job) -> AsyncIterator[Progress]:
    """The job's Progress. Changes are posted at most once a second, and only within the context.

    The SDK's `progress_update` posts from a thread that cannot be awaited, so a post may arrive
    after the result. This function posts the same body to the same address (runpod 1.12.0,
    rp_progress.py) and waits for it.
    """
    progress = Progress()
    if "RUNPOD_WEBHOOK_POST_OUTPUT" not in os.environ:  # run from the command line
        yield progress
        return
    ended = asyncio.Event()
    poster = asyncio.create_task(_post_changes(job, progress, ended))
    try:
        yield progress
    finally:
        ended.set()
        await asyncio.wait([poster], timeout=MAX_LAST_POST_SECONDS)
        poster.cancel()
        await asyncio.gather(poster, return_exceptions=True)


async def _post_changes(job: Job, progress: Progress, ended: asyncio.Event) -> None:
    async with AsyncClientSession() as session:
        posted = None
        while not ended.is_set():
            if (now := asdict(progress)) != posted:
                posted = now
                seconds = ("seconds_known", "seconds_done")
                output = now | {key: round(now[key], 1) for key in seconds}
                await send_result(session, {"status": "IN_PROGRESS", "output": output}, job)
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), MIN_INTERVAL_SECONDS)
