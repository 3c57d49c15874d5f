"""Text with the aligner's units and marks → `Word`s whose times keep the contract. Pure functions; knows no models.

A unit is a word, or a character where the script has no spaces, as the aligner splits the text. A mark is a time in ms from
the chunk's start; each unit has two.
"""

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from audio import SAMPLE_RATE, AudioChunk
from errors import AlignError
from transcript import Word, units_in, words_in

SHORTEST_WORD_MS = 20  # of a word whose time is estimated

Mark = int | None  # ms; None where the aligner has given none
TimedSpan = tuple[int, int, Mark, Mark]  # (start, end) in the text, and the marks of its start and end


def words(chunk: AudioChunk, text: str, units: Sequence[str], marks: Sequence[int]) -> tuple[Word, ...]:
    """The words of `text` with the aligner's times; words without a unit get times between those of their neighbours.

    Raises AlignError where there are not two marks a unit, or no unit is found in the text.
    """
    if len(marks) != 2 * len(units):
        raise AlignError(f"The aligner gave {len(marks)} times for {len(units)} words.")
    found: list[TimedSpan] = []
    for span, start, end in zip(locate(text, units), marks[::2], marks[1::2]):
        if span is None:
            continue
        if found and span[0] < found[-1][1]:  # two units of one character, such as 1 and 2 of ½
            found[-1] = (found[-1][0], max(found[-1][1], span[1]), found[-1][2], end)
        else:
            found.append((*span, start, end))
    if not found:
        raise AlignError("The aligner's words are not those of the text.")
    return _timed(chunk, text, list(_with_gaps_filled(text, found)))


