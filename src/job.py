"""What surrounds every job: its timeout, its progress in /status, its temporary folder. Knows the SDK, but no audio and no models."""

import asyncio
import functools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from contract.errors import DeadlineExceeded, WorkerFailed, WorkerStopped
from recording.shield import to_the_end
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import send_result
from shutdown import Shutdown

INTERVAL_SECONDS = 1.0  # least time between two posts of progress
LAST_POST_SECONDS = 2.0  # the result waits at most so long for a post that is still being sent
MARGIN_SECONDS, MARGIN_SHARE = (
    5.0,
    0.2,
)  # the smaller of both is kept of executionTimeout: to stop, clean up and send the answer

Handler = Callable[[dict], Awaitable[dict]]

_unremoved: set[Path] = set()  # folders of jobs that have ended


@dataclass(slots=True)
class Progress:
    """How far a job has come. No value ever decreases."""

    phase: str = "downloading"  # then "decoding", and "transcribing" once everything is decoded
    seconds_known: float = 0.0  # decoded
    seconds_done: float = 0.0  # transcribed
    chunks_done: int = 0


def seconds_allowed(job: dict) -> float | None:
    """Seconds in which a job must be answered: `policy.executionTimeout` (milliseconds) less a margin. None without a policy.

    A worker does not know the endpoint's own timeout.
    """
    policy = job.get("policy")
    milliseconds = policy.get("executionTimeout") if isinstance(policy, dict) else None
    if (
        isinstance(milliseconds, bool)
        or not isinstance(milliseconds, (int, float))
        or not milliseconds > 0
    ):
        return None
    seconds = milliseconds / 1000
    return seconds - min(MARGIN_SECONDS, MARGIN_SHARE * seconds)


@asynccontextmanager
async def time_allowed(job: dict, shutdown: Shutdown) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the body of the context before the platform kills the worker for its timeout.

    Raises DeadlineExceeded, or WorkerStopped where `shutdown` ended the time.
    """
    allowed = seconds_allowed(job)
    began = asyncio.get_running_loop().time()
    try:
        async with shutdown.timeout(allowed) as limit:
            yield limit
    except TimeoutError:
        if not limit.expired():
            raise
        if allowed is None or limit.when() < began + allowed:
            raise WorkerStopped("The worker was stopped. Please send the job again.") from None
        given = job["policy"]["executionTimeout"]
        raise DeadlineExceeded(
            f"policy.executionTimeout of {given:.0f} ms was about to pass; a larger one is needed for this recording."
        ) from None


def seconds_left(limit: asyncio.Timeout, most: float) -> float:
    """Seconds until `limit`, and at most `most`."""
    if (when := limit.when()) is None:
        return most
    return min(most, max(0, when - asyncio.get_running_loop().time()))


def cancellation_wins(handler: Handler) -> Handler:
    """The same handler; a job that is cancelled gives no answer, even if it fails in the same step.

    A TaskGroup drops a cancellation that comes together with a failure. On Python 3.11 and 3.12 it
    also counts its own cancellations wrongly, so the count is read in a task without a TaskGroup.
    """

    @functools.wraps(handler)
    async def stoppable(job: dict) -> dict:
        output = await asyncio.create_task(handler(job))
        if asyncio.current_task().cancelling():
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
async def progress_of(job: dict) -> AsyncIterator[Progress]:
    """The job's Progress. Changes are posted at most once a second, and never after the context has ended.

    The SDK's `progress_update` posts from a thread that cannot be awaited, so a post may arrive after the result. This function
    posts the same body to the same address (runpod 1.12.0, rp_progress.py) and waits for it.
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
        await asyncio.wait([poster], timeout=LAST_POST_SECONDS)
        poster.cancel()
        await asyncio.gather(poster, return_exceptions=True)


async def _post_changes(job: dict, progress: Progress, ended: asyncio.Event) -> None:
    async with AsyncClientSession() as session:
        posted = None
        while not ended.is_set():
            if (now := asdict(progress)) != posted:
                posted = now
                shown = {
                    name: round(value, 1) if isinstance(value, float) else value
                    for name, value in now.items()
                }
                await send_result(session, {"status": "IN_PROGRESS", "output": shown}, job)
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), INTERVAL_SECONDS)
