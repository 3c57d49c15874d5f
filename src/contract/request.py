"""`job["input"]` → a checked `Request`. Knows the contract's fields and the languages; nothing of the network."""

import binascii
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from contract.errors import InvalidRequest
from contract.languages import LANGUAGES, OTHER_CODES

SEGMENT_LEVELS = ("word", "sentence", "both")
OUTPUT_FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
_BY_NAME = (
    {name.lower(): name for name in LANGUAGES}
    | {code: name for name, code in LANGUAGES.items()}
    | OTHER_CODES
)
_TAG = re.compile(
    r"[a-z]{2,3}(-[a-z0-9]{2,8})*"
)  # BCP 47 in lower case, without its extensions of one letter
MAX_URL_CHARACTERS = 8192  # characters; signed URLs have up to about 2000
MAX_CONTEXT_CHARACTERS = 10_000  # characters
DATA_SCHEME, FILE_SCHEME = "data:", "file://"
MAX_HEADERS, MAX_HEADER_CHARACTERS = (
    32,
    8192,
)  # of a download; the second in characters of the value
OWN_HEADERS = frozenset((  # refused: the download sets them itself, or they would change the meaning of its response
    "accept-encoding", "connection", "content-length", "content-type", "expect", "host", "if-match", "if-modified-since", "if-none-match",
    "if-range", "if-unmodified-since", "keep-alive", "proxy-authorization", "proxy-connection", "range", "te", "trailer", "transfer-encoding",
    "upgrade",
))  # fmt: skip
_HEADER_NAME, _HEADER_VALUE = (
    re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"),
    re.compile(r"[\t\x20-\x7e]*"),
)  # RFC 9110, ASCII only
MAX_SECONDS = 1_000_000  # 11 days; a larger number is probably in milliseconds
MAX_CHANNEL = 511  # FFmpeg decodes at most 512 channels (FF_SANE_NB_CHANNELS)
MAX_TERMS, MAX_TERM_CHARACTERS = (
    256,
    100,
)  # of a vocabulary, the second in characters; more never fit into the tokens for it


@dataclass(frozen=True, slots=True)
class Request:
    """The checked input of a job."""

    audio_url: str = (
        ""  # http, https, or file where the worker allows it; "" if the file is in the request
    )
    audio_base64: bytes = field(default=b"", repr=False)  # that file, decoded; also of a data: URL
    audio_headers: dict[str, str] = field(
        default_factory=dict, repr=False
    )  # of the download's request
    language: str | None = None  # one of LANGUAGES; None: detected in every chunk
    initial_context: str = ""  # the context of the first chunk
    use_previous_context: bool = (
        False  # the end of each chunk's text is the context of the next chunk
    )
    allow_partial: bool = False  # a result with failed_spans instead of a failed job
    segment_level: str = "word"  # one of SEGMENT_LEVELS
    punctuation: bool = False  # words include the punctuation around them
    output_format: str = "json"  # one of OUTPUT_FORMATS
    start: float = 0.0  # of the part to transcribe, in seconds
    end: float | None = None  # of that part, after `start`; None: the end of the recording
    channel: int | None = None  # the only one to transcribe, from 0; None: all, mixed
    vocabulary: tuple[str, ...] = ()  # names and terms, for every chunk


def parse_request(job_input: object, local_files: bool = False) -> Request:
    """The request in a job's input, which may be any JSON value. `local_files`: audio_url may be a path or a file: URL.

    Raises InvalidRequest with the field, its value and what is accepted. Unknown fields are ignored.
    """
    if not isinstance(job_input, dict):
        raise InvalidRequest(
            f"input is {_shown(job_input)}; it must be an object with the field audio_url."
        )
    start, end = _start_and_end(job_input.get("start"), job_input.get("end"))
    url, audio = _url_or_file(
        job_input.get("audio_url"), job_input.get("audio_base64"), local_files
    )
    return Request(
        audio_url=url,
        audio_base64=audio,
        audio_headers=_headers(job_input.get("audio_headers"), url),
        language=_language(job_input.get("language")),
        initial_context=_initial_context(job_input.get("initial_context")),
        use_previous_context=_flag("use_previous_context", job_input.get("use_previous_context")),
        allow_partial=_flag("allow_partial", job_input.get("allow_partial")),
        segment_level=_choice("segment_level", job_input.get("segment_level"), SEGMENT_LEVELS),
        punctuation=_flag("punctuation", job_input.get("punctuation")),
        output_format=_choice("output_format", job_input.get("output_format"), OUTPUT_FORMATS),
        start=start,
        end=end,
        channel=_channel(job_input.get("channel")),
        vocabulary=_vocabulary(job_input.get("vocabulary")),
    )


