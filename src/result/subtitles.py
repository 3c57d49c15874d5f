"""Timed words → cues → SRT and WebVTT. Pure functions. Knows nothing of chunks, models or jobs.

The limits are those of most style guides (Netflix, BBC, EBU). A cue has two lines of 42 letters, or
of 16 Chinese, Japanese or Korean characters. It lasts 1 to 7 s, and long enough to read 17 letters
or 9 such characters a second, if the speech allows it.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from result.transcript import TERMINATED, Segment

MAX_LETTERS = 42  # a line holds this many letters of an alphabet
MAX_WIDE = 16  # or this many wide characters
LETTERS_PER_SECOND = 17  # the pace of reading
WIDE_PER_SECOND = 9
MAX_LINES = 2
MIN_SECONDS, MAX_SECONDS = 1.0, 7.0  # the length of a cue
MIN_PAUSE_SECONDS = 1.0  # such a pause ends a cue
MIN_SHORT_PAUSE_SECONDS = 0.3  # such a pause is a good place to break a full cue
MIN_BREAK_SHARE = 0.4  # a full cue keeps at least this share of its words
# To break after punctuation, two lines may be more uneven by this share of a line.
PUNCTUATION_BONUS = 0.4
CLAUSE_ENDS = tuple(",;:،؛、，；：–—")


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle."""

    start: float  # seconds from the start of the recording
    end: float
    lines: tuple[str, ...]


def to_srt(cues: Sequence[Cue]) -> str:
    """SubRip: numbered cues, a comma before the milliseconds."""
    blocks: list[str] = []
    for number, cue in enumerate(cues, 1):
        text = "\n".join(cue.lines)
        blocks.append(f"{number}\n{_times(cue, ',')}\n{text}\n")
    return "\n".join(blocks)


def to_vtt(cues: Sequence[Cue]) -> str:
    """WebVTT (W3C), with &, < and > escaped in the text of the cues."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        text = _escaped("\n".join(cue.lines))
        blocks.append(f"{_times(cue, '.')}\n{text}\n")
    return "\n".join(blocks)


def _times(cue: Cue, point: str) -> str:
    return f"{_clock(cue.start, point)} --> {_clock(cue.end, point)}"


def cues_of(words: Sequence[Segment], end: float) -> list[Cue]:
    """The cues of `words`, in order and without overlap; the last one ends by `end` seconds.

    `words`: in order, with their punctuation. Each word is in exactly one cue and is never broken.
    A cue starts with its first word. A word that is longer than a line has a line of its own.
    """
    if not words:
        return []
    runs = list(_runs(words))
    starts = [run[0].start for run in runs]
    limits = [*starts[1:], max(end, words[-1].end)]
    return [
        Cue(start, _cue_end(run, limit), _lines(run))
        for run, start, limit in zip(runs, starts, limits)
    ]


def _cue_end(run: Sequence[Segment], limit: float) -> float:
    """The end of the speech, or later, so that the cue can be read, but not after `limit`."""
    start = run[0].start
    readable = start + max(MIN_SECONDS, _seconds_to_read(_joined(run)))
    longest = max(start + MAX_SECONDS, run[0].end)
    return min(max(run[-1].end, readable), longest, limit)


def _runs(words: Sequence[Segment]) -> Iterator[list[Segment]]:
    """The words of each cue."""
    run: list[Segment] = []
    for word in words:
        while run and not _fits_a_cue([*run, word]):
            count = _best_break(run)
            yield run[:count]
            run = run[count:]
        if run and _ends_cue(run, word):
            yield run
            run = []
        run.append(word)
    if run:
        yield run


def _ends_cue(run: Sequence[Segment], following: Segment) -> bool:
    """Whether a cue ends before `following`.

    It ends at a long pause, or at the end of a sentence if the cue is not too short.
    """
    if following.start - run[-1].end >= MIN_PAUSE_SECONDS:
        return True
    is_long_enough = run[-1].end - run[0].start >= MIN_SECONDS
    return is_long_enough and bool(TERMINATED.search(run[-1].text))


def _fits_a_cue(run: Sequence[Segment]) -> bool:
    """Whether these words may be one cue."""
    seconds = run[-1].end - run[0].start
    if seconds > MAX_SECONDS or _lines_needed(run) > MAX_LINES:
        return False
    return len(run) == 1 or all(_width(word.text) <= 1 for word in run)


def _best_break(run: Sequence[Segment]) -> int:
    """How many words of a full cue to keep.

    The last of the best places to break it is taken; without a good one all words are kept.
    """
    best, best_quality = len(run), 1
    first = max(1, round(MIN_BREAK_SHARE * len(run)))
    for i in range(first, len(run)):
        quality = _break_quality(run[i - 1], run[i])
        if quality >= best_quality:
            best, best_quality = i, quality
    return best


def _break_quality(word: Segment, following: Segment) -> int:
    """3 for a break after a sentence, 2 after a clause, 1 at a short pause, else 0."""
    if TERMINATED.search(word.text):
        return 3
    if word.text.endswith(CLAUSE_ENDS):
        return 2
    return int(following.start - word.end >= MIN_SHORT_PAUSE_SECONDS)


def _lines(run: Sequence[Segment]) -> tuple[str, ...]:
    """One line if the text fits, else two of similar width, preferably broken after punctuation."""
    if _lines_needed(run) == 1:
        return (_joined(run),)
    breaks: list[tuple[float, str, str]] = []  # (cost, first line, second line)
    for i in range(1, len(run)):
        first, second = _joined(run[:i]), _joined(run[i:])
        widths = _width(first), _width(second)
        if max(widths) > 1:
            continue
        after_punctuation = _break_quality(run[i - 1], run[i]) >= 2
        cost = abs(widths[0] - widths[1]) - PUNCTUATION_BONUS * after_punctuation
        breaks.append((cost, first, second))
    _, first, second = min(breaks, key=lambda found: found[0])
    return first, second


def _lines_needed(run: Sequence[Segment]) -> int:
    """The least number of lines that hold these words."""
    lines, room = 0, 0.0
    for before, word in zip([None, *run], run):
        width = _width(word.text)
        space = _width(_between(before, word)) if before else 0.0
        if lines and space + width <= room:
            room -= space + width
        else:
            lines, room = lines + 1, 1.0 - width
    return lines


def _joined(run: Sequence[Segment]) -> str:
    """The words with a space where the text has white space between them."""
    text = run[0].text
    for word, following in zip(run, run[1:]):
        text += _between(word, following) + following.text
    return text


def _between(word: Segment, following: Segment) -> str:
    """The space between two words of a cue, or "" where the text has none."""
    return "" if word.end_offset == following.offset else " "


def _width(text: str) -> float:
    """The width of a text as a share of a line."""
    wide, letters = _counts(text)
    return wide / MAX_WIDE + letters / MAX_LETTERS


def _seconds_to_read(text: str) -> float:
    """How long a cue must be shown."""
    wide, letters = _counts(text)
    return wide / WIDE_PER_SECOND + letters / LETTERS_PER_SECOND


@lru_cache(maxsize=10_000)
def _counts(text: str) -> tuple[int, int]:
    """(wide characters, other characters), without combining marks, which take no width."""
    characters = [c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf")]
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in characters)
    return wide, len(characters) - wide


def _clock(seconds: float, point: str) -> str:
    """hours:minutes:seconds, `point` and milliseconds."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
