"""The gate for the chunks of all jobs: never more inside than places, early chunks first, fair over
jobs, no place lost.
"""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from speech.admission import EARLY_CHUNKS, Gate, Holder, chunk_priority


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Visitors:
    """Lets chunks, named by job and index, wait at a gate; `order` is the order in which they
    entered.
    """

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


async def test_with_all_places_taken_the_next_chunk_waits_until_one_leaves():
    visitors = Visitors(Gate(2))
    for index in range(3):
        await visitors.come("a", index)
    assert visitors.order == ["a0", "a1"]
    await visitors.go("a")
    assert visitors.order == ["a0", "a1", "a2"]


async def test_the_chunk_that_is_earliest_in_its_recording_is_next():
    visitors = Visitors(Gate(1))
    for job, index in (("x", 0), ("a", 3), ("b", 1), ("c", 0), ("d", 500)):
        await visitors.come(job, index)
    for job in ("x", "c", "b", "a"):
        await visitors.go(job)
    assert visitors.order == ["x0", "c0", "b1", "a3", "d500"]


async def test_among_later_chunks_the_job_with_the_fewest_inside_is_next():
    """Position in the recording does not count, so a long recording does not wait for one that
    began later.
    """
    visitors = Visitors(Gate(3))
    for index in (20, 21, 22):
        await visitors.come("late", index)
    await visitors.come("late", 23)
    await visitors.come("old", 500)
    await visitors.go("late")
    assert visitors.order[3:] == ["old500"]


async def test_jobs_with_equally_many_inside_enter_in_order_of_arrival():
    visitors = Visitors(Gate(1))
    for job in "xabc":
        await visitors.come(job, EARLY_CHUNKS)
    for job in "xab":
        await visitors.go(job)
    assert visitors.order == [f"{job}{EARLY_CHUNKS}" for job in "xabc"]


async def test_a_cancelled_waiter_is_passed_over():
    gate = Gate(1)
    visitors = Visitors(gate)
    for job in "xab":
        await visitors.come(job, 0)
    visitors.tasks[1].cancel()
    await settle()
    await visitors.go("x")
    assert visitors.order == ["x0", "b0"]


async def test_a_waiter_cancelled_just_before_a_place_is_free_is_passed_over():
    gate = Gate(1)
    visitors = Visitors(gate)
    for job in "xab":
        await visitors.come(job, 0)
    visitors.tasks[1].cancel()
    gate.leave(visitors.holders["x"])
    await settle()
    assert visitors.order == ["x0", "b0"]


async def test_the_place_of_a_waiter_cancelled_just_after_it_got_it_goes_to_the_next():
    gate = Gate(1)
    visitors = Visitors(gate)
    for job in "xab":
        await visitors.come(job, 0)
    gate.leave(visitors.holders["x"])
    visitors.tasks[1].cancel()
    await settle()
    assert visitors.order == ["x0", "b0"]


async def test_a_job_that_ends_gives_back_the_places_of_all_its_chunks():
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
@settings(max_examples=150)
def test_under_random_arrivals_and_cancellations_the_gate_never_overfills_and_loses_no_place(
    places, jobs, seed
):
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