def _url_or_file(url: object, encoded: object, local_files: bool) -> tuple[str, bytes]:
    """(the URL, the bytes of the file), one of the two empty."""
    if encoded is None:
        if isinstance(url, str) and url.strip()[: len(DATA_SCHEME)].lower() == DATA_SCHEME:
            kind, comma, data = url.strip().partition(",")
            if not comma or not kind.lower().endswith(";base64"):
                raise InvalidRequest(
                    "audio_url is a data: URL without base64; it must be like 'data:audio/mpeg;base64,…'."
                )
            return "", _base64("audio_url", data)
        return _audio_url(url, local_files), b""
    if url is not None:
        raise InvalidRequest(
            "audio_url and audio_base64 are both given; it must be exactly one of them."
        )
    if not isinstance(encoded, str):
        raise InvalidRequest(
            f"audio_base64 is {_shown(encoded)}; it must be a string, the file in base64."
        )
    return "", _base64("audio_base64", encoded)


def _base64(name: str, encoded: str) -> bytes:
    """RFC 4648, strict: no line breaks, only the standard alphabet, exact padding."""
    try:
        data = binascii.a2b_base64(encoded, strict_mode=True)
        if len(encoded) % 4:
            raise ValueError("one = too many, which Python accepts")
    except ValueError:
        raise InvalidRequest(
            f"{name} holds no valid base64; it must be A-Z a-z 0-9 + / with = as padding, without line breaks."
        ) from None
    if not data:
        raise InvalidRequest(f"{name} is empty; it must hold the file in base64.")
    return data


