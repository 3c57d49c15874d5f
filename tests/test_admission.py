"""One gate for all jobs: never more inside than there are places, early chunks first, fair over jobs, no place ever lost."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admission import EARLY_CHUNKS, Gate, Holder, chunk_priority


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Visitors:
    """Waits at a gate for chunks named by job and index, and tells in which order they were let in."""

    def __init__(self, gate: Gate):
        self.gate, self.order, self.tasks, self.holders = gate, [], [], {}

    async def come(self, job: str, index: int) -> None:
        holder = self.holders.setdefault(job, Holder())

        async def wait() -> None:
            await self.gate.enter(holder, chunk_priority(index))
            self.order.append(f"{job}{index}")

        self.tasks.append(asyncio.create_task(wait()))
        await settle()

    async def go(self, job: str) -> None:
        self.gate.leave(self.holders[job])
        await settle()


async def test_so_many_go_in_and_the_next_waits_until_one_leaves():
    visitors = Visitors(Gate(2))
    for index in range(3):
        await visitors.come("a", index)
    assert visitors.order == ["a0", "a1"]
    await visitors.go("a")
    assert visitors.order == ["a0", "a1", "a2"]


async def test_the_earliest_chunk_of_any_recording_is_next():
    visitors = Visitors(Gate(1))
    for job, index in (("x", 0), ("a", 3), ("b", 1), ("c", 0), ("d", 500)):
        await visitors.come(job, index)
    for job in ("x", "c", "b", "a"):
        await visitors.go(job)
    assert visitors.order == ["x0", "c0", "b1", "a3", "d500"]


async def test_of_later_chunks_the_job_with_the_fewest_inside_is_next_however_far_it_has_come():
    """So a long recording does not wait for one that began later."""
    visitors = Visitors(Gate(3))
    for index in (20, 21, 22):
        await visitors.come("late", index)
    await visitors.come("late", 23)
    await visitors.come("old", 500)
    await visitors.go("late")
    assert visitors.order[3:] == ["old500"]


async def test_jobs_with_as_many_inside_go_in_the_order_they_came():
    visitors = Visitors(Gate(1))
    for job in "xabc":
        await visitors.come(job, EARLY_CHUNKS)
    for job in "xab":
        await visitors.go(job)
    assert visitors.order == [f"{job}{EARLY_CHUNKS}" for job in "xabc"]


async def test_who_gives_up_waiting_leaves_the_place_to_others():
    gate = Gate(1)
    visitors = Visitors(gate)
    for job in "xab":
        await visitors.come(job, 0)
    visitors.tasks[1].cancel()
    await settle()
    await visitors.go("x")
    assert visitors.order == ["x0", "b0"]


async def test_a_place_is_not_given_to_who_has_just_been_cancelled():
    gate = Gate(1)
    visitors = Visitors(gate)
    for job in "xab":
        await visitors.come(job, 0)
    visitors.tasks[1].cancel()
    gate.leave(visitors.holders["x"])
    await settle()
    assert visitors.order == ["x0", "b0"]


async def test_a_place_given_to_who_is_cancelled_at_that_moment_is_not_lost():
    gate = Gate(1)
    visitors = Visitors(gate)
    for job in "xab":
        await visitors.come(job, 0)
    gate.leave(visitors.holders["x"])
    visitors.tasks[1].cancel()
    await settle()
    assert visitors.order == ["x0", "b0"]


async def test_a_job_that_ends_leaves_with_all_its_chunks():
    gate = Gate(2)
    with pytest.raises(KeyError):
        async with gate.holder() as holder:
            await gate.enter(holder, 0)
            await gate.enter(holder, 1)
            raise KeyError
    async with gate.holder() as other:
        async with asyncio.timeout(1):
            await gate.enter(other, 0)
            await gate.enter(other, 1)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_whatever_comes_goes_and_is_cancelled_no_more_are_inside_than_places_and_all_that_stay_get_in(places, jobs, seed):
    rng = random.Random(seed)
    inside, most, served = 0, 0, []

    async def chunk(gate: Gate, holder, index: int) -> None:
        nonlocal inside, most
        await gate.enter(holder, chunk_priority(index))
        inside += 1
        most = max(most, inside)
        try:
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            served.append(index)
        finally:
            inside -= 1
            gate.leave(holder)

    async def job(gate: Gate) -> None:
        async with gate.holder() as holder:
            chunks = [asyncio.create_task(chunk(gate, holder, i)) for i in range(rng.randrange(12))]
            await asyncio.sleep(0)
            for task in rng.sample(chunks, len(chunks) // 4):
                task.cancel()
            await asyncio.gather(*chunks, return_exceptions=True)

    async def all_jobs() -> None:
        gate = Gate(places)
        async with asyncio.timeout(10):
            await asyncio.gather(*(job(gate) for _ in range(jobs)))
        assert gate._free == places and gate._waiting == []

    asyncio.run(all_jobs())
    assert most <= places and inside == 0
