"""One GET of a client's URL: public addresses only, with limits on redirects, response heads and decompression.

Each hop is http(s), all addresses of its host are public, and the connection is made to an address that was checked
(RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS lifts this for tests and private networks). URLs and headers are httpx's, connections are
httpcore's. httpx's client is not used: it reads redirect bodies of any size, decompresses a block of any expanded size at once,
keeps cookies and logs URLs.
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
from contract.errors import AddressRefused, HostNotFound, SourceRefused, WorkerFailed, is_shortage
from recording.public_addresses import NotPublic, look_up

CONNECT_SECONDS, READ_SECONDS = (
    10,
    30,
)  # for one connection, for one wait for bytes; the sum is for the head of a response
HEAD_BYTES = (
    1 << 18
)  # for the head of a response and the interim responses (1xx) before it; h11 takes 100 KiB for one of them
BLOCK_BYTES = 1 << 18  # of a body
MAX_REDIRECTS = 30  # podcast hosts chain one tracker after the other
REDIRECT_STATUS = (301, 302, 303, 307, 308)
TRANSIENT_STATUS = (408, 425, 429, *range(500, 600))
MAX_HOST_CHARACTERS = 253  # characters; no name in the DNS is longer
MAX_PORT = 65_535
COMPRESSIONS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress")
SUPPORTED_COMPRESSIONS = (["gzip"], ["x-gzip"], ["deflate"])
MAX_PADDING_BYTES = 1 << 20  # by which a compressed body may be larger than its content
GZIP_OR_ZLIB = (
    zlib.MAX_WBITS + 32
)  # zlib's code for "detect which"; HTTP's deflate is zlib's format
HEADERS = {
    "User-Agent": "Mozilla/5.0 (compatible; qwen3-asr-worker)",  # some hosts refuse unknown clients
    "Accept": "audio/*, video/*;q=0.9, */*;q=0.5",
    "Accept-Encoding": "identity",  # audio does not compress, and a compressed body hides its size
    "Connection": "close",
}

logging.getLogger("httpcore").setLevel(
    logging.WARNING
)  # its lower levels log the targets of redirects


class TransientError(Exception):
    """A failure, in few words, after which the same request may succeed soon."""


@dataclass(frozen=True, slots=True)
class FileResponse:
    """A file that a server has begun to send."""

    length: int | None  # bytes of the body, None where undeclared
    size: int | None  # bytes of the file: the same, None where the body is compressed
    blocks: AsyncIterator[bytes]  # of the file


@asynccontextmanager
async def get(url: str, headers: Mapping[str, str]) -> AsyncIterator[FileResponse]:
    """Request `url` and follow its redirects; leaving the context closes the connection.

    `headers`: added to HEADERS or replacing them, but sent to no other origin (scheme, host, port) than that of `url`.

    Raises AddressRefused, HostNotFound, SourceRefused, WorkerFailed, and TransientError, which also
    comes while the blocks are read.
    """
    pool = httpcore.AsyncConnectionPool(ssl_context=_tls(), network_backend=_CheckedNetwork())
    try:
        async with pool, aclosing(await _follow_redirects(pool, url, headers)) as response:
            received = httpx.Headers(response.headers)
            compressions = _compressions(received)
            _check_response(response.status, compressions, url)
            length, blocks = _content_length(received), response.aiter_stream()
            if compressions:
                yield FileResponse(length, None, _decompressed(blocks))
            else:
                yield FileResponse(length, length, blocks)
    except (httpcore.TimeoutException, TimeoutError) as error:
        raise TransientError("no answer in time") from error
    except zlib.error as error:
        raise TransientError("the file is not compressed as its header says") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
        raise TransientError("the connection failed") from error


def host_of(url: str) -> str:
    """The part of a URL that messages may show: no path, no query, no password."""
    return (urlsplit(url).hostname or "an unknown host")[:MAX_HOST_CHARACTERS]


@functools.cache  # reading the certificates takes 20 ms
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


async def _follow_redirects(
    pool: httpcore.AsyncConnectionPool, url: str, headers: Mapping[str, str]
) -> httpcore.Response:
    try:
        first = target = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            response = await _send(
                pool, target, headers if _origin(target) == _origin(first) else {}
            )
            location = httpx.Headers(response.headers).get("Location")
            if response.status not in REDIRECT_STATUS or location is None:
                return response
            await response.aclose()
            target = target.join(location)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise TransientError("the look-up of its name failed") from error
        raise HostNotFound(f"The host of audio_url does not resolve: {host_of(url)}.") from error
    except NotPublic as error:
        raise AddressRefused(
            f"audio_url at {host_of(url)} was refused: it, or a redirect of it, is not a public http or https address."
        ) from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise AddressRefused(
            f"audio_url at {host_of(url)}, or a redirect of it, is not a valid address."
        ) from error
    raise AddressRefused(
        f"audio_url redirects more than {MAX_REDIRECTS} times, beginning at {host_of(url)}."
    )


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


async def _send(
    pool: httpcore.AsyncConnectionPool, url: httpx.URL, headers: Mapping[str, str]
) -> httpcore.Response:
    """One request; the body of the response is still to be read. Raises TimeoutError when its head does not end in time."""
    if url.scheme not in ("http", "https") or not url.host:
        raise NotPublic(url.host)
    if url.port and url.port > MAX_PORT:
        raise httpx.InvalidURL(f"there is no port {url.port}")
    request = httpx.Request("GET", url, headers=HEADERS)
    request.headers.update(headers)
    if url.userinfo and "Authorization" not in httpx.Headers(headers):
        next(httpx.BasicAuth(url.username, url.password).auth_flow(request))
    address = httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )
    timeouts = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": READ_SECONDS}
    async with asyncio.timeout(CONNECT_SECONDS + READ_SECONDS):
        response = await pool.handle_async_request(
            httpcore.Request(
                "GET", address, headers=request.headers.raw, extensions={"timeout": timeouts}
            )
        )
    response.extensions["network_stream"].bytes_allowed = inf
    return response


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked. TLS and the Host header still use the name that was looked up.

    Not httpcore's own backend: its streams return each TLS record alone, which takes twice the CPU time.
    """

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *_: object, **__: object
    ) -> "_Connection":
        try:
            async with asyncio.timeout(timeout):
                addresses = await look_up(host, port)
            return await _connection_to_one(addresses, port, timeout)
        except socket.gaierror:
            raise
        except OSError as error:  # TimeoutError is one
            if is_shortage(error):
                sentence = f"The worker could not open a connection: {error.strerror}."
                raise WorkerFailed(sentence) from error
            raise httpcore.ConnectError(str(error)) from error


