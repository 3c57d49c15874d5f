"""The end of the worker, whatever hangs in it. Knows no models and no platform.

Running jobs get some time. Then they fail, and after some more time the process is ended.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf

from runpod import RunPodLogger

# The process must end this long after its jobs; the SDK alone waits 90 s for its last polls.
MAX_CLOSE_SECONDS = 100
WATCH_SECONDS = 0.5  # the clock is looked at this often, because the end may be brought forward

log = RunPodLogger()


@dataclass(frozen=True, slots=True, eq=False)
class _Bound:
    limit: asyncio.Timeout
    extra_seconds: float
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)


class Shutdown:
    """When the worker ends. One for the process."""

    def __init__(self) -> None:
        self.jobs_end = inf  # every job must end by this time of the monotonic clock
        self._begun = threading.Event()
        self._bounds: set[_Bound] = set()

    @property
    def begun(self) -> bool:
        """Whether the worker is about to end."""
        return self.jobs_end < inf

    def begin(self, seconds: float) -> None:
        """End the running jobs in `seconds`, and the process at most MAX_CLOSE_SECONDS later.

        May be called again, to bring the end forward. Safe in a signal handler: it takes no lock
        that the interrupted code may hold.
        """
        first = not self.begun
        self.jobs_end = min(self.jobs_end, time.monotonic() + seconds)
        if first:
            self._begun.set()
        for bound in list(self._bounds):
            bound.loop.call_soon_threadsafe(self._bring_forward, bound)

    @asynccontextmanager
    async def timeout(
        self, seconds: float | None, extra_seconds: float = 0
    ) -> AsyncIterator[asyncio.Timeout]:
        """asyncio.timeout(seconds), which a shutdown brings forward.

        It then ends `extra_seconds` after the time of the running jobs.
        """
        async with asyncio.timeout(seconds) as limit:
            bound = _Bound(limit, extra_seconds)
            self._bounds.add(bound)
            try:
                self._bring_forward(bound)
                yield limit
            finally:
                self._bounds.remove(bound)

    def _bring_forward(self, bound: _Bound) -> None:
        if not self.begun or bound not in self._bounds or bound.limit.expired():
            return
        seconds_left = self.jobs_end + bound.extra_seconds - time.monotonic()
        end = bound.loop.time() + max(0, seconds_left)
        when = bound.limit.when()
        bound.limit.reschedule(end if when is None else min(when, end))

    def watch(self) -> None:
        """Start the thread that ends the process where it does not end by itself.

        Until the SDK installs its own handler, SIGTERM ends the process at once, by `finally`.
        """
        signal.signal(signal.SIGTERM, self._stop_at_once)
        threading.Thread(target=self._end_process_in_time, name="shutdown", daemon=True).start()

    def _stop_at_once(self, *_: object) -> None:
        self.begin(0)
        sys.exit(0)

    def _end_process_in_time(self) -> None:
        self._begun.wait()
        while time.monotonic() < self.jobs_end + MAX_CLOSE_SECONDS:
            time.sleep(WATCH_SECONDS)
        log.error("the worker did not end in time: its process is ended now")
        # The SDK's pings come from a child process, which would go on without the worker.
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)
