"""Calls that run at the same time: their results in order, and none that outlives a failure."""

import asyncio

import pytest
from contract.errors import EngineDead
from speech.together import together


async def test_the_results_are_in_the_order_of_the_calls():
    async def after(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    assert await together(after(3), after(0), after(2)) == [3, 0, 2]


async def test_where_one_call_fails_the_others_have_ended_before_its_error_is_raised():
    ended = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("hang")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise EngineDead("dead")

    with pytest.raises(EngineDead):
        async with asyncio.timeout(10):
            await together(hang(), fail(), hang())
    assert ended == ["hang", "hang"]
