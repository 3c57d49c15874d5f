"""Timed words → cues → SRT and WebVTT. Pure functions. Knows nothing of chunks, models or jobs.

The limits are those of most style guides (Netflix, BBC, EBU). A cue has two lines of 42 letters, or of 16 Chinese, Japanese or
Korean characters. It lasts 1 to 7 s, and long enough to read 17 letters or 9 such characters a second, if the speech allows it.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from result.transcript import TERMINATED, Segment

LINE_LETTERS, LINE_WIDE = 42, 16  # in a line: letters of an alphabet, or wide characters
LETTERS_PER_SECOND, WIDE_PER_SECOND = 17, 9
LINES = 2
MIN_SECONDS, MAX_SECONDS = 1.0, 7.0
PAUSE_SECONDS = 1.0  # a longer pause ends a cue
SHORT_PAUSE_SECONDS = 0.3  # a longer pause is a good place to break a full cue
MIN_BREAK_SHARE = 0.4  # share of a full cue's words before which it is not broken
PUNCTUATION_BONUS = (
    0.4  # of a line: how much more uneven two lines may be to break after punctuation
)
CLAUSE_ENDS = tuple(",;:،؛、，；：–—")


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle."""

    start: float  # seconds from the start of the recording
    end: float
    lines: tuple[str, ...]


def to_srt(cues: Sequence[Cue]) -> str:
    """SubRip: numbered cues, a comma before the milliseconds."""
    return "\n".join(
        f"{i}\n{_clock(c.start, ',')} --> {_clock(c.end, ',')}\n" + "\n".join(c.lines) + "\n"
        for i, c in enumerate(cues, 1)
    )


def to_vtt(cues: Sequence[Cue]) -> str:
    """WebVTT (W3C), with &, < and > escaped in the text of the cues."""
    return "WEBVTT\n" + "".join(
        f"\n{_clock(c.start, '.')} --> {_clock(c.end, '.')}\n"
        + "\n".join(map(_escaped, c.lines))
        + "\n"
        for c in cues
    )


def cues_of(words: Sequence[Segment], end: float) -> list[Cue]:
    """The cues of `words`, in order, without overlap, and with the last one ending at `end` seconds at most.

    `words`: in order, with their punctuation. Each word is in exactly one cue and is never broken. A cue starts with its first
    word. A word that is longer than a line has a line of its own.
    """
    runs = list(_runs(words))
    starts = [run[0].start for run in runs[1:]] + [max(end, words[-1].end) if words else 0.0]
    return [
        Cue(run[0].start, _cue_end(run, following), _lines(run))
        for run, following in zip(runs, starts)
    ]


def _cue_end(run: Sequence[Segment], following: float) -> float:
    """The end of the speech, or later, so that the cue can be read; but not after the next cue begins."""
    start, speech_end = run[0].start, run[-1].end
    needed = max(MIN_SECONDS, _seconds_to_read(_joined(run)))
    return min(
        max(speech_end, start + needed), start + max(MAX_SECONDS, run[0].end - start), following
    )


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
    """Whether a cue ends before `following`: at a long pause, or at the end of a sentence if the cue is not too short."""
    if following.start - run[-1].end >= PAUSE_SECONDS:
        return True
    return bool(TERMINATED.search(run[-1].text)) and run[-1].end - run[0].start >= MIN_SECONDS


def _fits_a_cue(run: Sequence[Segment]) -> bool:
    """Whether these words may be one cue."""
    if run[-1].end - run[0].start > MAX_SECONDS or _lines_needed(run) > LINES:
        return False
    return len(run) == 1 or all(_width(word.text) <= 1 for word in run)


def _best_break(run: Sequence[Segment]) -> int:
    """How many words of a full cue to keep: up to the end of a sentence, to the end of a clause, to a short pause, or all."""
    candidates = range(max(1, round(MIN_BREAK_SHARE * len(run))), len(run))
    quality = lambda i: (_break_quality(run[i - 1], run[i]), i)
    best = max(candidates, key=quality, default=len(run))
    return best if best < len(run) and _break_quality(run[best - 1], run[best]) else len(run)


def _break_quality(word: Segment, following: Segment) -> int:
    """Of a break between two words: 3 after a sentence, 2 after a clause, 1 at a short pause, else 0."""
    if TERMINATED.search(word.text):
        return 3
    if word.text.endswith(CLAUSE_ENDS):
        return 2
    return int(following.start - word.end >= SHORT_PAUSE_SECONDS)


def _lines(run: Sequence[Segment]) -> tuple[str, ...]:
    """One line if the text fits, else two of similar width, preferably broken after punctuation."""
    if _lines_needed(run) == 1:
        return (_joined(run),)
    halves = [(_joined(run[:i]), _joined(run[i:]), i) for i in range(1, len(run))]
    fitting = [half for half in halves if _width(half[0]) <= 1 and _width(half[1]) <= 1]
    after_punctuation = lambda i: _break_quality(run[i - 1], run[i]) >= 2
    uneven = lambda half: (
        abs(_width(half[0]) - _width(half[1])) - PUNCTUATION_BONUS * after_punctuation(half[2])
    )
    first, second, _ = min(fitting, key=uneven)
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
    return run[0].text + "".join(
        _between(word, following) + following.text for word, following in zip(run, run[1:])
    )


def _between(word: Segment, following: Segment) -> str:
    return "" if word.offset + len(word.text) == following.offset else " "


def _width(text: str) -> float:
    """The width of a text as a share of a line."""
    wide, letters = _counts(text)
    return wide / LINE_WIDE + letters / LINE_LETTERS


def _seconds_to_read(text: str) -> float:
    wide, letters = _counts(text)
    return wide / WIDE_PER_SECOND + letters / LETTERS_PER_SECOND


@lru_cache(10_000)
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
