"""Text with the aligner's units and marks → `Word`s whose times keep the contract.

Pure functions. Knows no models. A unit is a word or a character, as the aligner splits the text.
Each unit has two marks, its start and its end, in ms from the chunk's start. The contract: 0 <=
start < end <= duration, in order, without overlap.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from contract.errors import AlignError
from recording.chunk import SAMPLE_RATE, AudioChunk
from speech.estimated_times import estimated_times
from speech.locate import locate
from speech.text_units import units_in, with_signs, words_in
from speech.words import Word

MIN_WORD_MS = 20  # a word with an estimated time lasts at least this, where the chunk has room

Mark = int | None  # ms; None where the aligner gave none


class _MarkedSpan(NamedTuple):
    """A word of the text, with its marks."""

    begin: int  # its first character in the text
    end: int  # the character after its last
    start_mark: Mark
    end_mark: Mark


class _Anchor(NamedTuple):
    """A mark that is kept."""

    mark: int  # its index among all marks
    ms: int


def aligned_words(
    chunk: AudioChunk, text: str, units: Sequence[str], marks: Sequence[int]
) -> tuple[Word, ...]:
    """The words of `text` with the aligner's times.

    Words that are no unit get estimated times between those of their neighbours. Raises AlignError
    where there are not two marks per unit, or where no unit is found in the text.
    """
    if len(marks) != 2 * len(units):
        raise AlignError(f"The aligner gave {len(marks)} times for {len(units)} words.")
    found: list[_MarkedSpan] = []
    for place, start_mark, end_mark in zip(locate(text, units), marks[::2], marks[1::2]):
        if place is None:
            continue
        span = _MarkedSpan(*place, start_mark, end_mark)
        if found and span.begin < found[-1].end:
            # Both units are of one character, as 1 and 2 are of ½.
            before = found.pop()
            span = before._replace(end=max(before.end, span.end), end_mark=end_mark)
        found.append(span)
    if not found:
        raise AlignError("The aligner's words are not those of the text.")
    return _timed(chunk, text, list(_with_gaps_filled(text, list(_with_signs(text, found)))))


def _with_signs(text: str, found: Sequence[_MarkedSpan]) -> Iterator[_MarkedSpan]:
    """`found` with the signs that are said with each word: the aligner's units have none."""
    earliest = 0
    latest = [*(span.begin for span in found[1:]), len(text)]
    for span, limit in zip(found, latest):
        begin, end = with_signs(text, span.begin, span.end, earliest, limit)
        yield span._replace(begin=begin, end=end)
        earliest = end


def estimated_words(chunk: AudioChunk, text: str) -> tuple[Word, ...]:
    """The words of `text` without an aligner, with times by the chunk's pauses and syllables.

    Where they cannot be so many in its speech, they are spread over the whole chunk.
    """
    units = units_in(text)
    if not units:
        return ()
    times = estimated_times(chunk.pcm, chunk.speech, text, units)
    marked = [_MarkedSpan(*unit, *time) for unit, time in zip(units, times)]
    if sum(end - start for start, end in times) < len(units) * MIN_WORD_MS:
        marked = [_MarkedSpan(*unit, None, None) for unit in units]
    return tuple(replace(word, estimated=True) for word in _timed(chunk, text, marked))


def _timed(chunk: AudioChunk, text: str, spans: Sequence[_MarkedSpan]) -> tuple[Word, ...]:
    duration = len(chunk.pcm) * 1000 // SAMPLE_RATE
    if len(spans) > duration:
        # Less than a ms per word is no speech, but the text must not be lost.
        spans = [_MarkedSpan(spans[0].begin, spans[-1].end, None, None)]
    marks: list[Mark] = []
    for span in spans:
        marks += [span.start_mark, span.end_mark]
    lengths = [span.end - span.begin for span in spans]
    offset = chunk.offset * 1000 / SAMPLE_RATE
    words = []
    for span, (start, end, estimated) in zip(spans, repair(marks, duration, lengths)):
        unit = text[span.begin : span.end]
        start_seconds = (offset + start) / 1000
        end_seconds = (offset + end) / 1000
        words.append(Word(unit, start_seconds, end_seconds, span.begin, estimated))
    return tuple(words)


def _with_gaps_filled(text: str, found: Sequence[_MarkedSpan]) -> Iterator[_MarkedSpan]:
    """`found`, and the words of the text before, between and after them, without marks."""
    end = 0
    for span in found:
        yield from _unmarked(text, end, span.begin)
        yield span
        end = span.end
    yield from _unmarked(text, end, len(text))


def _unmarked(text: str, begin: int, end: int) -> Iterator[_MarkedSpan]:
    """The words of text[begin:end], without marks."""
    for a, b in words_in(text[begin:end]):
        yield _MarkedSpan(begin + a, begin + b, None, None)


