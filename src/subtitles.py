"""Timed words → cues → SRT and WebVTT. Pure functions; knows nothing of chunks, models or jobs.

The limits are those of most style guides (Netflix, BBC, EBU): two lines of 42 letters, or of 16 Chinese, Japanese or Korean
characters; 1 to 7 s a cue; 17 letters or 9 such characters a second, where the speech leaves time for it.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from transcript import TERMINATED, Segment

LINE_LETTERS, LINE_WIDE = 42, 16  # in a line: of an alphabet; of characters twice as wide
LETTERS_PER_SECOND, WIDE_PER_SECOND = 17, 9
LINES = 2
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 7.0
PAUSE_SECONDS = 1.0  # a longer one ends a cue
BREATH_SECONDS = 0.3  # a longer one is a good place to break a cue that is full
SHORTEST_PART = 0.4  # of a full cue's words: no break before
CLAUSE_ENDS = tuple(",;:،؛、，；：–—")


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle."""

    start: float  # seconds
    end: float
    lines: tuple[str, ...]


def to_srt(cues: Sequence[Cue]) -> str:
    """SubRip: numbered cues, a comma before the milliseconds."""
    return "\n".join(f"{i}\n{_clock(c.start, ',')} --> {_clock(c.end, ',')}\n" + "\n".join(c.lines) + "\n" for i, c in enumerate(cues, 1))


def to_vtt(cues: Sequence[Cue]) -> str:
    """WebVTT (W3C): cue text with &, < and > escaped."""
    return "WEBVTT\n" + "".join(f"\n{_clock(c.start, '.')} --> {_clock(c.end, '.')}\n" + "\n".join(map(_escaped, c.lines)) + "\n" for c in cues)


def cues_of(words: Sequence[Segment], end: float) -> list[Cue]:
    """The cues of `words`, in order and without overlap, until `end` seconds at most.

    `words`: with their punctuation, in order; a cue never breaks inside one. Every word is in exactly one cue, which begins
    with its first word. A word that is longer than a line stands in a line of its own.
    """
    runs = list(_runs(words))
    starts = [run[0].start for run in runs[1:]] + [max(end, words[-1].end) if words else 0.0]
    return [Cue(run[0].start, _end(run, following), _lines(run)) for run, following in zip(runs, starts)]


def _end(run: Sequence[Segment], following: float) -> float:
    """Until it can be read, but not into what follows."""
    start, said = run[0].start, run[-1].end
    needed = max(SHORTEST_SECONDS, _seconds_to_read(_joined(run)))
    return min(max(said, start + needed), start + max(LONGEST_SECONDS, run[0].end - start), following)


def _runs(words: Sequence[Segment]) -> Iterator[list[Segment]]:
    """The words of each cue."""
    run: list[Segment] = []
    for word in words:
        while run and not _fit([*run, word]):
            at = _best_break(run)
            yield run[:at]
            run = run[at:]
        if run and _ends_cue(run, word):
            yield run
            run = []
        run.append(word)
    if run:
        yield run


def _ends_cue(run: Sequence[Segment], following: Segment) -> bool:
    """At a long pause, and at the end of a sentence unless the cue were too short."""
    if following.start - run[-1].end >= PAUSE_SECONDS:
        return True
    return bool(TERMINATED.search(run[-1].text)) and run[-1].end - run[0].start >= SHORTEST_SECONDS


def _fit(run: Sequence[Segment]) -> bool:
    """Whether these words may be one cue."""
    return run[-1].end - run[0].start <= LONGEST_SECONDS and _lines_needed(run) <= LINES and (len(run) == 1 or all(_width(w.text) <= 1 for w in run))


def _best_break(run: Sequence[Segment]) -> int:
    """How many of the words of a full cue to show: to the end of a sentence, of a clause, to a pause, or all of them."""
    candidates = range(max(1, round(SHORTEST_PART * len(run))), len(run))
    quality = lambda i: (_quality(run[i - 1], run[i]), i)
    best = max(candidates, key=quality, default=len(run))
    return best if best < len(run) and _quality(run[best - 1], run[best]) else len(run)


def _quality(word: Segment, following: Segment) -> int:
    if TERMINATED.search(word.text):
        return 3
    if word.text.endswith(CLAUSE_ENDS):
        return 2
    return int(following.start - word.end >= BREATH_SECONDS)


def _lines(run: Sequence[Segment]) -> tuple[str, ...]:
    """One line if it holds all, else two of like width, broken behind punctuation where that is near."""
    if _lines_needed(run) == 1:
        return (_joined(run),)
    halves = [(_joined(run[:i]), _joined(run[i:]), i) for i in range(1, len(run))]
    fitting = [half for half in halves if _width(half[0]) <= 1 and _width(half[1]) <= 1]
    uneven = lambda half: abs(_width(half[0]) - _width(half[1])) - 0.4 * bool(_quality(run[half[2] - 1], run[half[2]]) >= 2)
    first, second, _ = min(fitting, key=uneven)
    return first, second


def _lines_needed(run: Sequence[Segment]) -> int:
    """As few as will do."""
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
    """The words as they stand in the text: a space where there is white space between them."""
    return run[0].text + "".join(_between(word, following) + following.text for word, following in zip(run, run[1:]))


def _between(word: Segment, following: Segment) -> str:
    return "" if word.offset + len(word.text) == following.offset else " "


def _width(text: str) -> float:
    """As a share of a line."""
    wide, letters = _counts(text)
    return wide / LINE_WIDE + letters / LINE_LETTERS


def _seconds_to_read(text: str) -> float:
    wide, letters = _counts(text)
    return wide / WIDE_PER_SECOND + letters / LETTERS_PER_SECOND


@lru_cache(10_000)
def _counts(text: str) -> tuple[int, int]:
    """(wide characters, others), without marks that stand above or below another character."""
    spaced = [c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf")]
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in spaced)
    return wide, len(spaced) - wide


def _clock(seconds: float, point: str) -> str:
    """hours:minutes:seconds and three decimals behind `point`."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
