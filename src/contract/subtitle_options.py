"""The field subtitles: limits of the lines and of the times of SRT and WebVTT subtitles."""

from dataclasses import dataclass
from typing import Any

from contract.errors import InvalidRequest
from contract.other_names import field_meant
from contract.shown import shown

SUBTITLE_FORMATS = ("srt", "vtt")
BOUNDS: dict[str, tuple[int, int]] = {
    "max_line_width": (1, 200),
    "max_line_width_cjk": (1, 100),
    "max_line_count": (1, 5),
    "min_duration": (0, 10),
    "max_duration": (1, 30),
}
IN_SECONDS = ("min_duration", "max_duration")
_WHOLE_NUMBERS = (int,), "a whole number"
_NUMBERS = (int, float), "a number of seconds"


@dataclass(frozen=True, slots=True)
class SubtitleOptions:
    """The limits of a subtitle. The defaults are those of most style guides: Netflix, BBC, EBU."""

    max_line_width: int = 42  # a line holds this many letters of an alphabet
    max_line_width_cjk: int = 16  # or this many Chinese, Japanese or Korean characters
    max_line_count: int = 2
    min_duration: float = 1.0  # seconds, where the next subtitle leaves the time
    max_duration: float = 7.0  # seconds, where no word is longer


def subtitle_options(value: object, output_format: str) -> SubtitleOptions:
    """The options in the field subtitles; what is absent or null has its default.

    Raises InvalidRequest with the option, its value and what is accepted, or where `output_format`
    has no subtitles.
    """
    if value is None:
        return SubtitleOptions()
    names = ", ".join(BOUNDS)
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"subtitles is {shown(value)}; it must be null, or an object with any of: {names}."
        )
    if output_format not in SUBTITLE_FORMATS:
        raise InvalidRequest(
            f"subtitles is given, but output_format is {shown(output_format)}; "
            f"it must be one of: {', '.join(SUBTITLE_FORMATS)}."
        )
    given: dict[str, Any] = {}
    for name, option in value.items():
        _check_name(name)
        if option is not None:
            _check_value(name, option)
            given[name] = option
    options = SubtitleOptions(**given)
    if options.min_duration > options.max_duration:
        raise InvalidRequest(
            f"subtitles.min_duration is {options.min_duration:.16g}; "
            f"it must be at most max_duration, which is {options.max_duration:.16g}."
        )
    return options


def _check_name(name: str) -> None:
    if name in BOUNDS:
        return
    meant = (field_meant(name, BOUNDS) or "").removeprefix("subtitles.")
    hint = f" {meant} may be meant." if meant in BOUNDS else ""
    raise InvalidRequest(
        f"subtitles has the unknown option {shown(name)}; "
        f"it must be one of: {', '.join(BOUNDS)}.{hint}"
    )


def _check_value(name: str, value: object) -> None:
    least, most = BOUNDS[name]
    kinds, wanted = _NUMBERS if name in IN_SECONDS else _WHOLE_NUMBERS
    number = None if isinstance(value, bool) else value
    if isinstance(number, kinds) and least <= number <= most:
        return
    raise InvalidRequest(
        f"subtitles.{name} is {shown(value)}; it must be {wanted}, from {least} to {most}."
    )
