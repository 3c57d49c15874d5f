"""What the worker changes in RunPod's SDK 1.12.0. Knows no audio and no models.

A result is sent until the platform takes it. The SDK gives up after one lost connection or 429, and
after three 5xx within 5 s.
An error of the platform is followed by a pause. The SDK asks for jobs again at once, some thousand
times a second.
SIGTERM ends the worker in bounded time. The SDK waits for running jobs as long as they take.
"""

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from itertools import chain, repeat
from typing import Any

import runpod
from aiohttp import ClientError, ClientResponseError, ClientSession
from job import Handler
from runpod import RunPodLogger
from runpod.http_client import TooManyRequests
from runpod.serverless.modules import rp_http, rp_job, rp_scale
from runpod.serverless.modules.worker_state import JobsProgress
from shutdown import Shutdown

MAX_SEND_SECONDS = 600  # all attempts to send a result end within this time
# A shutdown gives the running jobs some time; their results must be sent this much later.
MAX_SEND_SECONDS_AT_END = 20
MAX_ATTEMPT_SECONDS = 60  # one attempt is one call of the SDK, which repeats a post after a 5xx
# The pause between two attempts doubles from the first value to the second.
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1, 15
TRANSIENT_STATUS = (408, 425, 429, *range(500, 600))
TAKE_PAUSE_SECONDS = 1.0  # the SDK's loop for stop signals waits as long after an error

log = RunPodLogger()


def install(shutdown: Shutdown, shutdown_seconds: float) -> None:
    """Put the changes into the SDK, before its `start`.

    After SIGTERM running jobs get `shutdown_seconds`.
    """

    class Scaler(rp_scale.JobScaler):  # type: ignore[misc]  # the SDK has no types
        def __init__(self, config: dict[str, Any]):
            super().__init__(config)
            self.jobs_fetcher = get_jobs

        def handle_shutdown(self, signum: int, frame: object) -> None:
            shutdown.begin(shutdown_seconds)
            super().handle_shutdown(signum, frame)

    rp_scale.JobScaler = Scaler
    rp_job.send_result = partial(send_result, shutdown)


def serve(
    handler: Handler,
    jobs_at_once: Callable[[int], int],
    fitness_check: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Run jobs until the SDK ends: RunPod's, the local server's, or the command line's one.

    `jobs_at_once` is asked before jobs are taken. `fitness_check` runs before the first one.
    """
    runpod.serverless.register_fitness_check(fitness_check)
    runpod.serverless.start({"handler": handler, "concurrency_modifier": jobs_at_once})
    if lost := JobsProgress().get_job_list():
        log.warn(f"jobs taken during the shutdown, neither run nor answered: {lost}")


def concurrency(is_dead: bool, capacity: int, max_concurrency: int) -> int:
    """How many jobs a worker takes at the same time; its engine has `capacity` chunks in a step.

    With `max_concurrency` 0, a quarter of those, because most jobs have few chunks. It is at least
    2, because at 1 the SDK starts no more than one job a second. With a dead engine it is 0, and
    the worker ends once it is idle.
    """
    if is_dead:
        # On SIGTERM the SDK ends in order: running jobs are answered first.
        signal.raise_signal(signal.SIGTERM)
        return 0
    return max_concurrency or max(2, capacity // 4)


async def get_jobs(session: ClientSession, number: int) -> list[dict[str, Any]] | None:
    """The SDK's `get_job`, with a pause after an error. Its errors pass through."""
    try:
        jobs: list[dict[str, Any]] | None = await rp_job.get_job(session, number)
    except TooManyRequests:  # the SDK makes a pause after this one
        raise
    except Exception:
        await asyncio.sleep(TAKE_PAUSE_SECONDS)
        raise
    return jobs


async def send_result(
    shutdown: Shutdown,
    session: ClientSession,
    result: dict[str, Any],
    job: dict[str, Any],
    is_stream: bool = False,
) -> None:
    """Post a job's result as the SDK does, and again until the platform has taken or refused it.

    The job counts as running until then: pings name it, and a stop signal for it ends the attempts.
    The platform may see the same post twice, where only its answer was lost.
    """
    url = rp_http.JOB_DONE_URL.replace("$ID", job["id"]) + f"&isStream={str(is_stream).lower()}"
    body = json.dumps(result, ensure_ascii=False)
    session.headers["X-Request-ID"] = job["id"]
    try:
        async with shutdown.timeout(MAX_SEND_SECONDS, MAX_SEND_SECONDS_AT_END):
            await _sent(session, url, body, job["id"])
    except TimeoutError:
        log.error("the platform could not be reached: the result is lost", job["id"])
    except ClientResponseError as error:
        log.error(f"the platform refused the result with {error.status}", job["id"])
    log.info("Finished.", job["id"])


async def _sent(session: ClientSession, url: str, body: str, job_id: str) -> None:
    """Post until the platform takes it. Raises ClientResponseError where it refuses the post."""
    for pause in _pauses():
        try:
            async with asyncio.timeout(MAX_ATTEMPT_SECONDS):
                await rp_http._transmit(session, url, body)
            return
        except ClientResponseError as error:
            if error.status not in TRANSIENT_STATUS:
                raise
            reason = str(error.status)
        except (ClientError, OSError) as error:  # TimeoutError is an OSError
            reason = type(error).__name__
        log.warn(f"the result could not be sent ({reason}); next attempt in {pause} s", job_id)
        await asyncio.sleep(pause)


def _pauses() -> Iterator[float]:
    """Seconds to wait before each further attempt, without end."""
    growing = (MIN_PAUSE_SECONDS * 2**i for i in range(4))
    return chain(growing, repeat(MAX_PAUSE_SECONDS))
