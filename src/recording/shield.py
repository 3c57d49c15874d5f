"""Work that goes on to its end when its caller is cancelled. Knows no jobs, files or processes."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

Result = TypeVar("Result")


async def to_the_end(work: Coroutine[object, object, Result]) -> Result:
    """Await all of `work`, even if the caller is cancelled meanwhile.

    The cancellation is raised afterwards, and it wins over a result and over an error of `work`.
    """
    task, cancellation = asyncio.create_task(work), None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is None or task.cancelled():
        return task.result()
    raise cancellation from task.exception()