def _headers(value: object, url: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_HEADERS:
        given = f"has {len(value)} members" if isinstance(value, dict) else f"is {_shown(value)}"
        raise InvalidRequest(
            f"audio_headers {given}; it must be an object of at most {MAX_HEADERS} request headers."
        )
    if value and not url.lower().startswith("http"):
        raise InvalidRequest(
            "audio_headers are given without an http or https audio_url; they are for its download only."
        )
    for name, header in value.items():
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidRequest(
                f"audio_headers has the name {_shown(name)}; it must be the name of an HTTP header."
            )
        if name.lower() in OWN_HEADERS:
            raise InvalidRequest(
                f"audio_headers has {name!r}; it must be none of: {', '.join(sorted(OWN_HEADERS))}."
            )
        if (
            not isinstance(header, str)
            or len(header) > MAX_HEADER_CHARACTERS
            or not _HEADER_VALUE.fullmatch(header)
        ):
            raise InvalidRequest(
                f"audio_headers has a value for {name!r} that cannot be sent; it must be a string of at most {MAX_HEADER_CHARACTERS} printable ASCII characters."
            )
    if len({name.lower() for name in value}) < len(value):
        raise InvalidRequest(
            "audio_headers names a header twice; each name must be given once, and case does not matter."
        )
    return dict(value)


def _audio_url(value: object, local_files: bool) -> str:
    wanted = "it must be the http or https URL of a recording"
    if value is None:
        raise InvalidRequest(f"audio_url is missing; {wanted}, unless audio_base64 holds the file.")
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequest(f"audio_url is {_shown(value)}; {wanted}.")
    url = value.strip()
    if len(url) > MAX_URL_CHARACTERS:
        raise InvalidRequest(
            f"audio_url has {len(url)} characters; at most {MAX_URL_CHARACTERS} are allowed."
        )
    is_file = url.lower().startswith(FILE_SCHEME)
    if is_file and not local_files:
        raise InvalidRequest(
            f"audio_url is {_shown(url)}, but local files need ALLOW_LOCAL_FILES=true; {wanted}."
        )
    try:
        parts = urlsplit(url)
        if local_files and "\0" not in url and (is_file or "://" not in url):
            return FILE_SCHEME + str(Path(unquote(parts.path) if is_file else url).absolute())
        valid = (
            parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0
        )
        url.encode()  # a lone surrogate would break every later step
    except ValueError:
        valid = False
    if not valid:
        raise InvalidRequest(f"audio_url is {_shown(_without_secrets(url))}; {wanted}.")
    return url


def _language(value: object) -> str | None:
    if value is None:
        return None
    wanted = (
        f"it must be 'auto', null, or the name or ISO 639 code of one of: {', '.join(LANGUAGES)}"
    )
    if not isinstance(value, str):
        raise InvalidRequest(f"language is {_shown(value)}; {wanted}.")
    name = value.strip().lower().replace("_", "-")
    if name == "auto":
        return None
    if _TAG.fullmatch(
        name
    ):  # zh-Hant-HK, zh-HK, zh: some regions change the language, no script does
        language, *rest = name.split("-")
        known = [
            _BY_NAME[tag]
            for tag in (*(f"{language}-{part}" for part in rest), language)
            if tag in _BY_NAME
        ]
        if known:
            return known[0]
    if name not in _BY_NAME:
        raise InvalidRequest(f"language is {_shown(value)}, which is not known; {wanted}.")
    return _BY_NAME[name]


def _initial_context(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequest(f"initial_context is {_shown(value)}; it must be a string or null.")
    if len(value) > MAX_CONTEXT_CHARACTERS:
        raise InvalidRequest(
            f"initial_context has {len(value)} characters; at most {MAX_CONTEXT_CHARACTERS} are allowed."
        )
    return value.encode("utf-8", "ignore").decode()


def _vocabulary(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidRequest(
            f"vocabulary is {_shown(value)}; it must be a list of strings, or null."
        )
    if len(value) > MAX_TERMS:
        raise InvalidRequest(f"vocabulary has {len(value)} items; at most {MAX_TERMS} are allowed.")
    return tuple(_term(f"vocabulary[{i}]", item) for i, item in enumerate(value))


def _term(field: str, value: object) -> str:
    term = value.encode("utf-8", "ignore").decode().strip() if isinstance(value, str) else ""
    if not term:
        raise InvalidRequest(f"{field} is {_shown(value)}; it must be a string, a name or a term.")
    if len(term) > MAX_TERM_CHARACTERS:
        raise InvalidRequest(
            f"{field} has {len(term)} characters; at most {MAX_TERM_CHARACTERS} are allowed."
        )
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in term):
        raise InvalidRequest(
            f"{field} is {_shown(term)}; it must be on one line and without control characters."
        )
    return term


def _flag(field: str, value: object) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidRequest(f"{field} is {_shown(value)}; it must be true or false.")
    return value


def _choice(field: str, value: object, choices: tuple[str, ...]) -> str:
    """The first choice is the default."""
    if value is None:
        return choices[0]
    if value not in choices:
        raise InvalidRequest(
            f"{field} is {_shown(value)}; it must be one of: {', '.join(choices)}."
        )
    return value


def _start_and_end(start: object, end: object) -> tuple[float, float | None]:
    start, end = _seconds("start", start) or 0.0, _seconds("end", end)
    if end is not None and end <= start:
        raise InvalidRequest(
            f"end is {end:.16g}; it must be more than start, which is {start:.16g}."
        )
    return start, end


def _seconds(field: str, value: object) -> float | None:
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 <= value <= MAX_SECONDS
    ):
        raise InvalidRequest(
            f"{field} is {_shown(value)}; it must be a number of seconds, from 0 to {MAX_SECONDS}."
        )
    return float(value)


def _channel(value: object) -> int | None:
    if value is None or value == "mix":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_CHANNEL:
        raise InvalidRequest(
            f"channel is {_shown(value)}; it must be 'mix' or the number of a channel, from 0 to {MAX_CHANNEL}."
        )
    return value


def _shown(value: object) -> str:
    """A value for an error message: short, on one line, printable, without the secrets of a URL."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
        value = _without_secrets(value) if "://" in value else value
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _without_secrets(url: str) -> str:
    """The URL without user and password, and without query and fragment, which hold signatures and tokens."""
    return re.sub(r"(?<=//)[^/]*@", "", re.split(r"[?#]", url)[0])
