"""Timed words → cues → SRT and WebVTT. Pure functions. Knows nothing of chunks, models or jobs.

By default the limits are those of most style guides (Netflix, BBC, EBU). A cue has two lines of 42
letters, or of 16 Chinese, Japanese or Korean characters. It lasts 1 to 7 s, and long enough to read
17 letters or 9 such characters a second, if the speech allows it. Lines of scripts without spaces
break at a space, if there is one, and never before a mark that must not begin a line.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from contract.subtitle_options import SubtitleOptions
from result.cue_lines import Placed, balanced, lines_needed, placed, text_of, width_of
from result.line_breaks import Line, break_quality, counts, unbreakable
from result.transcript import Segment
from speech.text_units import is_clustered

LETTERS_PER_SECOND = 17  # the pace of reading
WIDE_PER_SECOND = 9
MIN_PAUSE_SECONDS = 1.0  # such a pause ends a cue
MIN_BREAK_SHARE = 0.4  # a full cue keeps at least this share of its words
DEFAULTS = SubtitleOptions()


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


def cues_of(words: Sequence[Segment], end: float, options: SubtitleOptions = DEFAULTS) -> list[Cue]:
    """The cues of `words`, in order and without overlap; the last one ends by `end` seconds.

    `words`: in order, with their punctuation. Each word is in exactly one cue and is never broken.
    A cue starts with its first word. A word that is longer than a line has a cue of its own.
    """
    if not words:
        return []
    line = Line(options.max_line_width, options.max_line_width_cjk)
    whole = list(unbreakable(words, line, options.max_duration))
    runs = list(_runs(placed(whole, line), line, options))
    starts = [run[0].word.start for run in runs]
    limits = [*starts[1:], max(end, words[-1].end)]
    return [
        Cue(start, _cue_end(run, limit, options), balanced(run, line))
        for run, start, limit in zip(runs, starts, limits)
    ]


def _cue_end(run: Sequence[Placed], limit: float, options: SubtitleOptions) -> float:
    """The end of the speech, or later, so that the cue can be read, but not after `limit`."""
    first, last = run[0].word, run[-1].word
    readable = first.start + max(options.min_duration, _seconds_to_read(text_of(run)))
    longest = max(first.start + options.max_duration, first.end)
    return min(max(last.end, readable), longest, limit)


def _runs(words: Iterable[Placed], line: Line, options: SubtitleOptions) -> Iterator[list[Placed]]:
    """The words of each cue."""
    run: list[Placed] = []
    for word in words:
        while run and not _fits_a_cue([*run, word], line, options):
            count = _best_break(run, word)
            yield run[:count]
            run = run[count:]
        if run and _ends_cue(run, word, options.min_duration):
            yield run
            run = []
        run.append(word)
    if run:
        yield run


def _ends_cue(run: Sequence[Placed], following: Placed, min_seconds: float) -> bool:
    """Whether a cue ends before `following`.

    It ends at a long pause, or at the end of a sentence if the cue is not too short.
    """
    last = run[-1].word
    if following.word.start - last.end >= MIN_PAUSE_SECONDS:
        return True
    is_long_enough = last.end - run[0].word.start >= min_seconds
    return is_long_enough and last.ends_sentence


def _fits_a_cue(run: Sequence[Placed], line: Line, options: SubtitleOptions) -> bool:
    """Whether these words may be one cue."""
    seconds = run[-1].word.end - run[0].word.start
    if seconds > options.max_duration or lines_needed(run, line) > options.max_line_count:
        return False
    return len(run) == 1 or all(width_of([word]) <= line.width for word in run)


def _best_break(run: Sequence[Placed], following: Placed) -> int:
    """How many words of a full cue to keep.

    The last of the best places to break it is taken. Without a good one all words are kept, unless
    that breaks a word: then the last place between words is taken.
    """
    first = max(1, round(MIN_BREAK_SHARE * len(run)))
    last = run[-1].word
    quality = break_quality(last, following.word)
    ends_phrase = quality > 0 and is_clustered(last.text[-1])
    best = _last_break(run, first, quality + 1 if ends_phrase else 1)
    if not best and quality < 0:
        best = _last_break(run, 1, 0)
    return best or len(run)


def _last_break(run: Sequence[Placed], first: int, least: int) -> int | None:
    """The last of the best places to break a run, of quality `least` or better.

    It keeps `first` words or more.
    """
    best, best_quality = None, least
    for i in range(first, len(run)):
        quality = break_quality(run[i - 1].word, run[i].word)
        if quality >= best_quality:
            best, best_quality = i, quality
    return best


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
