"""One gate for the chunks of all jobs: how many are admitted, and which is next. Knows no samples, no models, no RunPod."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

EARLY_CHUNKS = 8  # of a recording go before all later chunks, so that a short recording never waits for a long one


def chunk_priority(index: int) -> int:
    """The priority of a chunk by its index in its recording; the lowest goes first, as in vLLM.

    The early chunks of all recordings go in the order of their index. All later chunks have the same priority: otherwise a long
    recording would wait for every recording that began after it.
    """
    return min(index, EARLY_CHUNKS)


@dataclass(eq=False, slots=True)
class Holder:
    """One job at the gate."""

    places: int = 0  # that its chunks hold


@dataclass(eq=False, slots=True)
class _Waiter:
    priority: int
    holder: Holder
    turn: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Gate:
    """A semaphore with priorities. Next is the lowest priority, then the job with the fewest places, then the one that came first."""

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
            while holder.places:
                self.leave(holder)

    async def enter(self, holder: Holder, priority: int) -> None:
        """Wait for a place and take it."""
        if self._free:
            self._take(holder)
            return
        waiter = _Waiter(priority, holder)
        self._waiting.append(waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:  # it was given a place at the same moment
                self.leave(holder)
            raise

    def leave(self, holder: Holder) -> None:
        """Give one place back."""
        holder.places -= 1
        self._free += 1
        if waiting := [w for w in self._waiting if not w.turn.cancelled()]:
            waiter = min(waiting, key=lambda w: (w.priority, w.holder.places))
            self._waiting.remove(waiter)
            self._take(waiter.holder)
            waiter.turn.set_result(None)

    def _take(self, holder: Holder) -> None:
        self._free -= 1
        holder.places += 1

    @asynccontextmanager
    async def place(self, priority: int) -> AsyncIterator[None]:
        """One place for the duration of the context, counted for no job."""
        async with self.holder() as holder:
            await self.enter(holder, priority)
            yield
