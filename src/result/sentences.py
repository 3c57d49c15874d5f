"""Where the sentences of a text end: by its marks, not by pauses. Pure functions.

No library is used. sentencex (Wikimedia, MIT), the only maintained one for all 30 languages, ends
sentences at "M. Dupont", "Dr. Nowak", "Dne 13. října" and "TP. Hồ Chí Minh", and takes quadratic
time in Chinese. So a full stop ends no sentence
- after an abbreviation of abbreviations.py, an initial, or a number that is an ordinal;
- before a small letter, where sentences begin with capitals.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

from result.abbreviations import (
    BEFORE_NAMES,
    BEFORE_NUMBERS,
    FIRST_WORDS,
    ORDINAL_LANGUAGES,
    WITHIN_NAMES,
)
from speech.text_units import SENTENCE_MARKS, is_clustered, is_unspaced

# The end of a sentence, with its closing quotes and brackets.
_MARKS = f"[{SENTENCE_MARKS}]"
_MARKS_OF_GREEK = r"[.!?…\u037e;]"
_CLOSING = r"""["'”’»›“）)\]」』】]*$"""
_TERMINATED = re.compile(_MARKS + _CLOSING)
_TERMINATED_IN_GREEK = re.compile(_MARKS_OF_GREEK + _CLOSING)
MAX_TOKEN = 30  # characters before a full stop that may be an abbreviation
_TOKEN = re.compile(r"""[^\s("'“‘„«‹\[（「『【,;:!?]*$""")
_INITIALS = re.compile(r"(?:[^\W\d_]\.-?)*[^\W\d_]")  # J. and U.S. do not end a sentence
_ORDINAL = re.compile(r"\d{1,2}|[IVX]{2,}")
MAX_THAI_ABBREVIATION = 4  # letters
TRAILING = frozenset("!?:;»%€")  # French and others write a space before these marks

Place = tuple[int, int, str | None]  # (start, end, language) of a word without its punctuation


def sentence_ends(text: str, words: Sequence[Place]) -> list[bool]:
    """Whether each word is the last of a sentence, by the marks after it.

    `words`: in order. The last one is not said to be the end: the text ends there anyway.
    """
    ends: list[bool] = []
    first = True  # whether the word is the first of its sentence
    has_capitals = True  # whether the sentence does not begin with a small letter
    for word, following in zip(words, [*words[1:], None]):
        if first:
            has_capitals = not text[word[0]].islower()
        ends.append(following is not None and _ends(text, word, following[0], first, has_capitals))
        first = ends[-1]
    return ends


def boundary(text: str, end: int, start: int) -> int:
    """Where the punctuation of the first of two words ends.

    It ends at white space, or else before an opening mark of the second word. `end` is the end of
    the first word, `start` the start of the second.
    """
    if text[end:start].isspace():
        return end
    last_space = max((i for i in range(end, start) if text[i].isspace()), default=end - 1)
    for i in range(end, start):
        if text[i].isspace():
            if not _is_trailing(text, i + 1, start):
                return i
        elif i > last_space and _opens(text[i]):
            return i
    return start


def _is_trailing(text: str, i: int, start: int) -> bool:
    """Whether text[i], after white space, is a mark of the word before it."""
    return i + 1 < start and text[i] in TRAILING and text[i + 1].isspace()


def _opens(character: str) -> bool:
    """Whether a character is a mark that stands before a word."""
    return unicodedata.category(character) in ("Ps", "Pi") or character in "¿¡"


def _ends(text: str, word: Place, start: int, first: bool, has_capitals: bool) -> bool:
    """Whether a sentence ends between a word and the next one, which begins at `start`."""
    begin, end, language = word
    if end == start or text[end:start].isspace():
        return False
    after_word = text[end : boundary(text, end, start)]
    pattern = _TERMINATED_IN_GREEK if language == "Greek" else _TERMINATED
    marks = pattern.search(after_word)
    if not marks:
        return False
    is_ellipsis = marks[0][0] == "…" or (marks[0][0] == "." and after_word.startswith(".."))
    if not is_ellipsis and marks[0][0] != ".":
        return True
    has_gap = after_word != text[end:start]
    if _first_word(text, start).islower() and (has_capitals or not has_gap):
        return False
    if is_ellipsis:
        return has_gap or not is_unspaced(text[start])
    if first and text[begin:end].isdigit():
        return False  # the number of an item in a list
    return not _is_abbreviated(text, begin, end, start, language)


def _is_abbreviated(text: str, begin: int, end: int, start: int, language: str | None) -> bool:
    """Whether the full stop after the word text[begin:end] belongs to an abbreviation or number.

    `start`: where the next word starts.
    """
    token = text[begin:end]
    if found := _TOKEN.search(text[max(0, end - MAX_TOKEN) : end]):
        token = found[0] or token
    following = _first_word(text, start)
    is_roman = language in ORDINAL_LANGUAGES and _ORDINAL.fullmatch(token)
    if text[begin:end].isdigit() or is_roman:
        return _is_ordinal(token, following, language) or is_unspaced(following[0])
    if token.lower() in _set_of("within", language):
        return not _begins_sentence(following, language)
    if is_clustered(token[-1]):
        return len(token) <= MAX_THAI_ABBREVIATION or "." in token
    if _INITIALS.fullmatch(token):
        return not _is_syllable(token[-1])
    names = (token, token.lower(), token.rpartition(".")[2])
    if any(name in _set_of("names", language) for name in names):
        return True
    is_before_number = any(name in _set_of("numbers", language) for name in names)
    return is_before_number and following[0].isdigit()


def _is_ordinal(token: str, following: str, language: str | None) -> bool:
    """Whether a number with a full stop is an ordinal, as in 13. Oktober, or part of a date."""
    if language not in ORDINAL_LANGUAGES:
        return False
    if following[0].islower() or following[0].isdigit():
        return True
    return bool(_ORDINAL.fullmatch(token)) and not _begins_sentence(following, language)


def _begins_sentence(word: str, language: str | None) -> bool:
    return word.lower() in _set_of("first", language)


def _first_word(text: str, start: int) -> str:
    """The letters from `start` on, or one character."""
    found = re.compile(r"[^\W\d_]+").match(text, start)
    return found[0] if found else text[start]


def _is_syllable(letter: str) -> bool:
    """Whether a letter is a word or syllable by itself: Chinese, Japanese or Korean."""
    return unicodedata.east_asian_width(letter) in "WF"


@cache
def _set_of(kind: str, language: str | None) -> frozenset[str]:
    """The entries of one table for a language."""
    tables = {
        "names": BEFORE_NAMES,
        "numbers": BEFORE_NUMBERS,
        "within": WITHIN_NAMES,
        "first": FIRST_WORDS,
    }
    return frozenset(tables[kind].get(language or "", "").split())
