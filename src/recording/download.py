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
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from contract.errors import DownloadError, DownloadTimeout, DownloadTooLarge, WorkerFailed
from recording.file_response import FileResponse, Rest, TransientError, host_of
from recording.http_get import get
from recording.patience import GivenUp, Patience

# A resumed answer begins this much earlier, which shows that it belongs to the same file.
OVERLAP_BYTES = 1024
NO_HEADERS: Mapping[str, str] = {}
NO_TIMER: AbstractContextManager[object] = nullcontext()


@dataclass(frozen=True, slots=True)
class ArrivingFile:
    """A file that may still grow; bytes that are in it do not change."""

    path: Path
    size: int | None  # bytes of the complete file; None while unknown
    complete_marker: Path  # exists once the file is complete
    suffix: str = ""  # of its name, in lower case and without the dot; "" where unknown


def suffix_of(path: str) -> str:
    """The suffix of the name in `path`, in lower case and without the dot; "" without one."""
    return PurePosixPath(path).suffix[1:].lower()


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
    Raises DownloadError where Patience gives up, and AddressRefused, HostNotFound, TlsFailed,
    SourceRefused, DownloadTooLarge, DownloadTimeout; InvalidRequest for headers that cannot be
    sent; WorkerFailed where the worker cannot store the file. Messages name the host, never the
    path or the query.
    """
    transfer = _Transfer(url, headers, folder, max_bytes, Patience(timeout))
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

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        folder: Path,
        max_bytes: int,
        patience: Patience,
    ):
        self.url = url
        self.arriving: asyncio.Future[ArrivingFile] = asyncio.get_running_loop().create_future()
        self._headers = headers
        self._path = folder / "source"
        self._complete_marker = folder / "source.complete"
        self._max_bytes = max_bytes
        self._patience = patience
        self._held = 0  # bytes of the file
        self._size: int | None = None  # bytes of the complete file, as first declared
        self._validator = ""  # of the last answer, for a request for the rest
        self._start = 0  # where the last answer began in the file, in bytes

    async def run(self) -> None:
        """Fetch the file. What an answer lacks is asked for again: only the rest, if possible."""
        while True:
            held, self._start = self._held, 0
            try:
                await self._attempt()
                return
            except TransientError as failure:
                resumed = self._start > 0 and self._held > held
                await asyncio.sleep(self._wait_after(failure, resumed))
            except OSError as error:  # The disk's; those of the network are TransientError.
                sentence = f"The worker could not store the file of audio_url: {error.strerror}."
                raise WorkerFailed(sentence) from error

    def _rest(self) -> Rest | None:
        """What to ask for; None for the whole file, also in the last attempt."""
        start = self._held - OVERLAP_BYTES
        if start <= 0 or not self._validator or self._patience.is_last_attempt:
            return None
        return Rest(start, self._validator)

    def _wait_after(self, failure: TransientError, resumed: bool) -> float:
        try:
            return self._patience.wait_after(failure, resumed)
        except GivenUp as reason:
            raise DownloadError(
                f"audio_url could not be fetched from {host_of(self.url)}: {failure}, {reason}."
            ) from failure

    async def _attempt(self) -> None:
        async with get(self.url, self._headers, self._rest()) as response:
            self._check(response)
            self._validator, self._start = response.validator, response.start
            with self._path.open("r+b" if self._path.exists() else "w+b") as file:
                file.seek(response.start)
                end = await self._receive(response, file)
                if end < (response.size or 0):
                    raise TransientError("the answer ends early")
                if file.read(1):
                    raise self._changed()
        self._complete_marker.touch()
        self._announce(end)

    def _check(self, response: FileResponse) -> None:
        """Raises DownloadTooLarge, and DownloadError where the size is not that of before."""
        declared = response.size or response.start + (response.length or 0)
        if declared > self._max_bytes:
            raise self._too_large()
        if self._held and self._size and response.size not in (None, self._size):
            raise self._changed()
        self._size = response.size or self._size

    async def _receive(self, response: FileResponse, file: BinaryIO) -> int:
        """Write the body to `file`; returns where it ends there, in bytes."""
        end = response.start
        async for block in response.blocks:
            end += len(block)
            if end > self._max_bytes:
                raise self._too_large()
            self._write(file, block)
            self._held = max(self._held, end)
            if self._held:
                self._announce(response.size)
            # Other downloads must run even if this one's blocks arrive without a pause.
            await asyncio.sleep(0)
        return end

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
        file = ArrivingFile(
            self._path, size, self._complete_marker, suffix_of(urlsplit(self.url).path)
        )
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
