"""Text → how long a word is when it is spoken, and what ends behind it. Pure functions."""

import re
import unicodedata
from collections.abc import Sequence

from speech.pause_matching import CLAUSE, SENTENCE, WITHIN
from speech.text_units import is_unspaced

# Lengths are in letters. They are fitted to the speech of espeak-ng in fourteen languages.
VOWELS = frozenset("aeiouyıæøœαεηιουωаеиоуыэюяё")
FIRST_VOWEL = 1.2
NEXT_VOWEL = 0.6  # of vowels that follow each other
CONSONANT = 0.85  # and every letter of a script whose vowels are no letters, or not told apart here
VOWEL_SIGN = 0.35  # of a script that writes vowels as marks; accents have no length
WORD = 0.4  # on top of its letters
FIRST_VOWEL_SIGN = "\u0900"  # the marks of Latin, Greek, Cyrillic and Arabic script are before it

_SENTENCE_END = re.compile(r"[.!?…。！？｡．؟۔।॥;]")
_CLAUSE_END = re.compile(r"[,،、，:：；؛—–]")


def spoken_length(word: str) -> float:
    """The length of a word, or of a character where the script has no spaces, in letters."""
    length = 0.0 if is_unspaced(word[0]) else WORD
    follows_vowel = False
    for letter in unicodedata.normalize("NFD", word.lower()):
        if unicodedata.category(letter).startswith("M"):
            length += VOWEL_SIGN if letter >= FIRST_VOWEL_SIGN else 0
            continue
        is_vowel = letter in VOWELS
        vowel = NEXT_VOWEL if follows_vowel else FIRST_VOWEL
        length += vowel if is_vowel else CONSONANT
        follows_vowel = is_vowel
    return length


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
