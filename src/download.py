"""URL → local file, readable while it grows, under limits on address, size, time and redirects. Knows nothing of audio.

Every hop goes through the SDK's `safe_get`: http(s) only, all resolved addresses public, the connection pinned to the
address that was checked (RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS lifts this for tests and private networks).
"""

import asyncio
import ctypes
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import requests
import urllib3
from runpod.serverless.utils import rp_ssrf
from runpod.serverless.utils.rp_ssrf import SSRFError, safe_get

from errors import AddressRefused, DownloadError, DownloadTimeout, DownloadTooLarge, HostNotFound, SourceRefused

CONNECT_SECONDS, READ_SECONDS = 10, 30  # for one connection, for one wait for bytes
ATTEMPTS, BACKOFF_SECONDS = 3, 0.5  # doubled after each attempt
MAX_REDIRECTS = 30  # podcast hosts chain a tracker after the other
LONGEST_HOST = 253  # characters; no name in the DNS is longer
BLOCK_BYTES = 1 << 18
TRANSIENT_STATUS = (408, 425, 429, *range(500, 600))
HEADERS = {
    "User-Agent": "Mozilla/5.0 (compatible; qwen3-asr-worker)",  # some hosts turn unknown clients away
    "Accept": "audio/*, video/*;q=0.9, */*;q=0.5",
    "Accept-Encoding": "identity",  # sound does not compress, and a compressed body would hide its size
}
NOT_PUBLIC = [  # though the SDK's check lets them pass
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # Oracle's metadata service among them
        "168.63.129.16/32",  # Azure's host
        "192.88.99.0/24", "2002::/16", "::ffff:0:0/96",  # ways to write or to reach an IPv4 address as an IPv6 one
        "fec0::/10",  # site-local
    )
]  # fmt: skip

_safe_for_the_sdk = rp_ssrf.is_safe_address


def _is_public(address: str) -> bool:
    return _safe_for_the_sdk(address) and not any(ipaddress.ip_address(address) in network for network in NOT_PUBLIC)


