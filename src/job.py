"""RunPod's side of a job: the time it allows and the progress that /status shows. Knows the SDK; no audio, no models."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass

from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import send_result

from errors import DeadlineExceeded

INTERVAL_SECONDS = 1.0  # between two posts of progress
LAST_POST_SECONDS = 2.0  # that a result waits for a post still under way
MARGIN_SECONDS, MARGIN_SHARE = 5.0, 0.2  # of executionTimeout, the smaller of both: to stop, clean up and answer in


@dataclass(slots=True)
class Progress:
    """What has been done for a job so far. No value ever falls."""

    phase: str = "downloading"  # then "decoding", with transcription beside it, then "transcribing": the length is known
    seconds_known: float = 0.0  # of the recording, decoded
    seconds_done: float = 0.0  # of it, transcribed
    chunks_done: int = 0


def seconds_allowed(job: dict) -> float | None:
    """Until a job must be answered: `policy.executionTimeout` (milliseconds) less a margin; None where there is no policy.

    The endpoint's own timeout is not told to a worker.
    """
    policy = job.get("policy")
    milliseconds = policy.get("executionTimeout") if isinstance(policy, dict) else None
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)) or not milliseconds > 0:
        return None
    seconds = milliseconds / 1000
    return seconds - min(MARGIN_SECONDS, MARGIN_SHARE * seconds)


@asynccontextmanager
async def time_allowed(job: dict) -> AsyncIterator[None]:
    """Cancel what runs inside before the platform would kill the worker for it. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(seconds_allowed(job)) as deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        given = job["policy"]["executionTimeout"]
        raise DeadlineExceeded(
            f"policy.executionTimeout of {given:.0f} ms was about to pass; a larger one is needed for this recording."
        ) from None


@asynccontextmanager
async def progress_of(job: dict) -> AsyncIterator[Progress]:
    """The job's Progress, posted at most once a second while it changes, and never after the context has ended.

    The SDK's `progress_update` posts from a thread that nobody can wait for, so that a post may land behind the result;
    this one posts the same body to the same address (runpod 1.12.0, rp_progress.py) and is waited for.
    """
    progress = Progress()
    if "RUNPOD_WEBHOOK_POST_OUTPUT" not in os.environ:  # a try from the command line
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
                shown = {name: round(value, 1) if isinstance(value, float) else value for name, value in now.items()}
                await send_result(session, {"status": "IN_PROGRESS", "output": shown}, job)
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), INTERVAL_SECONDS)
