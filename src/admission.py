"""Who goes next where not all can go at once: a gate for the chunks of all jobs. Knows no samples, no models, no RunPod."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

EARLY_CHUNKS = 8  # of a recording go before the rest of any other, so that a short one never waits for a long one


def rank(index: int) -> int:
    """What comes first, lowest: the early chunks of any recording in their order, and after them all chunks alike.

    `index`: of the chunk in its recording. Without a last rank a long recording would wait for every one that began later.
    """
    return min(index, EARLY_CHUNKS)


@dataclass(eq=False, slots=True)
class Entrance:
    """One job's way through a gate."""

    inside: int = 0  # its chunks that are in


@dataclass(eq=False, slots=True)
class _Waiter:
    rank: int
    entrance: Entrance
    turn: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Gate:
    """Lets at most so many in. Next is the lowest rank, then the job with the fewest inside, then who came first."""

    def __init__(self, places: int):
        self._free = places
        self._waiting: list[_Waiter] = []  # in the order they came

    @asynccontextmanager
    async def entrance(self) -> AsyncIterator[Entrance]:
        """A job's own, which leaves with all its chunks."""
        entrance = Entrance()
        try:
            yield entrance
        finally:
            while entrance.inside:
                self.leave(entrance)

    async def enter(self, entrance: Entrance, rank: int) -> None:
        """Wait for a place."""
        if self._free:
            self._take(entrance)
            return
        waiter = _Waiter(rank, entrance)
        self._waiting.append(waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:  # its turn came at the same moment
                self.leave(entrance)
            raise

    def leave(self, entrance: Entrance) -> None:
        """Give a place back."""
        entrance.inside -= 1
        self._free += 1
        if waiting := [w for w in self._waiting if not w.turn.cancelled()]:
            waiter = min(waiting, key=lambda w: (w.rank, w.entrance.inside))
            self._waiting.remove(waiter)
            self._take(waiter.entrance)
            waiter.turn.set_result(None)

    def _take(self, entrance: Entrance) -> None:
        self._free -= 1
        entrance.inside += 1

    @asynccontextmanager
    async def place(self, rank: int) -> AsyncIterator[None]:
        """For one that belongs to no job."""
        async with self.entrance() as entrance:
            await self.enter(entrance, rank)
            yield
