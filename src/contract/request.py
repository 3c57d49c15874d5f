"""`job["input"]` → a checked `Request`. Knows the contract's fields, and nothing of the network."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TypeGuard

from contract.audio_source import checked_headers, url_or_file
from contract.errors import InvalidRequest
from contract.languages import LANGUAGES, language_named, script_named
from contract.other_names import MAX_NAMED, field_meant, warnings_for
from contract.shown import shown
from contract.subtitle_options import SubtitleOptions, subtitle_options

SEGMENT_LEVELS = ("word", "sentence", "both")
OUTPUT_FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
FORMATS_WITHOUT_TIMES = ("json", "text")
EACH = "each"  # of `track` and `channel`: all of them, each by itself
MAX_CONTEXT_CHARACTERS = 10_000
MAX_SECONDS = 1_000_000  # 11 days; a larger number is probably in milliseconds
MAX_CHANNEL = 511  # FFmpeg decodes at most 512 channels (FF_SANE_NB_CHANNELS)
MAX_TRACK = 999  # FFmpeg reads at most 1000 tracks of a file (max_streams)
MAX_TERMS = 256  # more terms of a vocabulary never fit into the tokens for it
MAX_TERM_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Request:
    """The checked input of a job."""

    # http, https, or file where the worker allows it; "" where the file is in the request.
    audio_url: str = ""
    audio_base64: bytes = field(default=b"", repr=False)  # the file in the request, decoded
    audio_headers: dict[str, str] = field(default_factory=dict, repr=False)  # for the download
    language: str | None = None  # one of LANGUAGES; None: detected in every chunk
    initial_context: str = ""  # the context of the first chunk
    # The end of each chunk's text is the context of the next chunk.
    use_previous_context: bool = False
    allow_partial: bool = False  # a result with failed_spans instead of a failed job
    timestamps: bool = True  # times of words; without them the segments are chunks
    segment_level: str = "word"  # one of SEGMENT_LEVELS
    punctuation: bool = False  # words include the punctuation around them
    confidence: bool = False  # words and sentences with the probability of their tokens
    output_format: str = "json"  # one of OUTPUT_FORMATS
    start: float = 0.0  # the part to transcribe begins here, in seconds
    end: float | None = None  # the part ends here; None: at the end of the recording
    track: int | str = "default"  # a number from 0, "default" (as players), "mix" or EACH
    channel: int | str | None = None  # the only one to transcribe, from 0, or EACH; None: the mix
    vocabulary: tuple[str, ...] = ()  # names and terms, for every chunk
    subtitles: SubtitleOptions = SubtitleOptions()  # for output_format srt and vtt
    # Not fields of the input:
    warnings: tuple[str, ...] = ()  # a sentence for each unknown field
    # Of Chinese text, from the field language: one of CHINESE_SCRIPTS; None: as recognised.
    script: str | None = None

    @property
    def needs_tokens(self) -> bool:
        """Whether the output has values that come from the probabilities of the tokens."""
        if self.output_format == "json":
            return self.confidence
        return self.output_format == "verbose_json"


INPUT_FIELDS = tuple(f.name for f in fields(Request) if f.name not in ("warnings", "script"))


def parse_request(job_input: object, local_files: bool = False) -> Request:
    """The request in a job's input, which may be any JSON value.

    `local_files`: audio_url may be a path or a file: URL. Raises InvalidRequest with the field, its
    value and what is accepted. An unknown field changes nothing; the request's warnings name it. An
    empty string counts as not given, because forms send one for each field that was not filled in.
    """
    if not isinstance(job_input, dict):
        raise InvalidRequest(
            f"input is {shown(job_input)}; it must be an object with the field audio_url."
        )
    given = {name: value for name, value in job_input.items() if value != ""}.get
    unknown = [name for name in job_input if name not in INPUT_FIELDS]
    if given("audio_url") is None and given("audio_base64") is None:
        _refuse_audio_by_another_name(unknown)
    timestamps = _flag("timestamps", given("timestamps"), default=True)
    if not timestamps:
        _refuse_what_needs_timestamps(given)
    start, end = _start_and_end(given("start"), given("end"))
    track, channel = _track_and_channel(given("track"), given("channel"))
    output_format = _choice("output_format", given("output_format"), OUTPUT_FORMATS)
    url, audio = url_or_file(given("audio_url"), given("audio_base64"), local_files)
    return Request(
        audio_url=url,
        audio_base64=audio,
        audio_headers=checked_headers(given("audio_headers"), url),
        language=_language(given("language")),
        initial_context=_initial_context(given("initial_context")),
        use_previous_context=_flag("use_previous_context", given("use_previous_context")),
        allow_partial=_flag("allow_partial", given("allow_partial")),
        timestamps=timestamps,
        segment_level=_choice("segment_level", given("segment_level"), SEGMENT_LEVELS),
        punctuation=_flag("punctuation", given("punctuation")),
        output_format=output_format,
        start=start,
        end=end,
        track=track,
        channel=channel,
        vocabulary=_vocabulary(given("vocabulary")),
        subtitles=subtitle_options(given("subtitles"), output_format),
        warnings=warnings_for(unknown, INPUT_FIELDS),
        script=_script(given("language")),
        confidence=_flag("confidence", given("confidence")),
    )


def _refuse_audio_by_another_name(unknown: list[str]) -> None:
    """Raise InvalidRequest where an unknown field seems to hold the recording or its URL."""
    for name in unknown[:MAX_NAMED]:
        field = field_meant(name, INPUT_FIELDS)
        if field in ("audio_url", "audio_base64"):
            raise InvalidRequest(
                f"audio_url is missing; the field {shown(name)} is called {field} here. "
                "It must be the http or https URL of a recording as audio_url, "
                "or the file in base64 as audio_base64."
            )


def _language(value: object) -> str | None:
    if value is None:
        return None
    names = ", ".join(LANGUAGES)
    wanted = f"it must be 'auto', null, or the name or ISO 639 code of one of: {names}"
    if not isinstance(value, str):
        raise InvalidRequest(f"language is {shown(value)}; {wanted}.")
    name = value.strip()
    if name.lower() == "auto":
        return None
    language = language_named(name)
    if language is None:
        raise InvalidRequest(f"language is {shown(value)}, which is not known; {wanted}.")
    return language


def _script(language: object) -> str | None:
    """The script in a language that `_language` accepts."""
    if not isinstance(language, str):
        return None
    try:
        return script_named(language.strip())
    except ValueError as error:
        raise InvalidRequest(
            f"language is {shown(language)}; the script of Chinese must be Hans or Hant, "
            f"and {error} is not possible."
        ) from None


def _initial_context(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequest(f"initial_context is {shown(value)}; it must be a string or null.")
    if len(value) > MAX_CONTEXT_CHARACTERS:
        raise InvalidRequest(
            f"initial_context has {len(value)} characters; "
            f"at most {MAX_CONTEXT_CHARACTERS} are allowed."
        )
    return _without_surrogates(value)


def _vocabulary(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidRequest(
            f"vocabulary is {shown(value)}; it must be a list of strings, or null."
        )
    if len(value) > MAX_TERMS:
        raise InvalidRequest(f"vocabulary has {len(value)} items; at most {MAX_TERMS} are allowed.")
    return tuple(_term(f"vocabulary[{i}]", item) for i, item in enumerate(value))


def _term(field: str, value: object) -> str:
    term = _without_surrogates(value).strip() if isinstance(value, str) else ""
    if not term:
        raise InvalidRequest(f"{field} is {shown(value)}; it must be a string, a name or a term.")
    if len(term) > MAX_TERM_CHARACTERS:
        raise InvalidRequest(
            f"{field} has {len(term)} characters; at most {MAX_TERM_CHARACTERS} are allowed."
        )
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in term):
        raise InvalidRequest(
            f"{field} is {shown(term)}; it must be on one line and without control characters."
        )
    return term


def _without_surrogates(text: str) -> str:
    """Lone surrogates, which JSON allows, are dropped: no later step can encode them."""
    return text.encode("utf-8", "ignore").decode()


def _refuse_what_needs_timestamps(given: Callable[[str], object]) -> None:
    """Raise InvalidRequest for the fields that say something about words and their times."""
    for name in ("segment_level", "punctuation"):
        if given(name) is not None:
            raise InvalidRequest(
                f"{name} is {shown(given(name))}; with timestamps false there are no words, so "
                "it must be left out."
            )
    if given("output_format") not in (None, *FORMATS_WITHOUT_TIMES):
        raise InvalidRequest(
            f"output_format is {shown(given('output_format'))}; with timestamps false it must be "
            f"one of: {', '.join(FORMATS_WITHOUT_TIMES)}."
        )


def _flag(field: str, value: object, default: bool = False) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        is_quoted = isinstance(value, str) and value.strip().lower() in ("true", "false")
        wanted = "true or false, without quotes" if is_quoted else "true or false"
        raise InvalidRequest(f"{field} is {shown(value)}; it must be {wanted}.")
    return value


def _choice(field: str, value: object, choices: tuple[str, ...]) -> str:
    """The first choice is the default."""
    if value is None:
        return choices[0]
    if not isinstance(value, str) or value not in choices:
        raise InvalidRequest(f"{field} is {shown(value)}; it must be one of: {', '.join(choices)}.")
    return value


def _start_and_end(start: object, end: object) -> tuple[float, float | None]:
    first = _seconds("start", start) or 0.0
    last = _seconds("end", end)
    if last is not None and last <= first:
        raise InvalidRequest(
            f"end is {last:.16g}; it must be more than start, which is {first:.16g}."
        )
    return first, last


def _seconds(field: str, value: object) -> float | None:
    if value is None:
        return None
    number = None if isinstance(value, bool) else value
    if isinstance(number, (int, float)) and 0 <= number <= MAX_SECONDS:
        return float(number)
    raise InvalidRequest(
        f"{field} is {shown(value)}; it must be a number of seconds, from 0 to {MAX_SECONDS}."
    )


def _track_and_channel(track: object, channel: object) -> tuple[int | str, int | str | None]:
    which, only = _track(track), _channel(channel)
    if which in ("mix", EACH) and only is not None:
        raise InvalidRequest(
            f"channel is {only!r} and track is {which!r}; a channel can be chosen of one track "
            "only, so track must be a number or 'default'."
        )
    return which, only


def _track(value: object) -> int | str:
    if value is None:
        return "default"
    if value in ("default", "mix", EACH):
        return str(value)
    if not _is_number(value, MAX_TRACK):
        raise InvalidRequest(
            f"track is {shown(value)}; it must be 'default', 'mix', 'each' or the number of an "
            f"audio track, from 0 to {MAX_TRACK}."
        )
    return value


def _channel(value: object) -> int | str | None:
    if value is None or value == "mix":
        return None
    if value == EACH:
        return EACH
    if not _is_number(value, MAX_CHANNEL):
        raise InvalidRequest(
            f"channel is {shown(value)}; "
            f"it must be 'mix', 'each' or the number of a channel, from 0 to {MAX_CHANNEL}."
        )
    return value


def _is_number(value: object, last: int) -> TypeGuard[int]:
    """Whether a value counts from 0 to `last`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= last
