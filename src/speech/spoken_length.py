"""Text → how long a word is when it is spoken, and what ends behind it. Pure functions."""

import re
import unicodedata
from collections.abc import Sequence

from speech.pause_matching import CLAUSE, SENTENCE, WITHIN
from speech.text_units import SENTENCE_MARKS, is_unspaced

# Lengths are in letters. They are fitted to the speech of espeak-ng in fourteen languages.
FIRST_VOWEL = 1.2
NEXT_VOWEL = 0.6  # of vowels that follow each other
CONSONANT = 0.85  # and every letter of a script that has no letters for vowels
VOWEL_SIGN = 0.35  # of a script that writes vowels as marks
WORD = 0.4  # on top of its letters
# Where each word is one syllable, as in Vietnamese, its letters hardly count.
SYLLABLE = 3.5
LETTER_OF_SYLLABLE = 0.1

_VOWELS = re.compile("[aeiouyıæøœαεηιουωаеиоуыэюяё]+")
_ACCENTS = re.compile("[\u0300-\u06ff]")  # the marks of Latin, Greek, Cyrillic and Arabic letters
_SENTENCE_END = re.compile(f"[{SENTENCE_MARKS};]")
_CLAUSE_END = re.compile(r"[,،、，:：；؛·\u0387—–]")


def spoken_lengths(words: Sequence[str]) -> list[float]:
    """The length in letters of each word, or character where the script has no spaces."""
    plain = [_without_accents(word) for word in words]
    syllables = sum(len(_VOWELS.findall(word)) for word in plain)
    if 0.9 * len(words) <= syllables <= 1.1 * len(words):
        return [SYLLABLE + LETTER_OF_SYLLABLE * len(word) for word in plain]
    return [_spoken_length(word) for word in plain]


def _without_accents(word: str) -> str:
    """A word in lower case without the marks that have no length."""
    decomposed = unicodedata.normalize("NFD", word.lower())
    return "".join(c for c in decomposed if not (_ACCENTS.match(c) and _is_mark(c)))


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def _spoken_length(word: str) -> float:
    """The length of a word without accents, in letters."""
    groups = _VOWELS.findall(word)
    vowels = sum(map(len, groups))
    signs = sum(map(_is_mark, word))
    consonants = len(word) - vowels - signs
    length = FIRST_VOWEL * len(groups) + NEXT_VOWEL * (vowels - len(groups))
    length += CONSONANT * consonants + VOWEL_SIGN * signs
    return length if is_unspaced(word[:1]) else length + WORD


def ends_between(text: str, units: Sequence[tuple[int, int]]) -> list[int]:
    """WITHIN, CLAUSE or SENTENCE for each unit but the last: what ends behind it.

    `units`: (start, end) of each in `text`. A space ends a clause in a script without spaces.
    """
    ends = []
    for (_, end), (start, _) in zip(units, units[1:]):
        between = text[end:start]
        if _SENTENCE_END.search(between):
            ends.append(SENTENCE)
        elif _CLAUSE_END.search(between) or (between and is_unspaced(text[end - 1])):
            ends.append(CLAUSE)
        else:
            ends.append(WITHIN)
    return ends
