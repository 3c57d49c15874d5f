"""Detects a broken GPU or a stuck engine. The worker checks itself after a call that hung, or after
several unexplained failures in a row.

Knows no models and no jobs: the check, and what to do when it fails, are given.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from contract.errors import EngineDead

FAILURES_IN_A_ROW = 3  # after this many the worker checks itself
# The check has failed after this time. On a busy engine it takes a moment, because its chunk has
# the highest priority.
CHECK_SECONDS = 60


class Health:
    """Consecutive failures of each part of the worker, over all jobs."""

    def __init__(self, check: Callable[[], Awaitable[None]], give_up: Callable[[], None]):
        """`check` raises where the worker is broken.

        `give_up` is called when it raises, or takes longer than CHECK_SECONDS.
        """
        self._check, self._give_up = check, give_up
        self._failures: Counter[str] = Counter()  # by part, since it last worked
        self._checking: asyncio.Task[None] | None = None

    def worked(self, part: str) -> None:
        """A part of the worker ("engine" or "aligner") has answered."""
        del self._failures[part]

    async def failed(self, part: str, hung: bool = False) -> None:
        """A part has failed, and its input does not explain why.

        `hung`: it gave no answer in the time allowed; then a check is due at once.
        Raises EngineDead where a check became due and has failed.
        """
        self._failures[part] += FAILURES_IN_A_ROW if hung else 1
        if self._failures[part] < FAILURES_IN_A_ROW:
            return
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._checked())
        await asyncio.shield(self._checking)

    async def _checked(self) -> None:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self._check()
        except Exception as error:
            self._give_up()
            raise EngineDead(
                "This worker no longer works and is being replaced. Please send the job again."
            ) from error
        self._failures.clear()
