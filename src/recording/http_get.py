"""One GET of a client's URL, with limits on redirects, response heads and decompression.

Each hop is http(s), all addresses of its host are public, and the connection is made to an address
that was checked (RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS lifts this for tests and private networks).
URLs and headers are httpx's, connections are httpcore's. httpx's client is not used: it reads
redirect bodies of any size, decompresses a block of any expanded size at once, keeps cookies and
logs URLs.
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
from urllib.parse import urlsplit

import httpcore
import httpx
from contract.errors import AddressRefused, HostNotFound, InvalidRequest, SourceRefused
from recording.connection import BLOCK_BYTES, CheckedNetwork
from recording.public_addresses import NotPublic

CONNECT_SECONDS = 10  # per connection
READ_SECONDS = 30  # per read; a response's head may take both together
MAX_REDIRECTS = 30  # podcast hosts chain one tracker after the other
REDIRECT_STATUS = (301, 302, 303, 307, 308)
TRANSIENT_STATUS = (408, 425, 429, *range(500, 600))
MAX_HOST_CHARACTERS = 253  # no name in the DNS is longer
MAX_PORT = 65_535
COMPRESSIONS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress")
SUPPORTED_COMPRESSIONS = (["gzip"], ["x-gzip"], ["deflate"])
MAX_PADDING_BYTES = 1 << 20  # a compressed body may be larger than its content by this
GZIP_OR_ZLIB = zlib.MAX_WBITS + 32  # zlib detects which; HTTP's deflate is zlib's format
HEADERS = {
    # Some hosts refuse unknown clients.
    "User-Agent": "Mozilla/5.0 (compatible; qwen3-asr-worker)",
    "Accept": "audio/*, video/*;q=0.9, */*;q=0.5",
    # Audio does not compress, and a compressed body hides its size.
    "Accept-Encoding": "identity",
    "Connection": "close",
}

# Its lower levels log the targets of redirects.
logging.getLogger("httpcore").setLevel(logging.WARNING)


class TransientError(Exception):
    """A failure, in few words, after which the same request may succeed soon."""


@dataclass(frozen=True, slots=True)
class FileResponse:
    """A file that a server has begun to send."""

    length: int | None  # bytes of the body; None where undeclared
    size: int | None  # bytes of the file; None where undeclared, or where the body is compressed
    blocks: AsyncIterator[bytes]  # the file, decompressed


@asynccontextmanager
async def get(url: str, headers: Mapping[str, str]) -> AsyncIterator[FileResponse]:
    """Request `url` and follow its redirects; leaving the context closes the connection.

    `headers`: added to HEADERS or replacing them, but sent to no other origin (scheme, host, port)
    than that of `url`.

    Raises AddressRefused, HostNotFound, SourceRefused, WorkerFailed, InvalidRequest for a request
    that HTTP does not allow, and TransientError, which also comes while the blocks are read.
    """
    pool = httpcore.AsyncConnectionPool(ssl_context=_tls(), network_backend=CheckedNetwork())
    try:
        async with pool, aclosing(await _follow_redirects(pool, url, headers)) as response:
            yield _file_response(response, url)
    except httpcore.LocalProtocolError as error:
        raise InvalidRequest(
            f"The request to {host_of(url)} cannot be sent: "
            "audio_url and audio_headers must hold only what HTTP allows."
        ) from error
    except (httpcore.TimeoutException, TimeoutError) as error:
        raise TransientError("no answer in time") from error
    except zlib.error as error:
        raise TransientError("the file is not compressed as its header says") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
        raise TransientError("the connection failed") from error


def host_of(url: str) -> str:
    """The part of a URL that messages may show: no path, no query, no password."""
    return (urlsplit(url).hostname or "an unknown host")[:MAX_HOST_CHARACTERS]


@functools.cache  # Reading the certificates takes 20 ms.
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


async def _follow_redirects(
    pool: httpcore.AsyncConnectionPool, url: str, headers: Mapping[str, str]
) -> httpcore.Response:
    """The first response that is no redirect, with its body still to be read."""
    try:
        first = target = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            is_first_origin = _origin(target) == _origin(first)
            response = await _send(pool, target, headers if is_first_origin else {})
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
            f"audio_url at {host_of(url)} was refused: it, or a redirect of it, "
            "is not a public http or https address."
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
    """One request; the body of the response is still to be read.

    Raises TimeoutError when its head does not end in time.
    """
    request = _request(url, headers)
    async with asyncio.timeout(CONNECT_SECONDS + READ_SECONDS):
        response = await pool.handle_async_request(request)
    response.extensions["network_stream"].allow_body()
    return response


def _request(url: httpx.URL, headers: Mapping[str, str]) -> httpcore.Request:
    """Raises NotPublic where `url` is not http or https, httpx.InvalidURL for its port."""
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
    return httpcore.Request(
        "GET", address, headers=request.headers.raw, extensions={"timeout": timeouts}
    )


def _file_response(response: httpcore.Response, url: str) -> FileResponse:
    """Raises TransientError or SourceRefused where the server does not send the file."""
    headers = httpx.Headers(response.headers)
    compressions = _compressions(headers)
    _check_response(response.status, compressions, url)
    length, blocks = _content_length(headers), response.aiter_stream()
    if compressions:
        return FileResponse(length, None, _decompressed(blocks))
    return FileResponse(length, length, blocks)


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
            f"{host_of(url)} sent the file of audio_url compressed with {names}; "
            "it must be uncompressed or in gzip."
        )


def _content_length(headers: httpx.Headers) -> int | None:
    """Bytes; None where undeclared or replaced by Transfer-Encoding.

    The value is always a number, because h11 refuses others.
    """
    length = headers.get("Content-Length")
    return None if length is None or "Transfer-Encoding" in headers else int(length)


def _compressions(headers: httpx.Headers) -> list[str]:
    """Those in Content-Encoding; other values there, like aws-chunked, change nothing."""
    encodings = headers.get_list("Content-Encoding", split_commas=True)
    return [name.lower() for name in encodings if name.lower() in COMPRESSIONS]


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
            if decompressor is None or decompressor.eof:  # A gzip file may have several members.
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
