"""How wide words are on a line, and where a line may break. Pure functions."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from result.transcript import Segment
from speech.text_units import is_clustered, is_unspaced

MIN_SHORT_PAUSE_SECONDS = 0.3  # such a pause is a good place to break a full cue
# Closing punctuation, small kana and signs of repetition and of length (JIS X 4051, CLREQ, Thai).
NEVER_FIRST = frozenset(
    "、。，．・：；？！）］｝〉》」』】〕〗〙｡｣､･％"
    "ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶㇰㇱㇲㇳㇴㇵㇶㇷㇸㇹㇺㇻㇼㇽㇾㇿ"
    "ｧｨｩｪｫｬｭｮｯｰﾞﾟー〜々〻ゝゞヽヾๆฯໆຯៗ"
)
CLAUSE_ENDS = tuple(",;:،؛、，；：–—")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of subtitles, which holds so many letters, or so many wide characters, or a mixture.

    Its width is a whole number of parts, of which a letter takes `max_wide` and a wide character
    `max_letters`. Rounded shares of a line would not add up where it is exactly full.
    """

    max_letters: int
    max_wide: int

    @property
    def width(self) -> int:
        """The parts of the line."""
        return self.max_letters * self.max_wide

    def width_of(self, text: str) -> int:
        """The parts of the line that a text takes."""
        wide, letters = counts(text)
        return wide * self.max_letters + letters * self.max_wide


def unbreakable(words: Sequence[Segment], line: Line, max_seconds: float) -> Iterator[Segment]:
    """The words, those as one that must not stand on two lines.

    These are a word with what must not begin a line, and in Thai, Lao, Khmer and Burmese a phrase
    without spaces. They are as one only where they fit on a line and take at most `max_seconds`.
    """
    phrase: list[Segment] = []
    for word in _with_marks(words, line, max_seconds):
        if phrase and break_quality(phrase[-1], word) >= 0:
            yield from _on_one_line(phrase, line, max_seconds)
            phrase = []
        phrase.append(word)
    yield from _on_one_line(phrase, line, max_seconds)


def _with_marks(words: Sequence[Segment], line: Line, max_seconds: float) -> Iterator[Segment]:
    """The words, each with those after it that must not begin a line."""
    group = [words[0]]
    for word in words[1:]:
        if word.text[0] not in NEVER_FIRST:
            yield from _on_one_line(group, line, max_seconds)
            group = []
        group.append(word)
    yield from _on_one_line(group, line, max_seconds)


def _on_one_line(words: Sequence[Segment], line: Line, max_seconds: float) -> Sequence[Segment]:
    """The words as one, where they fit on a line and in the time, or else as they are."""
    if len(words) == 1:
        return words
    first, last = words[0], words[-1]
    text = joined(words)
    if line.width_of(text) > line.width or last.end - first.start > max_seconds:
        return words
    return [replace(first, end=last.end, text=text, ends_sentence=last.ends_sentence)]


def break_quality(word: Segment, following: Segment) -> int:
    """How good a break between two words is.

    3 after a sentence, 2 after a clause or at a space of a script without spaces between words, 1
    at a short pause, -1 between clusters, else 0.
    """
    if word.ends_sentence:
        return 3
    if word.text.endswith(CLAUSE_ENDS):
        return 2
    between_clusters = is_clustered(word.text[-1]) and is_clustered(following.text[0])
    has_space = bool(between(word, following))
    if has_space and is_unspaced(word.text[-1]) and is_unspaced(following.text[0]):
        return 2
    if following.start - word.end >= MIN_SHORT_PAUSE_SECONDS:
        return 1
    return -1 if between_clusters and not has_space else 0


def joined(run: Sequence[Segment]) -> str:
    """The words with a space where the text has white space between them."""
    text = run[0].text
    for word, following in zip(run, run[1:]):
        text += between(word, following) + following.text
    return text


def between(word: Segment, following: Segment) -> str:
    """The space between two words of a cue, or "" where the text has none."""
    return "" if word.end_offset == following.offset else " "


@lru_cache(maxsize=10_000)
def counts(text: str) -> tuple[int, int]:
    """(wide characters, other characters), without combining marks, which take no width."""
    characters = [c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf")]
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in characters)
    return wide, len(characters) - wide
