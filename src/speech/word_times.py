"""Text with the aligner's units and marks → `Word`s whose times keep the contract. Pure functions. Knows no models.

A unit is a word or a character, as the aligner splits the text. Each unit has two marks, its start and its end, in ms from the
chunk's start. The contract: 0 <= start < end <= duration, in order, without overlap.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from contract.errors import AlignError
from recording.chunk import SAMPLE_RATE, AudioChunk
from speech.text_units import units_in, words_in
from speech.words import Word

MIN_WORD_MS = 20  # least duration of a word with an estimated time

Mark = int | None  # ms; None where the aligner gave none
TimedSpan = tuple[int, int, Mark, Mark]  # (start, end) in the text, then the marks of start and end


def aligned_words(
    chunk: AudioChunk, text: str, units: Sequence[str], marks: Sequence[int]
) -> tuple[Word, ...]:
    """The words of `text` with the aligner's times. Words that are no unit get estimated times between those of their neighbours.

    Raises AlignError where there are not two marks per unit, or where no unit is found in the text.
    """
    if len(marks) != 2 * len(units):
        raise AlignError(f"The aligner gave {len(marks)} times for {len(units)} words.")
    found: list[TimedSpan] = []
    for span, start, end in zip(locate(text, units), marks[::2], marks[1::2]):
        if span is None:
            continue
        if found and span[0] < found[-1][1]:  # both units are of one character, as 1 and 2 are of ½
            found[-1] = (found[-1][0], max(found[-1][1], span[1]), found[-1][2], end)
        else:
            found.append((*span, start, end))
    if not found:
        raise AlignError("The aligner's words are not those of the text.")
    return _timed(chunk, text, list(_with_gaps_filled(text, found)))


def estimated_words(chunk: AudioChunk, text: str) -> tuple[Word, ...]:
    """The words of `text` without an aligner: spread over the chunk's speech in proportion to their characters."""
    spans = units_in(text)
    speech = [(a * 1000 // SAMPLE_RATE, b * 1000 // SAMPLE_RATE) for a, b in chunk.speech]
    total = sum(b - a for a, b in speech)
    if total < len(spans) * MIN_WORD_MS:  # the voice detector missed speech: use the whole chunk
        return _timed(chunk, text, [(a, b, None, None) for a, b in spans])
    lengths = [b - a for a, b in spans]
    times = repair([None] * (2 * len(spans)), total, lengths)
    starts = _in_chunk(speech, [start for start, _, _ in times], at_end=False)
    ends = _in_chunk(speech, [end for _, end, _ in times], at_end=True)
    return tuple(
        Word(text[a:b], chunk.start + start / 1000, chunk.start + end / 1000, a, estimated=True)
        for (a, b), start, end in zip(spans, starts, ends)
    )


def _in_chunk(
    speech: Sequence[tuple[int, int]], times: Sequence[int], at_end: bool
) -> Iterator[int]:
    """Times on an axis of speech only → ms in the chunk. A time at a pause is the pause's end, or with `at_end` its start."""
    spans, passed = iter(speech), 0
    start, end = next(spans)
    for ms in times:
        while ms - passed > end - start or (not at_end and ms - passed == end - start):
            passed += end - start
            start, end = next(spans)
        yield start + ms - passed


def _timed(chunk: AudioChunk, text: str, spans: Sequence[TimedSpan]) -> tuple[Word, ...]:
    duration = len(chunk.pcm) * 1000 // SAMPLE_RATE
    if len(spans) > duration:  # less than a ms per word: no speech, but the text must not be lost
        spans = [(spans[0][0], spans[-1][1], None, None)]
    offset = chunk.offset * 1000 / SAMPLE_RATE
    marks = [mark for *_, start, end in spans for mark in (start, end)]
    return tuple(
        Word(text[a:b], (offset + start) / 1000, (offset + end) / 1000, a, estimated)
        for (a, b, *_), (start, end, estimated) in zip(
            spans, repair(marks, duration, [b - a for a, b, *_ in spans])
        )
    )


def _with_gaps_filled(text: str, found: Sequence[TimedSpan]) -> Iterator[TimedSpan]:
    """`found`, and the words of the text before, between and after them, without marks."""
    end = 0
    for span in found:
        yield from ((end + a, end + b, None, None) for a, b in words_in(text[end : span[0]]))
        yield span
        end = span[1]
    yield from ((end + a, end + b, None, None) for a, b in words_in(text[end:]))


def locate(text: str, units: Sequence[str]) -> list[tuple[int, int] | None]:
    """The (start, end) of each of the aligner's units in `text`, with the combining marks after it.

    None for a unit that the text does not hold as a whole: nagisa, which splits Japanese, makes 0 and 10Mbps of 100Mbps. Base
    letters are compared, because units have no combining marks, and Japanese ones are normalised (NFKC: 60㎏ is 60 and kg).
    """
    said = [(letter, i) for i, character in enumerate(text) for letter in _letters(character)]
    wanted = ["".join(map(_letters, unit)) for unit in units]
    index_of = _matches(
        [letter for letter, _ in said], [letter for letters in wanted for letter in letters]
    )
    matched = set(index_of.values())
    spans, begin = [], 0
    for letters in wanted:
        indices = [index_of.get(i) for i in range(begin, begin + len(letters))]
        begin += len(letters)
        is_whole = indices and None not in indices
        if is_whole and not any(
            _is_letter(text[said[i][1]]) for i in {*range(indices[0], indices[-1])} - matched
        ):
            spans.append(
                (said[indices[0]][1], _after_combining_marks(text, said[indices[-1]][1] + 1))
            )
        else:
            spans.append(None)
    return spans


def _matches(said: Sequence[str], wanted: Sequence[str]) -> dict[int, int]:
    """Index in `wanted` → index of the same letter in `said`, in order, for the letters that are in both."""
    if said == wanted:
        return {i: i for i in range(len(said))}
    blocks = SequenceMatcher(None, said, wanted, autojunk=False).get_matching_blocks()
    return {b + i: a + i for a, b, length in blocks for i in range(length)}


def _letters(character: str) -> str:
    """The base letters and numbers of a character, even of a symbol that the aligner may drop: C of ℃, kg of ㎏."""
    return "".join(c for c in unicodedata.normalize("NFKD", character) if c == "'" or _is_letter(c))


def _is_letter(character: str) -> bool:
    """Whether a character is a letter or a number, and so belongs to a word."""
    return unicodedata.category(character)[0] in "LN"


def _after_combining_marks(text: str, position: int) -> int:
    while position < len(text) and unicodedata.category(text[position]).startswith("M"):
        position += 1
    return position


def repair(
    marks: Sequence[Mark], duration: int, lengths: Sequence[int]
) -> list[tuple[int, int, bool]]:
    """(start, end, estimated) of each word in ms, from raw marks: start and end of each word, each None or any value.

    The times keep the contract, whatever the marks are. `duration` must be at least 1 ms per word. Kept are the marks of the longest
    non-decreasing subsequence that leave every word enough time. The others are spread over the gaps between them, in proportion to
    `lengths`, the characters of each word (at least 1).
    """
    least = min(MIN_WORD_MS, duration // max(1, len(lengths)))
    known = [i for i, mark in enumerate(marks) if mark is not None]
    anchors = [
        (-1, 0)
    ]  # (index, time) of the marks kept; the words between two of them have enough time
    for i in (known[k] for k in longest_non_decreasing([marks[i] for i in known])):
        if marks[i] - anchors[-1][1] >= _time_needed(anchors[-1][0], i, least):
            anchors.append((i, marks[i]))
    while duration - anchors[-1][1] < _time_needed(anchors[-1][0], len(marks), least):
        anchors.pop()
    kept = {i for i, _ in anchors}
    times = _spread([*anchors, (len(marks), duration)], lengths, least)
    return [
        (times[2 * w], times[2 * w + 1], not {2 * w, 2 * w + 1} <= kept)
        for w in range(len(lengths))
    ]


def _words_between(left: int, right: int) -> range:
    """The words whose start is not before mark `left` and whose end is not after mark `right`."""
    return range((left + 1) // 2, (right + 1) // 2)


def _time_needed(left: int, right: int, least: int) -> int:
    """ms that the words between two marks need: `least` each, or 1 for a word whose two marks these are."""
    between = len(_words_between(left, right))
    return min(1, between) if right - left == 1 else between * least


def _spread(anchors: Sequence[tuple[int, int]], lengths: Sequence[int], least: int) -> list[int]:
    """A time for every mark: an anchor's own; between two anchors each word has `least` ms, and the rest in proportion to its length."""
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
    """Indices of a longest non-decreasing subsequence, by patience sorting in O(n log n)."""
    tails: list[int] = []  # the smallest last value of the subsequences of each length
    indices: list[int] = []  # where these values are
    previous: list[int] = []  # for each value the index before it in its subsequence, or -1
    for i, value in enumerate(values):
        length = bisect_right(tails, value)
        previous.append(indices[length - 1] if length else -1)
        tails[length : length + 1] = [value]
        indices[length : length + 1] = [i]
    found = []
    i = indices[-1] if indices else -1
    while i >= 0:
        found.append(i)
        i = previous[i]
    return found[::-1]
