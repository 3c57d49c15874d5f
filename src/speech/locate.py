"""Where the aligner's units are in a text. Pure functions."""

import unicodedata
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple


class _Letter(NamedTuple):
    letter: str
    position: int  # where in the text the character is that it belongs to


def locate(text: str, units: Sequence[str]) -> list[tuple[int, int] | None]:
    """The (start, end) of each of the aligner's units in `text`, with the combining marks after it.

    None if the unit is not in the text; e.g. nagisa, which splits Japanese, splits 100Mbps into 0
    and 10Mbps. Base letters are compared, because units have no combining marks, and Japanese ones
    are normalised (NFKC: 60㎏ is 60 and kg).
    """
    said = [letter for position, c in enumerate(text) for letter in _letters_at(position, c)]
    wanted = ["".join(map(_letters, unit)) for unit in units]
    index_of = _matches([letter.letter for letter in said], list("".join(wanted)))
    matched = set(index_of.values())
    spans: list[tuple[int, int] | None] = []
    begin = 0
    for letters in wanted:
        end = begin + len(letters)
        indices = [index_of[i] for i in range(begin, end) if i in index_of]
        begin = end
        is_whole = indices and len(indices) == len(letters)
        if is_whole and not _has_letter_between(text, said, indices, matched):
            first, last = said[indices[0]].position, said[indices[-1]].position
            spans.append((first, _after_combining_marks(text, last + 1)))
        else:
            spans.append(None)
    return spans


def _has_letter_between(
    text: str, said: Sequence[_Letter], indices: Sequence[int], matched: set[int]
) -> bool:
    """Whether a letter stands between those of a unit that belongs to no unit."""
    unmatched = set(range(indices[0], indices[-1])) - matched
    return any(_is_letter(text[said[i].position]) for i in unmatched)


def _matches(said: Sequence[str], wanted: Sequence[str]) -> dict[int, int]:
    """Index in `wanted` → index of the same letter in `said`, for the letters that are in both.

    Both indices rise together.
    """
    if said == wanted:
        return {i: i for i in range(len(said))}
    matcher = SequenceMatcher(None, said, wanted, autojunk=False)
    found = {}
    for in_said, in_wanted, length in matcher.get_matching_blocks():
        for i in range(length):
            found[in_wanted + i] = in_said + i
    return found


def _letters_at(position: int, character: str) -> Iterator[_Letter]:
    for letter in _letters(character):
        yield _Letter(letter, position)


def _letters(character: str) -> str:
    """The base letters and numbers of a character.

    Also those of a symbol that the aligner may drop: C of ℃, kg of ㎏.
    """
    decomposed = unicodedata.normalize("NFKD", character)
    return "".join(c for c in decomposed if c == "'" or _is_letter(c))


def _is_letter(character: str) -> bool:
    """Whether a character is a letter or a number, and so belongs to a word."""
    return unicodedata.category(character)[0] in "LN"


def _after_combining_marks(text: str, position: int) -> int:
    while position < len(text) and unicodedata.category(text[position]).startswith("M"):
        position += 1
    return position