async def _connection_to_one(
    addresses: list[str], port: int, timeout: float | None
) -> "_Connection":
    """Raises the OSError of the last address where none of them answers."""
    for address in addresses:
        try:
            async with asyncio.timeout(timeout):
                streams = await asyncio.open_connection(address, port, limit=BLOCK_BYTES)
            return _Connection(*streams)
        except OSError:
            if address == addresses[-1]:
                raise
    raise OSError("the host has no address")


class _Connection(httpcore.AsyncNetworkStream):
    """Reads at most HEAD_BYTES, unless `bytes_allowed` is raised: h11 itself reads interim responses without end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer, self.bytes_allowed = reader, writer, HEAD_BYTES

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> "_Connection":
        async with _translate_errors(httpcore.ConnectError, timeout):
            await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        return self

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Bytes that have arrived. Blocks of a body may be larger than `max_bytes`, because the cost is per block."""
        if self.bytes_allowed <= 0:
            raise httpcore.RemoteProtocolError("the head of the answer does not end")
        async with _translate_errors(httpcore.ReadError, timeout):
            block = await self._reader.read(max_bytes if self.bytes_allowed < inf else BLOCK_BYTES)
        self.bytes_allowed -= len(block)
        return block

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        async with _translate_errors(httpcore.WriteError, timeout):
            self._writer.write(buffer)
            await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.transport.abort()  # not close(): a server can delay the closing handshake of TLS

    def get_extra_info(self, info: str) -> object:
        return self._writer.get_extra_info(info)


@asynccontextmanager
async def _translate_errors(
    kind: type[httpcore.NetworkError], timeout: float | None
) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise httpcore.ReadTimeout from error
    except OSError as error:  # ssl.SSLError is one
        raise kind(str(error)) from error


def _check_response(status: int, compressions: list[str], url: str) -> None:
    if status in TRANSIENT_STATUS:
        raise TransientError(f"the server answered {status}")
    if status != 200:
        raise SourceRefused(
            f"{host_of(url)} answered {status} for audio_url; it must answer 200 with the file."
        )
    if compressions and compressions not in SUPPORTED_COMPRESSIONS:
        names = ", ".join(compressions[:3])
        raise SourceRefused(
            f"{host_of(url)} sent the file of audio_url compressed with {names}; it must be uncompressed or in gzip."
        )


def _content_length(headers: httpx.Headers) -> int | None:
    """Bytes; None where undeclared or replaced by Transfer-Encoding. Always a number: h11 refuses others."""
    length = headers.get("Content-Length")
    return None if length is None or "Transfer-Encoding" in headers else int(length)


def _compressions(headers: httpx.Headers) -> list[str]:
    """Those in Content-Encoding; other values there, like aws-chunked, change nothing."""
    return [
        c
        for c in map(str.lower, headers.get_list("Content-Encoding", split_commas=True))
        if c in COMPRESSIONS
    ]


async def _decompressed(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A body in gzip's or zlib's format → blocks of at most BLOCK_BYTES, some of them empty.

    Raises zlib.error for other bodies, and for one that goes on without content: with empty
    members, with empty blocks, or with a header that does not end.
    """
    decompressor = None
    padding = 0  # bytes received, less those of the content
    async for block in blocks:
        padding += len(block)
        while block:
            if decompressor is None or decompressor.eof:  # a gzip file may have several members
                decompressor = zlib.decompressobj(GZIP_OR_ZLIB)
            content = decompressor.decompress(block, BLOCK_BYTES)
            padding -= len(content)
            yield content
            block = decompressor.unused_data or decompressor.unconsumed_tail
        if padding > MAX_PADDING_BYTES:
            raise zlib.error("more than a compressed body can need without content")
    if decompressor:
        yield decompressor.flush()
        if not decompressor.eof:
            raise zlib.error("the end is missing")
