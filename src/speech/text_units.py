"""Text → where its words are, or its characters where the script has no spaces. Pure functions."""

import re
import unicodedata

# Scripts without spaces between words: each character is a unit.
_UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3001-\u30ff\u31f0-\u31ff"  # CJK punctuation, kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # ideographs
    "\uff00-\uff9f"  # full-width forms
    "]"
)


def is_unspaced(character: str) -> bool:
    """Whether the character belongs to a script without spaces between words."""
    return bool(_UNSPACED.match(character))


def units_in(text: str) -> list[tuple[int, int]]:
    """(start, end) of the words in `text`.

    A text without letters and numbers is one unit, so that every text has a time.
    """
    if words := words_in(text):
        return words
    whole = re.search(r"\S.*\S|\S", text, re.DOTALL)
    return [whole.span()] if whole else []


def words_in(text: str) -> list[tuple[int, int]]:
    """(start, end) of the words in `text`, or of the characters where the script has no spaces.

    They are without punctuation.
    """
    words = []
    for token in re.finditer(r"\S+", text):
        for start, end in _split_unspaced(token.group()):
            words.append((token.start() + start, token.start() + end))
    return words


def _split_unspaced(token: str) -> list[tuple[int, int]]:
    """The units of a token without white space.

    They are the words of spaced scripts, and the single characters of the others.
    """
    spans: list[tuple[int, int]] = []
    begins_unit = True  # whether the next letter begins a unit
    for i, character in enumerate(token):
        kind = unicodedata.category(character)[0]
        is_unit = is_unspaced(character)
        if kind in "LN":
            if begins_unit or is_unit:
                spans.append((i, i + 1))
            else:
                spans[-1] = (spans[-1][0], i + 1)
            begins_unit = is_unit
        elif kind == "M" and spans and spans[-1][1] == i:
            spans[-1] = (spans[-1][0], i + 1)  # a combining mark belongs to the letter before it
    return spans
