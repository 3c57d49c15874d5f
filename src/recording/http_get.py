"""One GET of a client's URL: its redirects, their cookies, and the limits of both.

Each hop is http(s), all addresses of its host are public, and the connection is made to an address
that was checked (RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS lifts this for tests and private networks).
URLs and headers are httpx's, connections are httpcore's. httpx's client is not used: it reads
redirect bodies of any size, decompresses a block of any expanded size at once, and logs URLs.
"""

import asyncio
import functools
import logging
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager

import httpcore
import httpx
from contract.errors import AddressRefused, HostNotFound, InvalidRequest
from recording.connection import CheckedNetwork
from recording.cookies import add_cookies, new_cookies
from recording.file_response import FileResponse, Rest, TransientError, file_response, host_of
from recording.public_addresses import NotPublic

CONNECT_SECONDS = 10  # per connection
READ_SECONDS = 30  # per read; a response's head may take both together
MAX_REDIRECTS = 30  # podcast hosts chain one tracker after the other
REDIRECT_STATUS = (301, 302, 303, 307, 308)
MAX_PORT = 65_535
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


@asynccontextmanager
async def get(
    url: str, headers: Mapping[str, str], rest: Rest | None = None
) -> AsyncIterator[FileResponse]:
    """Request `url` and follow its redirects; leaving the context closes the connection.

    `headers`: added to HEADERS or replacing them, but sent to no other origin (scheme, host, port)
    than that of `url`. `rest`: the part of the file that is wanted; the whole file may come.

    Raises AddressRefused, HostNotFound, TlsFailed, SourceRefused, WorkerFailed, InvalidRequest for
    a request that HTTP does not allow, and TransientError, which also comes while the blocks are
    read.
    """
    pool = httpcore.AsyncConnectionPool(ssl_context=_tls(), network_backend=CheckedNetwork())
    range_headers = rest.headers if rest else {}
    try:
        following = _follow_redirects(pool, url, headers, range_headers)
        async with pool, aclosing(await following) as response:
            yield file_response(response, url, rest)
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


@functools.cache  # Reading the certificates takes 20 ms.
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


async def _follow_redirects(
    pool: httpcore.AsyncConnectionPool,
    url: str,
    headers: Mapping[str, str],
    range_headers: Mapping[str, str],
) -> httpcore.Response:
    """The first response that is no redirect, with its body still to be read.

    `headers` go to the first origin, `range_headers` to all.
    """
    cookies = new_cookies()
    try:
        first = target = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            is_first_origin = _origin(target) == _origin(first)
            request = _request(target, headers if is_first_origin else {})
            request.headers.update(range_headers)
            add_cookies(request, cookies)
            response = await _send(pool, request)
            location = httpx.Headers(response.headers).get("Location")
            if response.status not in REDIRECT_STATUS or location is None:
                return response
            cookies.extract_cookies(httpx.Response(302, headers=response.headers, request=request))
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


async def _send(pool: httpcore.AsyncConnectionPool, request: httpx.Request) -> httpcore.Response:
    """One request; the body of the response is still to be read.

    Raises TimeoutError when its head does not end in time.
    """
    url = request.url
    address = httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )
    timeouts = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": READ_SECONDS}
    sent = httpcore.Request(
        "GET", address, headers=request.headers.raw, extensions={"timeout": timeouts}
    )
    async with asyncio.timeout(CONNECT_SECONDS + READ_SECONDS):
        response = await pool.handle_async_request(sent)
    response.extensions["network_stream"].allow_body()
    return response


def _request(url: httpx.URL, headers: Mapping[str, str]) -> httpx.Request:
    """Raises NotPublic where `url` is not http or https, httpx.InvalidURL for its port."""
    if url.scheme not in ("http", "https") or not url.host:
        raise NotPublic(url.host)
    if url.port and url.port > MAX_PORT:
        raise httpx.InvalidURL(f"there is no port {url.port}")
    request = httpx.Request("GET", url, headers=HEADERS)
    request.headers.update(headers)
    if url.userinfo and "Authorization" not in httpx.Headers(headers):
        next(httpx.BasicAuth(url.username, url.password).auth_flow(request))
    return request
