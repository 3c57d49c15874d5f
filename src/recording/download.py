"""URL → local file, readable while it arrives, under limits on size and time, with retries.

All downloads run in one event loop in a thread of its own, so that none can block the loop of the
jobs. A download that is cancelled closes its connection in the next step of that loop. Knows
nothing of audio.
"""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from contract.errors import DownloadError, DownloadTimeout, DownloadTooLarge, WorkerFailed
from recording.http_get import FileResponse, TransientError, get, host_of

ATTEMPTS = 3
BACKOFF_SECONDS = 0.5  # the wait doubles after each attempt
NO_HEADERS: Mapping[str, str] = {}
NO_TIMER: AbstractContextManager[object] = nullcontext()


@dataclass(frozen=True, slots=True)
class ArrivingFile:
    """A file that may still grow; bytes that are in it do not change."""

    path: Path
    size: int | None  # bytes of the complete file; None while unknown
    complete_marker: Path  # exists once the file is complete


@asynccontextmanager
async def download(
    url: str,
    folder: Path,
    *,
    max_bytes: int,
    timeout: float,
    headers: Mapping[str, str] = NO_HEADERS,
    timer: AbstractContextManager[object] = NO_TIMER,
) -> AsyncIterator[ArrivingFile]:
    """Fetch `url` into a file in `folder`: at most `max_bytes`, within `timeout` seconds.

    The time includes retries. `headers` are sent to the origin of `url` only. `timer`: a context
    that lasts until the file is complete.

    The context begins with the file's first bytes, and is cancelled if the rest does not arrive.
    Raises DownloadError after ATTEMPTS transient failures, and AddressRefused, HostNotFound,
    SourceRefused, DownloadTooLarge, DownloadTimeout; InvalidRequest for headers that cannot be
    sent; WorkerFailed where the worker cannot store the file. Messages name the host, never the
    path or the query.
    """
    transfer = _Transfer(url, headers, folder, max_bytes)
    async with asyncio.TaskGroup() as group:
        fetching = group.create_task(_run_in_time(transfer, timeout, timer))
        yield await transfer.arriving
        fetching.cancel()  # the rest of the file is not needed


async def _run_in_time(
    transfer: "_Transfer", timeout: float, timer: AbstractContextManager[object]
) -> None:
    try:
        with timer:
            async with asyncio.timeout(timeout):
                running = asyncio.run_coroutine_threadsafe(transfer.run(), download_loop())
                await asyncio.wrap_future(running)
    except TimeoutError:
        raise DownloadTimeout(
            f"audio_url did not arrive from {host_of(transfer.url)} in the time allowed."
        ) from None


@functools.cache
def download_loop() -> asyncio.AbstractEventLoop:
    """The loop in which all downloads run."""
    loop = asyncio.new_event_loop()
    # The default handler logs failures during a cancellation, with tracebacks.
    loop.set_exception_handler(lambda *_: None)
    threading.Thread(target=loop.run_forever, name="downloads", daemon=True).start()
    return loop


class _Transfer:
    """One file. Runs in the loop of downloads; a job's loop awaits the future `arriving`."""

    def __init__(self, url: str, headers: Mapping[str, str], folder: Path, max_bytes: int):
        self.url = url
        self.arriving: asyncio.Future[ArrivingFile] = asyncio.get_running_loop().create_future()
        self._headers = headers
        self._path = folder / "source"
        self._complete_marker = folder / "source.complete"
        self._max_bytes = max_bytes

    async def run(self) -> None:
        """Fetch the file, with retries."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._attempt()
                return
            except TransientError as failure:
                if attempt == ATTEMPTS:
                    raise DownloadError(
                        f"audio_url could not be fetched from {host_of(self.url)}: "
                        f"{failure}, {ATTEMPTS} times."
                    ) from failure
                await asyncio.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
            except OSError as error:  # The disk's; those of the network are TransientError.
                sentence = f"The worker could not store the file of audio_url: {error.strerror}."
                raise WorkerFailed(sentence) from error

    async def _attempt(self) -> None:
        async with get(self.url, self._headers) as response:
            if response.length is not None and response.length > self._max_bytes:
                raise self._too_large()
            with self._path.open("r+b" if self._path.exists() else "w+b") as file:
                received = await self._receive(response, file)
                if file.read(1):
                    raise self._changed()
        self._complete_marker.touch()
        self._announce(received)

    async def _receive(self, response: FileResponse, file: BinaryIO) -> int:
        """Write the body to `file`; returns its bytes."""
        received = 0
        async for block in response.blocks:
            received += len(block)
            if received > self._max_bytes:
                raise self._too_large()
            self._write(file, block)
            if received:
                self._announce(response.size)
            # Other downloads must run even if this one's blocks arrive without a pause.
            await asyncio.sleep(0)
        return received

    def _write(self, file: BinaryIO, block: bytes) -> None:
        """Bytes of an earlier attempt may be decoded already, so this one's must be the same."""
        known = file.read(len(block))
        if known != block[: len(known)]:
            raise self._changed()
        file.write(block[len(known) :])
        file.flush()

    def _announce(self, size: int | None) -> None:
        """Let the context of `download` begin, unless it has."""
        if self.arriving.done():
            return  # Otherwise every block would wake the job's loop.
        file = ArrivingFile(self._path, size, self._complete_marker)
        with suppress(RuntimeError):  # the loop is closed, with its job
            self.arriving.get_loop().call_soon_threadsafe(self._begin, file)

    def _begin(self, file: ArrivingFile) -> None:
        if not self.arriving.done():
            self.arriving.set_result(file)

    def _too_large(self) -> DownloadTooLarge:
        return DownloadTooLarge(
            f"The file at {host_of(self.url)} is larger than the {self._max_bytes} bytes allowed."
        )

    def _changed(self) -> DownloadError:
        return DownloadError(
            f"The file at {host_of(self.url)} changed between two attempts to fetch it."
        )
