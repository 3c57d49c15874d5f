"""URL → local file, readable while it grows, under limits on size and time, with retries. Knows nothing of audio.

All downloads run in one event loop in a thread of its own, so that none can hold up the loop of the jobs, and a
download that is cancelled has closed its connection in the next step of that loop.
"""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from errors import DownloadError, DownloadTimeout, DownloadTooLarge
from web import Passing, get, host_of

ATTEMPTS, BACKOFF_SECONDS = 3, 0.5  # doubled after each attempt
RESOLVERS = 32  # threads, each waiting for the answer of the DNS to one download


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file that is still growing: bytes that are in it stay as they are."""

    path: Path
    size: int | None  # bytes that the server has promised
    whole: Path  # exists once all of it is there


@asynccontextmanager
async def download(
    url: str,
    folder: Path,
    *,
    max_bytes: int,
    timeout: float,
    headers: Mapping[str, str] = {},
    timer: AbstractContextManager = nullcontext(),
) -> AsyncIterator[Arrival]:
    """Fetch `url` into a file in `folder`, at most `max_bytes`, within `timeout` seconds in all; `timer` runs until then.

    `headers`: of the request, for the first host only.

    The context begins with the file's first bytes and is cancelled when the rest does not come; the error then is, as
    before it, a DownloadError: AddressRefused, HostNotFound, SourceRefused, DownloadTooLarge, DownloadTimeout, or
    DownloadError itself after ATTEMPTS transient failures. Messages name the host, never the path or the query.
    """
    fetch = _Fetch(url, headers, folder, max_bytes)
    async with asyncio.TaskGroup() as group:
        fetching = group.create_task(_in_time(fetch, timeout, timer))
        yield await fetch.arrival
        fetching.cancel()  # if it has not ended: what was wanted of the file has been read


async def _in_time(fetch: "_Fetch", timeout: float, timer: AbstractContextManager) -> None:
    try:
        with timer:
            async with asyncio.timeout(timeout):
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(fetch.with_retries(), downloads()))
    except TimeoutError:
        raise DownloadTimeout(f"audio_url did not arrive from {host_of(fetch.url)} in the time allowed.") from None


@functools.cache
def downloads() -> asyncio.AbstractEventLoop:
    """The loop in which all downloads run."""
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(RESOLVERS, thread_name_prefix="resolver"))
    loop.set_exception_handler(lambda *_: None)  # else it logs, with a traceback, what failed while it was cancelled
    threading.Thread(target=loop.run_forever, name="downloads", daemon=True).start()
    return loop


class _Fetch:
    """One file on its way, in the loop of downloads but for `arrival`, which is awaited in the job's."""

    def __init__(self, url: str, headers: Mapping[str, str], folder: Path, max_bytes: int):
        self.url, self._headers = url, headers
        self.arrival: asyncio.Future[Arrival] = asyncio.get_running_loop().create_future()
        self._path, self._whole = folder / "source", folder / "source.whole"
        self._max_bytes = max_bytes

    async def with_retries(self) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._once()
            except Passing as failure:
                if attempt == ATTEMPTS:
                    raise DownloadError(f"audio_url could not be fetched from {host_of(self.url)}: {failure}, {ATTEMPTS} times.") from failure
                await asyncio.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
            except OSError as error:  # the disk's
                raise DownloadError(f"The worker could not store the file of audio_url: {error.strerror}.") from error

    async def _once(self) -> None:
        async with get(self.url, self._headers) as answer:
            if answer.length is not None and answer.length > self._max_bytes:
                raise self._too_large()
            received = 0
            with self._path.open("r+b" if self._path.exists() else "w+b") as file:
                async for block in answer.blocks:
                    received += len(block)
                    if received > self._max_bytes:
                        raise self._too_large()
                    self._add(file, block)
                    if received:
                        self._arrived(answer.size)
                    await asyncio.sleep(0)  # a download of many small blocks takes turns with the others
                if file.read(1):
                    raise self._changed()
        self._whole.touch()
        self._arrived(received)

    def _add(self, file: BinaryIO, block: bytes) -> None:
        """What an earlier attempt brought may have been decoded already: it must come again."""
        known = file.read(len(block))
        if known != block[: len(known)]:
            raise self._changed()
        file.write(block[len(known) :])
        file.flush()

    def _arrived(self, size: int | None) -> None:
        if self.arrival.done():
            return  # or every block would wake the loop
        arrival = Arrival(self._path, size, self._whole)
        with suppress(RuntimeError):  # the loop is gone with its job
            self.arrival.get_loop().call_soon_threadsafe(lambda: self.arrival.done() or self.arrival.set_result(arrival))

    def _too_large(self) -> DownloadTooLarge:
        return DownloadTooLarge(f"The file at {host_of(self.url)} is larger than the {self._max_bytes} bytes allowed.")

    def _changed(self) -> DownloadError:
        return DownloadError(f"The file at {host_of(self.url)} changed between two attempts to fetch it.")