def repair(
    marks: Sequence[Mark], duration: int, lengths: Sequence[int]
) -> list[tuple[int, int, bool]]:
    """(start, end, estimated) of each word in ms, from raw marks.

    `marks`: start and end of each word, each None or any value. `duration`: ms, at least 1 per
    word. `lengths`: the characters of each word, at least 1.
    The times keep the contract, whatever the marks are. Kept are the marks of the longest
    non-decreasing subsequence that leave every word enough time. The others are spread over the
    gaps between them, in proportion to `lengths`.
    """
    least = min(MIN_WORD_MS, duration // max(1, len(lengths)))
    anchors = _anchors(marks, duration, least)
    kept = {anchor.mark for anchor in anchors}
    times = _spread([*anchors, _Anchor(len(marks), duration)], lengths, least)
    words = []
    for start, end in zip(range(0, len(marks), 2), range(1, len(marks), 2)):
        estimated = start not in kept or end not in kept
        words.append((times[start], times[end], estimated))
    return words


def _anchors(marks: Sequence[Mark], duration: int, least: int) -> list[_Anchor]:
    """The marks that are kept, after one at 0 ms that stands before all.

    The words between two of them, and after the last, have `least` ms each.
    """
    known = [_Anchor(i, ms) for i, ms in enumerate(marks) if ms is not None]
    anchors = [_Anchor(-1, 0)]
    for k in longest_non_decreasing([anchor.ms for anchor in known]):
        anchor, before = known[k], anchors[-1]
        if anchor.ms - before.ms >= _time_needed(before.mark, anchor.mark, least):
            anchors.append(anchor)
    while duration - anchors[-1].ms < _time_needed(anchors[-1].mark, len(marks), least):
        anchors.pop()
    return anchors


def _words_between(left: int, right: int) -> range:
    """The words whose start is not before mark `left` and whose end is not after mark `right`."""
    return range((left + 1) // 2, (right + 1) // 2)


def _time_needed(left: int, right: int, least: int) -> int:
    """ms that the words between two marks need.

    It is `least` each, or 1 for a word whose two marks these are.
    """
    between = len(_words_between(left, right))
    return min(1, between) if right - left == 1 else between * least


def _spread(anchors: Sequence[_Anchor], lengths: Sequence[int], least: int) -> list[int]:
    """A time in ms for every mark.

    An anchor keeps its own. Between two anchors each word has `least` ms, and the rest in
    proportion to its length.
    """
    times: list[int] = []
    for left, right in zip(anchors, anchors[1:]):
        if left.mark >= 0:
            times.append(left.ms)
        times += _times_between(left, right, lengths, least)
    return times


def _times_between(
    left: _Anchor, right: _Anchor, lengths: Sequence[int], least: int
) -> Iterator[int]:
    """The times of the marks between two anchors."""
    between = _words_between(left.mark, right.mark)
    spare = right.ms - left.ms - least * len(between)
    total = sum(lengths[word] for word in between)
    words_passed = characters_passed = 0
    for mark in range(left.mark + 1, right.mark):
        ends_word = mark % 2 == 1 and mark // 2 in between
        if ends_word:
            words_passed += 1
            characters_passed += lengths[mark // 2]
        share = spare * characters_passed // total if total else 0
        yield left.ms + least * words_passed + share


def longest_non_decreasing(values: Sequence[int]) -> list[int]:
    """Indices of the longest non-decreasing subsequence that qwen-asr's quadratic search finds.

    Patience sorting, in O(n log n). Where several are as long, the choice decides which words have
    measured times: for words at the same place (marks 0, 80, 0, 80) another choice leaves none, and
    the speech behind them would not be missed. The values of a pile strictly decrease, so bisection
    finds the first that is not larger, which is the one that the quadratic search takes.
    """
    tails: list[int] = []  # the last, smallest value of each pile
    negated: list[list[int]] = []  # the values of each pile, negated: in ascending order
    indices: list[list[int]] = []  # where the values of each pile are
    previous: list[int] = []  # for each value the index before it in its subsequence, or -1
    for i, value in enumerate(values):
        pile = bisect_right(tails, value)
        if pile == len(tails):
            tails.append(value)
            negated.append([])
            indices.append([])
        tails[pile] = value
        before = bisect_left(negated[pile - 1], -value) if pile else 0
        previous.append(indices[pile - 1][before] if pile else -1)
        negated[pile].append(-value)
        indices[pile].append(i)
    found = []
    i = indices[-1][0] if indices else -1
    while i >= 0:
        found.append(i)
        i = previous[i]
    return found[::-1]
