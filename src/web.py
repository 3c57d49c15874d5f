"""One GET of a stranger's URL: every hop to a public address, its head and its decompression bounded.

Each hop is http(s), all addresses of its host are public, and the connection is made to one that was checked
(RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS lifts this for tests and private networks). httpx gives the URLs and headers, httpcore
below it the connections. httpx's client is not used: it reads the bodies of redirects, whatever their size, decompresses
a block at once, whatever it expands to, keeps cookies and logs URLs.
"""

import asyncio
import functools
import logging
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from math import inf
from urllib.parse import urlsplit

import httpcore
import httpx

from addresses import NotPublic, public_addresses
from errors import AddressRefused, HostNotFound, SourceRefused

CONNECT_SECONDS, READ_SECONDS = 10, 30  # for one connection, for one wait for bytes; the sum is for the head of an answer
HEAD_BYTES = 1 << 18  # for an answer's head and the interim answers before it; h11 takes 100 KiB for one of them
BLOCK_BYTES = 1 << 18  # of a body
MAX_REDIRECTS = 30  # podcast hosts chain a tracker after the other
REDIRECTS = (301, 302, 303, 307, 308)
TRANSIENT_STATUS = (408, 425, 429, *range(500, 600))
LONGEST_HOST = 253  # characters; no name in the DNS is longer
HIGHEST_PORT = 65_535
COMPRESSIONS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress")
INFLATABLE = (["gzip"], ["x-gzip"], ["deflate"])
GZIP_OR_ZLIB = zlib.MAX_WBITS + 32  # zlib's code for: whichever of the two it is; what HTTP calls deflate is zlib's format
HEADERS = {
    "User-Agent": "Mozilla/5.0 (compatible; qwen3-asr-worker)",  # some hosts turn unknown clients away
    "Accept": "audio/*, video/*;q=0.9, */*;q=0.5",
    "Accept-Encoding": "identity",  # sound does not compress, and a compressed body would hide its size
    "Connection": "close",
}

logging.getLogger("httpcore").setLevel(logging.WARNING)  # below that it logs where servers redirect to


class Passing(Exception):
    """What failed, in few words; the same request may work soon."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A file that a server has begun to send."""

    length: int | None  # of the body, if the server tells it
    size: int | None  # of the file: the same, unless the body is compressed
    blocks: AsyncIterator[bytes]  # of the file


