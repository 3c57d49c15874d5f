"""Several calls at the same time, of which none outlives the first failure."""

from asyncio import TaskGroup
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def together(*calls: Coroutine[Any, Any, T]) -> list[T]:
    """The results of all calls, in order.

    Where a call fails, the others are cancelled and have ended before its error is raised.
    asyncio.gather would leave them running.
    """
    try:
        async with TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
