"""Timed words → cues → SRT and WebVTT. Pure functions. Knows nothing of chunks, models or jobs.

The limits are those of most style guides (Netflix, BBC, EBU). A cue has two lines of 42 letters, or
of 16 Chinese, Japanese or Korean characters. It lasts 1 to 7 s, and long enough to read 17 letters
or 9 such characters a second, if the speech allows it. Lines of scripts without spaces break at a
space, if there is one, and never before a mark that must not begin a line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from result.line_breaks import between, break_quality, counts, joined, unbreakable, width_of
from result.transcript import Segment
from speech.text_units import is_clustered

LETTERS_PER_SECOND = 17  # the pace of reading
WIDE_PER_SECOND = 9
MAX_LINES = 2
MIN_SECONDS, MAX_SECONDS = 1.0, 7.0  # the length of a cue
MIN_PAUSE_SECONDS = 1.0  # such a pause ends a cue
MIN_BREAK_SHARE = 0.4  # a full cue keeps at least this share of its words
# To break after punctuation, two lines may be more uneven by this share of a line.
PUNCTUATION_BONUS = 0.4
# A break between the clusters of a Thai, Lao, Khmer or Burmese word costs as much as a full line.
WITHIN_WORD_COST = 1.0


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
    runs = list(_runs(list(unbreakable(words, MAX_SECONDS))))
    starts = [run[0].start for run in runs]
    limits = [*starts[1:], max(end, words[-1].end)]
    return [
        Cue(start, _cue_end(run, limit), _lines(run))
        for run, start, limit in zip(runs, starts, limits)
    ]


def _cue_end(run: Sequence[Segment], limit: float) -> float:
    """The end of the speech, or later, so that the cue can be read, but not after `limit`."""
    start = run[0].start
    readable = start + max(MIN_SECONDS, _seconds_to_read(joined(run)))
    longest = max(start + MAX_SECONDS, run[0].end)
    return min(max(run[-1].end, readable), longest, limit)


def _runs(words: Sequence[Segment]) -> Iterator[list[Segment]]:
    """The words of each cue."""
    run: list[Segment] = []
    for word in words:
        while run and not _fits_a_cue([*run, word]):
            count = _best_break(run, word)
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
    return is_long_enough and run[-1].ends_sentence


def _fits_a_cue(run: Sequence[Segment]) -> bool:
    """Whether these words may be one cue."""
    seconds = run[-1].end - run[0].start
    if seconds > MAX_SECONDS or _lines_needed(run) > MAX_LINES:
        return False
    return len(run) == 1 or all(width_of(word.text) <= 1 for word in run)


def _best_break(run: Sequence[Segment], following: Segment) -> int:
    """How many words of a full cue to keep.

    The last of the best places to break it is taken. Without a good one all words are kept, unless
    that breaks a word: then the last place between words is taken.
    """
    first = max(1, round(MIN_BREAK_SHARE * len(run)))
    quality = break_quality(run[-1], following)
    ends_phrase = quality > 0 and is_clustered(run[-1].text[-1])
    best = _last_break(run, first, quality + 1 if ends_phrase else 1)
    if not best and quality < 0:
        best = _last_break(run, 1, 0)
    return best or len(run)


def _last_break(run: Sequence[Segment], first: int, least: int) -> int | None:
    """The last of the best places to break a run, of quality `least` or better.

    It keeps `first` words or more.
    """
    best, best_quality = None, least
    for i in range(first, len(run)):
        quality = break_quality(run[i - 1], run[i])
        if quality >= best_quality:
            best, best_quality = i, quality
    return best


def _lines(run: Sequence[Segment]) -> tuple[str, ...]:
    """One line if the text fits, else two of similar width, preferably broken after punctuation."""
    if _lines_needed(run) == 1:
        return (joined(run),)
    breaks: list[tuple[float, str, str]] = []  # (cost, first line, second line)
    for i in range(1, len(run)):
        first, second = joined(run[:i]), joined(run[i:])
        widths = width_of(first), width_of(second)
        if max(widths) > 1:
            continue
        quality = break_quality(run[i - 1], run[i])
        cost = abs(widths[0] - widths[1])
        cost += WITHIN_WORD_COST * (quality < 0) - PUNCTUATION_BONUS * (quality >= 2)
        breaks.append((cost, first, second))
    _, first, second = min(breaks, key=lambda found: found[0])
    return first, second


def _lines_needed(run: Sequence[Segment]) -> int:
    """The least number of lines that hold these words."""
    lines, room = 0, 0.0
    for before, word in zip([None, *run], run):
        width = width_of(word.text)
        space = width_of(between(before, word)) if before else 0.0
        if lines and space + width <= room:
            room -= space + width
        else:
            lines, room = lines + 1, 1.0 - width
    return lines


def _seconds_to_read(text: str) -> float:
    """How long a cue must be shown."""
    wide, letters = counts(text)
    return wide / WIDE_PER_SECOND + letters / LETTERS_PER_SECOND


def _clock(seconds: float, point: str) -> str:
    """hours:minutes:seconds, `point` and milliseconds."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
