"""The worker's module with its models loaded, for the benchmarks of whole jobs."""

import asyncio
import os
from contextlib import contextmanager


@contextmanager
def worker():
    """`handler` with its state filled and warm."""
    import handler
    from contract.settings import load_settings

    handler.settings = load_settings(os.environ)
    handler.load_models()
    try:
        asyncio.run(handler.fitness_check())
        yield handler
    finally:
        handler.aligner.close()
        handler.asr.close()


async def direct(handler, chunks, in_flight: int) -> None:
    """Recognise and align the chunks without the rest of the worker, `in_flight` at a time."""
    slots = asyncio.Semaphore(in_flight)

    async def one(chunk):
        async with slots:
            heard = await handler.asr.transcribe(chunk, None, "")
            if heard.text:
                await handler.aligner.align(chunk, heard.text, heard.language)

    await asyncio.gather(*map(one, chunks))
