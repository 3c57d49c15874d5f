"""One gate for the chunks of all jobs: how many are admitted, and which is next.

Knows no samples, no models and no RunPod.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

# The first 8 chunks of any recording go before all later ones, so that a short recording never
# waits for a long one.
EARLY_CHUNKS = 8


def chunk_priority(index: int) -> int:
    """The priority of a chunk by its index in its recording; the lowest goes first, as in vLLM.

    The early chunks of all recordings go in the order of their index. All later chunks have the
    same priority: otherwise a long recording would wait for every one that began after it.
    """
    return min(index, EARLY_CHUNKS)


@dataclass(eq=False, slots=True)
class Holder:
    """One job at the gate."""

    places_held: int = 0  # the places of the job's chunks that are inside


@dataclass(eq=False, slots=True)
class _Waiter:
    priority: int
    holder: Holder
    turn: asyncio.Future[None]

    @property
    def order(self) -> tuple[int, int]:
        """The lowest is next."""
        return self.priority, self.holder.places_held


class Gate:
    """A semaphore with priorities.

    Next is the lowest priority, then the job that holds the fewest places, then the first to come.
    """

    def __init__(self, places: int):
        self._free = places
        self._waiting: list[_Waiter] = []  # in the order they came

    @asynccontextmanager
    async def holder(self) -> AsyncIterator[Holder]:
        """A holder for one job. All its places are given back at the end."""
        holder = Holder()
        try:
            yield holder
        finally:
            while holder.places_held:
                self.leave(holder)

    @asynccontextmanager
    async def place(self, holder: Holder, priority: int) -> AsyncIterator[None]:
        """One place for the duration of the context."""
        await self.enter(holder, priority)
        try:
            yield
        finally:
            self.leave(holder)

    async def enter(self, holder: Holder, priority: int) -> None:
        """Wait for a place and take it."""
        if self._free:
            self._take(holder)
            return
        turn = asyncio.get_running_loop().create_future()
        waiter = _Waiter(priority, holder, turn)
        self._waiting.append(waiter)
        try:
            await turn
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:  # it was given a place at the same moment
                self.leave(holder)
            raise

    def leave(self, holder: Holder) -> None:
        """Give one place back."""
        holder.places_held -= 1
        self._free += 1
        waiting = [waiter for waiter in self._waiting if not waiter.turn.cancelled()]
        if not waiting:
            return
        following = min(waiting, key=lambda waiter: waiter.order)
        self._waiting.remove(following)
        self._take(following.holder)
        following.turn.set_result(None)

    def _take(self, holder: Holder) -> None:
        self._free -= 1
        holder.places_held += 1