def estimated_words(chunk: AudioChunk, text: str) -> tuple[Word, ...]:
    """The words of `text` spread over the chunk's speech by their characters, for want of an aligner."""
    spans = units_in(text)
    speech = [(a * 1000 // SAMPLE_RATE, b * 1000 // SAMPLE_RATE) for a, b in chunk.speech]
    total = sum(b - a for a, b in speech)
    if total < len(spans) * SHORTEST_WORD_MS:  # the detector has missed it
        return _timed(chunk, text, [(a, b, None, None) for a, b in spans])
    lengths = [b - a for a, b in spans]
    heard = [t for start, end, _ in repair([None] * (2 * len(spans)), total, lengths) for t in (start, end)]
    starts, ends = (_on_the_clock(speech, heard[i::2], at_end=bool(i)) for i in (0, 1))
    return tuple(
        Word(text[a:b], chunk.start + start / 1000, chunk.start + end / 1000, a, estimated=True)
        for (a, b), start, end in zip(spans, starts, ends)
    )


def _on_the_clock(speech: Sequence[tuple[int, int]], heard: Sequence[int], at_end: bool) -> Iterator[int]:
    """Where in the chunk so many ms of speech have passed; at a pause, its end, or `at_end` its beginning."""
    spans, passed = iter(speech), 0
    start, end = next(spans)
    for ms in heard:
        while ms - passed > end - start or (not at_end and ms - passed == end - start):
            passed += end - start
            start, end = next(spans)
        yield start + ms - passed


def _timed(chunk: AudioChunk, text: str, spans: Sequence[TimedSpan]) -> tuple[Word, ...]:
    duration = len(chunk.pcm) * 1000 // SAMPLE_RATE
    if len(spans) > duration:  # a word a millisecond is no speech; its text must not be lost all the same
        spans = [(spans[0][0], spans[-1][1], None, None)]
    offset = chunk.offset * 1000 / SAMPLE_RATE
    marks = [mark for *_, start, end in spans for mark in (start, end)]
    return tuple(
        Word(text[a:b], (offset + start) / 1000, (offset + end) / 1000, a, estimated)
        for (a, b, *_), (start, end, estimated) in zip(spans, repair(marks, duration, [b - a for a, b, *_ in spans]))
    )


def _with_gaps_filled(text: str, found: Sequence[TimedSpan]) -> Iterator[TimedSpan]:
    """`found`, and before, between and behind them the words of the text that are in none of them, without marks."""
    end = 0
    for span in found:
        yield from ((end + a, end + b, None, None) for a, b in words_in(text[end : span[0]]))
        yield span
        end = span[1]
    yield from ((end + a, end + b, None, None) for a, b in words_in(text[end:]))


def locate(text: str, units: Sequence[str]) -> list[tuple[int, int] | None]:
    """Where each of the aligner's units stands in `text`, as (start, end), combining marks behind it included.

    None for a unit that is not there as a whole: nagisa, which splits Japanese, makes 0 and 10Mbps of 100Mbps. Base letters
    are compared, for units have lost their combining marks, and Japanese ones are normalised (NFKC: 60㎏ is 60 and kg).
    """
    said = [(letter, i) for i, character in enumerate(text) for letter in _letters(character)]
    wanted = ["".join(map(_letters, unit)) for unit in units]
    place_of = _places([letter for letter, _ in said], [letter for letters in wanted for letter in letters])
    taken = set(place_of.values())
    spans, begin = [], 0
    for letters in wanted:
        places = [place_of.get(i) for i in range(begin, begin + len(letters))]
        begin += len(letters)
        is_whole = places and None not in places
        if is_whole and not any(_is_letter(text[said[p][1]]) for p in {*range(places[0], places[-1])} - taken):
            spans.append((said[places[0]][1], _behind_marks(text, said[places[-1]][1] + 1)))
        else:
            spans.append(None)
    return spans


def _places(said: Sequence[str], wanted: Sequence[str]) -> dict[int, int]:
    """Index of a letter of `wanted` → index of the letter of `said` that it is, for those that are there, in order."""
    if said == wanted:
        return {i: i for i in range(len(said))}
    blocks = SequenceMatcher(None, said, wanted, autojunk=False).get_matching_blocks()
    return {b + i: a + i for a, b, length in blocks for i in range(length)}


def _letters(character: str) -> str:
    """The base letters and numbers of a character, also of one that the aligner may drop: C of ℃, kg of ㎏."""
    return "".join(c for c in unicodedata.normalize("NFKD", character) if c == "'" or _is_letter(c))


def _is_letter(character: str) -> bool:
    """Whether it is a letter or a number, so that the text needs a time for it."""
    return unicodedata.category(character)[0] in "LN"


def _behind_marks(text: str, position: int) -> int:
    while position < len(text) and unicodedata.category(text[position]).startswith("M"):
        position += 1
    return position


def repair(marks: Sequence[Mark], duration: int, lengths: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(start, end, estimated) of each word in ms, from raw marks (start and end of each word: None, or any value).

    0 <= start < end <= duration and no overlap, whatever the marks are; `duration` must be at least a ms a word. The
    marks of the longest non-decreasing run that leave every word its time are kept as they are; the others are spread
    over the gap between those by `lengths` (characters of each word, at least 1).
    """
    least = min(SHORTEST_WORD_MS, duration // max(1, len(lengths)))
    known = [i for i, mark in enumerate(marks) if mark is not None]
    anchors = [(-1, 0)]  # (index of a mark, its time); any two leave the words between them enough time
    for i in (known[k] for k in longest_non_decreasing([marks[i] for i in known])):
        if marks[i] - anchors[-1][1] >= _time_needed(anchors[-1][0], i, least):
            anchors.append((i, marks[i]))
    while duration - anchors[-1][1] < _time_needed(anchors[-1][0], len(marks), least):
        anchors.pop()
    true = {i for i, _ in anchors}
    times = _spread([*anchors, (len(marks), duration)], lengths, least)
    return [(times[2 * w], times[2 * w + 1], not {2 * w, 2 * w + 1} <= true) for w in range(len(lengths))]


def _words_between(left: int, right: int) -> range:
    """The words that begin at mark `left` or later and end at mark `right` or before."""
    return range((left + 1) // 2, (right + 1) // 2)


def _time_needed(left: int, right: int, least: int) -> int:
    between = len(_words_between(left, right))
    return min(1, between) if right - left == 1 else between * least


def _spread(anchors: Sequence[tuple[int, int]], lengths: Sequence[int], least: int) -> list[int]:
    """A time for every mark: the anchors' own, and between two anchors `least` a word and the rest by length."""
    times = []
    for (left, begin), (right, end) in zip(anchors, anchors[1:]):
        between = _words_between(left, right)
        spare, total = end - begin - least * len(between), sum(lengths[w] for w in between)
        times += [begin] if left >= 0 else []
        passed = characters = 0
        for mark in range(left + 1, right):
            if mark % 2 and mark // 2 in between:
                passed, characters = passed + 1, characters + lengths[mark // 2]
            times.append(begin + least * passed + (spare * characters // total if total else 0))
    return times


def longest_non_decreasing(values: Sequence[int]) -> list[int]:
    """Indices of the longest non-decreasing subsequence, the one that qwen-asr's quadratic search finds.

    Patience sorting, O(n log n). The values of a pile strictly decrease, so the first of the previous pile that is no
    larger, which the quadratic search takes as parent, is found by bisection.
    """
    tails: list[int] = []  # the last, smallest value of each pile
    piles: list[tuple[list[int], list[int]]] = []  # (negated values, indices) of each pile
    parents = []
    for i, value in enumerate(values):
        pile = bisect_right(tails, value)
        if pile == len(piles):
            tails.append(value)
            piles.append(([], []))
        tails[pile] = value
        parents.append(piles[pile - 1][1][bisect_left(piles[pile - 1][0], -value)] if pile else -1)
        piles[pile][0].append(-value)
        piles[pile][1].append(i)
    found, i = [], piles[-1][1][0] if piles else -1
    while i >= 0:
        found.append(i)
        i = parents[i]
    return found[::-1]
