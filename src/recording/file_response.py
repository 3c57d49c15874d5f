"""The response to a GET of a file: is it the file, which part of it, and when to ask again.

Knows no connections and no redirects.
"""

import email.utils
import re
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpcore
import httpx
from contract.errors import SourceRefused
from recording.connection import BLOCK_BYTES

TRANSIENT_STATUS = (408, 425, 429, *range(500, 600))
MAX_HOST_CHARACTERS = 253  # no name in the DNS is longer
COMPRESSIONS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress")
SUPPORTED_COMPRESSIONS = (["gzip"], ["x-gzip"], ["deflate"])
MAX_PADDING_BYTES = 1 << 20  # a compressed body may be larger than its content by this
GZIP_OR_ZLIB = zlib.MAX_WBITS + 32  # zlib detects which; HTTP's deflate is zlib's format
# RFC 9110, of a body that has one range: its first byte, its last, and the size of the file.
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII | re.IGNORECASE)


class TransientError(Exception):
    """A failure, in few words, after which the same request may succeed soon."""

    def __init__(self, message: str, retry_after: float = 0):
        """`retry_after`: seconds that the server asks to wait."""
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Rest:
    """The part of a file from byte `start` on, if it is still the file of `validator`."""

    start: int
    validator: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Range": f"bytes={self.start}-", "If-Range": self.validator}


@dataclass(frozen=True, slots=True)
class FileResponse:
    """A file, or the rest of it, that a server has begun to send."""

    start: int  # where the body begins in the file, in bytes
    length: int | None  # bytes of the body; None where undeclared
    size: int | None  # bytes of the file; None where undeclared, or where the body is compressed
    validator: str  # what a request for the rest must name; "" where there can be none
    blocks: AsyncIterator[bytes]  # the body, decompressed


def host_of(url: str) -> str:
    """The part of a URL that messages may show: no path, no query, no password."""
    return (urlsplit(url).hostname or "an unknown host")[:MAX_HOST_CHARACTERS]


def file_response(response: httpcore.Response, url: str, rest: Rest | None) -> FileResponse:
    """The answer to a request for the file at `url`, or for the `rest` of it.

    Raises TransientError or SourceRefused where the server does not send the file, and
    TransientError where it does not send the rest, because it may send the file.
    """
    headers = httpx.Headers(response.headers)
    compressions = _compressions(headers)
    start, size = _start_and_size(response.status, headers, url, rest)
    _check_compressions(compressions, url)
    length, blocks = _content_length(headers), response.aiter_stream()
    if compressions:
        return FileResponse(start, length, None, "", _decompressed(blocks))
    return FileResponse(start, length, size, _validator(headers), blocks)


def _start_and_size(
    status: int, headers: httpx.Headers, url: str, rest: Rest | None
) -> tuple[int, int | None]:
    """(where the body begins in the file, bytes of the file); raises as `file_response`."""
    if status == 200:
        return 0, _content_length(headers)
    first_byte, size = _content_range(headers) if status == 206 else (None, None)
    if first_byte is not None and first_byte <= (rest.start if rest else 0):
        return first_byte, size
    if status in TRANSIENT_STATUS or rest:
        raise TransientError(f"the server answered {status}", _retry_after(headers))
    raise SourceRefused(
        f"{host_of(url)} answered {status} for audio_url; it must answer 200 with the file."
    )


def _content_range(headers: httpx.Headers) -> tuple[int | None, int | None]:
    """(the first byte of the body, bytes of the file); None where the header does not say it."""
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    return (int(found[1]), int(found[3])) if found else (None, None)


def _retry_after(headers: httpx.Headers) -> float:
    """Seconds, at least 0; 0 where the header is absent or not valid."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _validator(headers: httpx.Headers) -> str:
    """A strong ETag or the time of the last change, for If-Range (RFC 9110)."""
    tag: str = headers.get("ETag", "")
    changed: str = headers.get("Last-Modified", "")
    return tag if tag.startswith('"') else changed


def _check_compressions(compressions: list[str], url: str) -> None:
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
