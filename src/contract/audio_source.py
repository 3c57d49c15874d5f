"""The fields that say where the audio is: audio_url, audio_base64, audio_headers.

Knows nothing of the network: whether an address may be contacted is not decided here.
"""

import binascii
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from contract.errors import InvalidRequest
from contract.shown import shown, without_secrets

DATA_SCHEME = "data:"
FILE_SCHEME = "file://"
MAX_URL_CHARACTERS = 8192  # signed URLs have up to about 2000
MAX_HEADERS = 32
MAX_HEADER_CHARACTERS = 8192  # in the value of one header
# Refused: the download sets them itself, or they would change the meaning of its response.
OWN_HEADERS = frozenset(
    (
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
# RFC 9110, ASCII only. A value neither begins nor ends with white space.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"([\x21-\x7e]+([\t ]+[\x21-\x7e]+)*)?")
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")  # from the one for URLs
_LINE_BREAKS = b"\r\n"
_WANTED = "it must be the http or https URL of a recording"


class FileInUrl(bytes):
    """The bytes of a file that audio_url holds itself, as a data: URL."""


def url_or_file(url: object, encoded: object, local_files: bool) -> tuple[str, bytes]:
    """(the URL, the bytes of the file), one of the two empty.

    `url` and `encoded` are the fields audio_url and audio_base64. Raises InvalidRequest.
    """
    if encoded is None:
        if isinstance(url, str) and _scheme_is(DATA_SCHEME, url.strip()):
            return "", FileInUrl(_file_in("audio_url", url))
        return _audio_url(url, local_files), b""
    if url is not None:
        raise InvalidRequest(
            "audio_url and audio_base64 are both given; it must be exactly one of them."
        )
    if not isinstance(encoded, str):
        raise InvalidRequest(
            f"audio_base64 is {shown(encoded)}; it must be a string, the file in base64."
        )
    return "", _file_in("audio_base64", encoded)


def _scheme_is(scheme: str, url: str) -> bool:
    return url[: len(scheme)].lower() == scheme


def _file_in(field: str, text: str) -> bytes:
    """The file in a field: base64 with or without the head of a data: URL."""
    encoded = text.strip()
    if _scheme_is(DATA_SCHEME, encoded):
        head, comma, encoded = encoded.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            wanted = "it must be like 'data:audio/mpeg;base64,…'"
            raise InvalidRequest(f"{field} is a data: URL without base64; {wanted}.")
    return _base64(field, encoded)


def _base64(field: str, encoded: str) -> bytes:
    """RFC 4648 in the forms that common tools write.

    Both alphabets, with line breaks, with or without padding. A space is refused: a form that
    was sent without escapes has spaces in the place of +.
    """
    try:
        digits = encoded.encode("ascii").translate(_STANDARD_ALPHABET, _LINE_BREAKS)
        data = binascii.a2b_base64(_padded(digits), strict_mode=True)
    except ValueError:
        raise InvalidRequest(
            f"{field} holds no valid base64; it must be A-Z a-z 0-9 + / (or - _), "
            "with = as padding or without."
        ) from None
    if not data:
        raise InvalidRequest(f"{field} is empty; it must hold the file in base64.")
    return data


def _padded(digits: bytes) -> bytes:
    """Raises ValueError for more padding than there can be."""
    bare = digits.rstrip(b"=")
    padded = bare + b"=" * (-len(bare) % 4)
    if len(digits) > len(padded):
        raise ValueError("more padding than the last group needs")
    return padded


def _audio_url(value: object, local_files: bool) -> str:
    if value is None:
        raise InvalidRequest(
            f"audio_url is missing; {_WANTED}, unless audio_base64 holds the file."
        )
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequest(f"audio_url is {shown(value)}; {_WANTED}.")
    url = value.strip()
    if len(url) > MAX_URL_CHARACTERS:
        raise InvalidRequest(
            f"audio_url has {len(url)} characters; at most {MAX_URL_CHARACTERS} are allowed."
        )
    if _scheme_is(FILE_SCHEME, url) and not local_files:
        raise InvalidRequest(
            f"audio_url is {shown(url)}, but local files need ALLOW_LOCAL_FILES=true; {_WANTED}."
        )
    try:
        checked = (local_files and _local_file(url)) or _web_url(url)
    except (ValueError, RuntimeError):  # Of ~user, where there is no such user.
        checked = None
    if checked is None:
        raise InvalidRequest(f"audio_url is {shown(without_secrets(url))}; {_WANTED}.")
    return checked


def _local_file(url: str) -> str | None:
    """The file: URL of a path or file: URL; None for another URL.

    ~ is a home folder, as in a shell. Raises ValueError, and RuntimeError where there is none.
    """
    if "\0" in url:
        return None
    path = url
    if _scheme_is(FILE_SCHEME, url):
        parts = urlsplit(url)
        home = parts.netloc if parts.netloc.startswith("~") else ""
        path = home + unquote(parts.path)
    elif "://" in url:
        return None
    return FILE_SCHEME + str(Path(path).expanduser().absolute())


def _web_url(url: str) -> str | None:
    """The URL itself; None where it is not http or https. Raises ValueError."""
    url.encode()  # A lone surrogate would break every later step.
    parts = urlsplit(url)
    is_web = parts.scheme.lower() in ("http", "https")
    return url if is_web and parts.hostname and parts.port != 0 else None


def checked_headers(value: object, url: str) -> dict[str, str]:
    """The field audio_headers, for the download of `url`. Raises InvalidRequest."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_HEADERS:
        given = f"has {len(value)} members" if isinstance(value, dict) else f"is {shown(value)}"
        raise InvalidRequest(
            f"audio_headers {given}; it must be an object of at most {MAX_HEADERS} request headers."
        )
    if value and not url.lower().startswith("http"):
        raise InvalidRequest(
            "audio_headers are given without an http or https audio_url; "
            "they are for its download only."
        )
    for name, header in value.items():
        _check_header(name, header)
    if len({name.lower() for name in value}) < len(value):
        raise InvalidRequest(
            "audio_headers names a header twice; "
            "each name must be given once, and case does not matter."
        )
    return dict(value)


def _check_header(name: str, value: object) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise InvalidRequest(
            f"audio_headers has the name {shown(name)}; it must be the name of an HTTP header."
        )
    if name.lower() in OWN_HEADERS:
        raise InvalidRequest(
            f"audio_headers has {name!r}; it must be none of: {', '.join(sorted(OWN_HEADERS))}."
        )
    if not _can_be_sent(value):
        raise InvalidRequest(
            f"audio_headers has a value for {name!r} that cannot be sent; it must be a string of "
            f"at most {MAX_HEADER_CHARACTERS} printable ASCII characters, "
            "without white space at its ends."
        )


def _can_be_sent(value: object) -> bool:
    if not isinstance(value, str) or len(value) > MAX_HEADER_CHARACTERS:
        return False
    return _HEADER_VALUE.fullmatch(value) is not None
