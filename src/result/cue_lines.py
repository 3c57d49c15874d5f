"""The words of a cue → its lines. Pure functions. Knows nothing of times."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from result.line_breaks import Line, between, break_quality, joined
from result.transcript import Segment

# To break after punctuation, two lines may be more uneven by this share of a line.
PUNCTUATION_BONUS = 0.4
# A break between the clusters of a Thai, Lao, Khmer or Burmese word costs as much as a full line.
WITHIN_WORD_COST = 1.0


@dataclass(frozen=True, slots=True)
class Placed:
    """A word, and its place if all words were on one line: from `left` to `right`, in its parts."""

    word: Segment
    left: int
    right: int


def placed(words: Sequence[Segment], line: Line) -> Iterator[Placed]:
    """The words with their places, so that the width of a run of them is a difference."""
    at = 0
    for before, word in zip([None, *words], words):
        left = at + (line.width_of(between(before, word)) if before else 0)
        at = left + line.width_of(word.text)
        yield Placed(word, left, at)


def width_of(run: Sequence[Placed]) -> int:
    """The width of these words on one line."""
    return run[-1].right - run[0].left


def text_of(run: Sequence[Placed]) -> str:
    """These words on one line."""
    return joined([placed.word for placed in run])


def lines_needed(run: Sequence[Placed], line: Line) -> int:
    """The least number of lines that hold these words. A word wider than a line has its own."""
    count = first = 0
    while first < len(run):
        end = run[first].left + line.width
        first = max(first + 1, bisect_right(run, end, first, key=lambda placed: placed.right))
        count += 1
    return count


def balanced(run: Sequence[Placed], line: Line) -> tuple[str, ...]:
    """The fewest lines that hold these words, of similar widths, preferably broken after
    punctuation. Each word fits on a line, or is the only one.
    """
    lines: list[str] = []
    for count in range(lines_needed(run, line), 1, -1):
        first = _first_line(run, line, count)
        lines.append(text_of(run[:first]))
        run = run[first:]
    return (*lines, text_of(run))


def _first_line(run: Sequence[Placed], line: Line, count: int) -> int:
    """How many words the first of `count` lines has."""
    costs: list[tuple[float, int]] = []
    for i in range(1, len(run)):
        first, rest = run[:i], run[i:]
        if width_of(first) > line.width or lines_needed(rest, line) >= count:
            continue
        quality = break_quality(first[-1].word, rest[0].word)
        cost = abs(width_of(first) - width_of(rest) / (count - 1))
        cost += WITHIN_WORD_COST * line.width * (quality < 0)
        cost -= PUNCTUATION_BONUS * line.width * (quality >= 2)
        costs.append((cost, i))
    return min(costs)[1]