rp_ssrf.is_safe_address = _is_public  # what safe_get asks about every address of every hop
logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of malformed headers, with the whole URL


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file that is still growing: bytes that are in it stay as they are."""

    path: Path
    size: int | None  # bytes that the server has promised
    whole: Path  # exists once all of it is there


@asynccontextmanager
async def download(url: str, folder: Path, *, max_bytes: int, timeout: float) -> AsyncIterator[Arrival]:
    """Fetch `url` into a file in `folder`, at most `max_bytes`, within `timeout` seconds in all.

    The context begins with the file's first bytes and is cancelled when the rest does not come; the error then is, as
    before it, a DownloadError: AddressRefused, HostNotFound, SourceRefused, DownloadTooLarge, DownloadTimeout, or
    DownloadError itself after ATTEMPTS transient failures. Messages name the host, never the path or the query.
    """
    fetch = _Fetch(url, folder, max_bytes, time.monotonic() + timeout)
    async with asyncio.TaskGroup() as group:
        fetching = group.create_task(_in_time(fetch, timeout))
        yield await fetch.arrival
        fetching.cancel()  # if it has not ended: what was wanted of the file has been read


async def _in_time(fetch: "_Fetch", timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await _in_own_thread(fetch.with_retries)
    except TimeoutError:
        raise _timed_out(fetch.url) from None
    finally:
        fetch.stop.set()  # a thread cannot be cancelled: it looks at this between blocks


async def _in_own_thread(function: Callable, *args: object) -> object:
    """Like asyncio.to_thread, but in no thread of the pool that all jobs share, and the thread ends with the wait for it.

    Servers that send headers, interim answers, trailers or empty blocks without end never let it come back to look at
    a clock: it would read on, at full speed, for as long as they like.
    """

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            settle, outcome = future.set_result, function(*args)
        except BaseException as error:
            settle, outcome = future.set_exception, error
        with ending:
            settle(outcome)

    future, ending = Future(), threading.Lock()
    thread = threading.Thread(target=run, name="download", daemon=True)
    thread.start()
    try:
        return await asyncio.wrap_future(future)
    finally:
        with ending:  # while this is held, a thread that is not done stays, and its ident is its own
            if not future.done():  # SystemExit is raised in it, between two of its steps; it ends without a word
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


class _Fetch:
    """One file on its way, in a thread of its own but for `arrival`, which is awaited."""

    def __init__(self, url: str, folder: Path, max_bytes: int, deadline: float):
        self.url, self.stop = url, threading.Event()
        self.arrival: asyncio.Future[Arrival] = asyncio.get_running_loop().create_future()
        self._path, self._whole = folder / "source", folder / "source.whole"
        self._max_bytes, self._deadline = max_bytes, deadline

    def with_retries(self) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._once()
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                if self._over():
                    raise _timed_out(self.url) from error
                if attempt == ATTEMPTS:
                    raise DownloadError(
                        f"audio_url could not be fetched from {_host(self.url)}: {_reason(error)}, {ATTEMPTS} times."
                    ) from error
                self.stop.wait(min(BACKOFF_SECONDS * 2 ** (attempt - 1), self._deadline - time.monotonic()))
            except OSError as error:  # the disk's; those of the network come as the two above
                raise DownloadError(f"The worker could not store the file of audio_url: {error.strerror}.") from error

    def _once(self) -> None:
        with _get(self.url) as response:
            _check_status(response, self.url)
            declared = response.headers.get("Content-Length", "")
            size = int(declared) if declared.isascii() and declared.isdigit() else None
            if size is not None and size > self._max_bytes:
                raise _too_large(self.url, self._max_bytes)
            received = 0
            with self._path.open("r+b" if self._path.exists() else "w+b") as file:
                # read1 returns what has arrived; read would wait for a full block and let a slow drip outlast the deadline.
                # A body shorter than its Content-Length is an error of urllib3's.
                while block := response.raw.read1(BLOCK_BYTES, decode_content=True):
                    received += len(block)
                    if received > self._max_bytes:
                        raise _too_large(self.url, self._max_bytes)
                    if self._over():
                        raise _timed_out(self.url)
                    self._add(file, block)
                    self._arrived(None if response.headers.get("Content-Encoding") else size)
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

    def _over(self) -> bool:
        return time.monotonic() >= self._deadline or self.stop.is_set()

    def _changed(self) -> DownloadError:
        return DownloadError(f"The file at {_host(self.url)} changed between two attempts to fetch it.")


def _get(url: str) -> requests.Response:
    try:
        return safe_get(
            url, headers=HEADERS, timeout=(CONNECT_SECONDS, READ_SECONDS), max_redirects=MAX_REDIRECTS, max_bytes=2**62
        )  # its own size cap off: _fetch counts, and tells the client the limit
    except SSRFError as error:
        if isinstance(error.__cause__, socket.gaierror):
            raise HostNotFound(f"The host of audio_url does not resolve: {_host(url)}.") from error
        if str(error).startswith("exceeded maximum redirects"):
            raise AddressRefused(f"audio_url redirects more than {MAX_REDIRECTS} times, beginning at {_host(url)}.") from error
        raise AddressRefused(
            f"audio_url at {_host(url)} was refused: it, or a redirect of it, is not a public http or https address."
        ) from error
    except requests.exceptions.InvalidHeader:
        raise  # the server's mistake; though a ValueError it says nothing of the address
    except (requests.exceptions.InvalidURL, UnicodeError, ValueError) as error:
        raise AddressRefused(f"audio_url at {_host(url)}, or a redirect of it, is not a valid address.") from error


def _check_status(response: requests.Response, url: str) -> None:
    status = response.status_code
    if status in TRANSIENT_STATUS:
        raise requests.HTTPError(f"the server answered {status}")
    if status != 200:
        raise SourceRefused(f"{_host(url)} answered {status} for audio_url; 200 and the file were expected.")


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "an unknown host")[:LONGEST_HOST]


def _reason(error: Exception) -> str:
    """Why, without the URL that requests puts into its messages."""
    if isinstance(error, requests.HTTPError):
        return str(error)
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return "no answer in time"
    return "the connection failed"


def _timed_out(url: str) -> DownloadTimeout:
    return DownloadTimeout(f"audio_url did not arrive from {_host(url)} in the time allowed.")


def _too_large(url: str, max_bytes: int) -> DownloadTooLarge:
    return DownloadTooLarge(f"The file at {_host(url)} is larger than the {max_bytes} bytes allowed.")