@asynccontextmanager
async def get(url: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
    """Ask for `url` and follow its redirects; leaving the context closes the connection.

    `headers`: to send beside our own or in their place, but to no other origin (scheme, host, port) than that of `url`.

    Raises AddressRefused, HostNotFound, SourceRefused, and Passing, while the blocks are read as well. Looks names up in
    the default executor of the running loop.
    """
    pool = httpcore.AsyncConnectionPool(ssl_context=_tls(), network_backend=_Network())
    try:
        async with pool, aclosing(await _end_of_redirects(pool, url, headers)) as response:
            answered = httpx.Headers(response.headers)
            compressions = _compressions(answered)
            _check(response.status, compressions, url)
            length, blocks = _length(answered), response.aiter_stream()
            if compressions:
                yield Answer(length, None, _inflated(blocks))
            else:
                yield Answer(length, length, blocks)
    except (httpcore.TimeoutException, TimeoutError) as error:
        raise Passing("no answer in time") from error
    except zlib.error as error:
        raise Passing("the file is not compressed as its header says") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
        raise Passing("the connection failed") from error


def host_of(url: str) -> str:
    """What a message may say of a URL: no path, no query, no password."""
    return (urlsplit(url).hostname or "an unknown host")[:LONGEST_HOST]


@functools.cache  # to read the certificates takes 20 ms
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


async def _end_of_redirects(pool: httpcore.AsyncConnectionPool, url: str, headers: Mapping[str, str]) -> httpcore.Response:
    try:
        first = there = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            response = await _response(pool, there, headers if _origin(there) == _origin(first) else {})
            location = httpx.Headers(response.headers).get("Location")
            if response.status not in REDIRECTS or location is None:
                return response
            await response.aclose()
            there = there.join(location)
    except socket.gaierror as error:
        raise HostNotFound(f"The host of audio_url does not resolve: {host_of(url)}.") from error
    except NotPublic as error:
        raise AddressRefused(
            f"audio_url at {host_of(url)} was refused: it, or a redirect of it, is not a public http or https address."
        ) from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise AddressRefused(f"audio_url at {host_of(url)}, or a redirect of it, is not a valid address.") from error
    raise AddressRefused(f"audio_url redirects more than {MAX_REDIRECTS} times, beginning at {host_of(url)}.")


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


async def _response(pool: httpcore.AsyncConnectionPool, url: httpx.URL, headers: Mapping[str, str]) -> httpcore.Response:
    """The answer of one host, its body still to come. Raises TimeoutError when its head does not end in time."""
    if url.scheme not in ("http", "https") or not url.host:
        raise NotPublic(url.host)
    if url.port and url.port > HIGHEST_PORT:
        raise httpx.InvalidURL(f"there is no port {url.port}")
    request = httpx.Request("GET", url, headers=HEADERS)
    request.headers.update(headers)
    if url.userinfo and "Authorization" not in httpx.Headers(headers):
        next(httpx.BasicAuth(url.username, url.password).auth_flow(request))
    where = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    timeouts = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": READ_SECONDS}
    async with asyncio.timeout(CONNECT_SECONDS + READ_SECONDS):
        response = await pool.handle_async_request(
            httpcore.Request("GET", where, headers=request.headers.raw, extensions={"timeout": timeouts})
        )
    response.extensions["network_stream"].allowed = inf
    return response


class _Network(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked; TLS and the Host header keep the name that they were found by.

    httpcore's own streams would do, but they hand on each TLS record by itself: twice the CPU time.
    """

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: object, **__: object) -> "_Connection":
        addresses = await asyncio.get_running_loop().run_in_executor(None, public_addresses, host, port)
        for address in addresses:
            try:
                async with asyncio.timeout(timeout):
                    return _Connection(*await asyncio.open_connection(address, port, limit=BLOCK_BYTES))
            except OSError as error:  # TimeoutError is one
                if address == addresses[-1]:
                    raise httpcore.ConnectError(str(error)) from error


class _Connection(httpcore.AsyncNetworkStream):
    """A connection that brings HEAD_BYTES unless more is `allowed`: h11 reads interim answers for ever."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer, self.allowed = reader, writer, HEAD_BYTES

    async def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None) -> "_Connection":
        async with _told_as(httpcore.ConnectError, timeout):
            await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        return self

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What has arrived; of a body more than `max_bytes`, for every block costs the same."""
        if self.allowed <= 0:
            raise httpcore.RemoteProtocolError("the head of the answer does not end")
        async with _told_as(httpcore.ReadError, timeout):
            block = await self._reader.read(max_bytes if self.allowed < inf else BLOCK_BYTES)
        self.allowed -= len(block)
        return block

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        async with _told_as(httpcore.WriteError, timeout):
            self._writer.write(buffer)
            await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.transport.abort()  # now: a farewell by TLS may take as long as the server likes

    def get_extra_info(self, info: str) -> object:
        return self._writer.get_extra_info(info)


@asynccontextmanager
async def _told_as(kind: type[httpcore.NetworkError], timeout: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise httpcore.ReadTimeout from error
    except OSError as error:  # ssl.SSLError is one
        raise kind(str(error)) from error


def _check(status: int, compressions: list[str], url: str) -> None:
    if status in TRANSIENT_STATUS:
        raise Passing(f"the server answered {status}")
    if status != 200:
        raise SourceRefused(f"{host_of(url)} answered {status} for audio_url; 200 and the file were expected.")
    if compressions and compressions not in INFLATABLE:
        names = ", ".join(compressions[:3])
        raise SourceRefused(f"{host_of(url)} sent the file of audio_url compressed with {names}; uncompressed or with gzip it is taken.")


def _length(headers: httpx.Headers) -> int | None:
    """As declared, where that is what counts; h11 has refused what is no number."""
    length = headers.get("Content-Length")
    return None if length is None or "Transfer-Encoding" in headers else int(length)


def _compressions(headers: httpx.Headers) -> list[str]:
    """Those that have to be undone; what else servers write into that header, like aws-chunked, changes nothing."""
    return [c for c in map(str.lower, headers.get_list("Content-Encoding", split_commas=True)) if c in COMPRESSIONS]


async def _inflated(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Blocks of BLOCK_BYTES at most, some of them empty, of a body in gzip's or zlib's format; zlib.error if it is not."""
    inflate = None
    async for block in blocks:
        while block:
            if inflate is None or inflate.eof:  # a gzip file is one member after the other
                inflate = zlib.decompressobj(GZIP_OR_ZLIB)
            yield inflate.decompress(block, BLOCK_BYTES)
            block = inflate.unused_data or inflate.unconsumed_tail
    if inflate:
        yield inflate.flush()
        if not inflate.eof:
            raise zlib.error("the end is missing")
