"""What is wrong with an answer of the recogniser, told from its text alone. Pure functions.

retries.py lists the faults and says what follows from each.
"""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from speech.models.recogniser import Hypothesis

LONG_SECONDS = 20.0  # in a chunk of this length or longer, too little text is a fault
MAX_LETTERS_PER_SECOND = 40  # the fastest speech of any language has about 30
MIN_RATED_SECONDS = 2.0  # a shorter chunk may have as many letters as one of this length
# Less text than this in a long chunk is a fault: about 3 words a minute.
MIN_LETTERS_PER_SECOND = 0.25
# A loop is a phrase that comes 10 times in a row, or a long phrase that comes 4 times.
REPEATED = re.compile(r"(.{1,60}?)\1{9,}|(.{20,120}?)\2{3,}", re.DOTALL)
ECHO_LETTERS = 16  # an answer that begins with 16 letters of its prompt is an echo
# A shorter context or list counts as echoed when all of its 8 or more letters return.
MIN_ECHO_LETTERS = 8
# Texts this similar are the same words, spelt differently. The scale is difflib's; 95 of 100 pairs
# of other words are under 0.65.
SAME_WORDS_RATIO = 0.7
FIRST_WIDE = 0x1100  # from this code point on, a character is a syllable or more
WIDE_LETTERS = 3  # such a character counts as 3 letters of an alphabet


def fault_in(hypothesis: Hypothesis, echo: str, seconds: float) -> str | None:
    """The fault of an answer for a chunk of `seconds`, or None. `echo`: the result of `echoed`.

    An answer without text is no fault: the chunk holds no speech, but silence, music, laughter or
    noise. Repetition alone is no fault either, because laughter and chants repeat.
    """
    text = hypothesis.text
    if not text:
        return None
    letters = letters_in(text)
    at_limit = hypothesis.finish_reason == "length"
    too_fast = letters > MAX_LETTERS_PER_SECOND * max(seconds, MIN_RATED_SECONDS)
    if (at_limit or too_fast) and REPEATED.search(text):
        return "loop"
    if at_limit:
        return "cut_off"
    if too_fast:
        return "too_much"
    if echo:
        return "context_echo"
    if seconds >= LONG_SECONDS and letters < MIN_LETTERS_PER_SECOND * seconds:
        return "too_little"
    return None


def is_broken(hypothesis: Hypothesis) -> bool:
    """Whether an answer is that of a broken GPU.

    Where it computes NaN, every token is the first of the vocabulary, which is "!".
    """
    return hypothesis.finish_reason == "length" and set(hypothesis.text) == {"!"}


def letters_in(text: str) -> int:
    """The amount of text, in letters of an alphabet."""
    letters = 0
    for character in text:
        if character.isalnum():
            letters += WIDE_LETTERS if ord(character) >= FIRST_WIDE else 1
    return letters


def collapsed(text: str) -> list[int]:
    """The positions of the characters of `text` that are left with every repeated phrase once.

    At the end, where the answer was cut off, a part of the repeated phrase is left out.
    """
    kept: list[int] = []
    end = 0
    phrase = ""
    for repeats in REPEATED.finditer(text):
        phrase = repeats[1] or repeats[2]
        kept += range(end, repeats.start() + len(phrase))
        end = repeats.end()
    rest = text[end:]
    is_part_of_phrase = phrase.startswith(rest) and normalised(rest) != ""
    if not is_part_of_phrase:
        kept += range(end, len(text))
    return _without_outer_space(text, kept)


def _without_outer_space(text: str, kept: list[int]) -> list[int]:
    start, end = 0, len(kept)
    while start < end and text[kept[start]].isspace():
        start += 1
    while start < end and text[kept[end - 1]].isspace():
        end -= 1
    return kept[start:end]


def normalised(text: str) -> str:
    """The letters and numbers of a text, in lower case."""
    return "".join(filter(str.isalnum, text.lower()))


def echoed(context: str, terms: Sequence[str], text: str) -> str:
    """The letters of its prompt that `text` begins with, or "" where they may be chance."""
    answer = normalised(text)
    for echo in _possible_echoes(context, terms):
        if answer.startswith(echo) and letters_in(echo) >= MIN_ECHO_LETTERS:
            return echo
    return ""


def _possible_echoes(context: str, terms: Sequence[str]) -> Iterator[str]:
    yield from _echoes_of_context(normalised(context))
    yield from _echoes_of_terms([letters for term in terms if (letters := normalised(term))])


def _echoes_of_context(letters: str) -> Iterator[str]:
    """The first ECHO_LETTERS letters, and every suffix at least that long; a shorter one whole."""
    if len(letters) < MIN_ECHO_LETTERS:
        return
    yield letters[:ECHO_LETTERS]
    last_start = max(0, len(letters) - ECHO_LETTERS)
    for start in range(last_start + 1):
        yield letters[start:]


def _echoes_of_terms(terms: Sequence[str]) -> Iterator[str]:
    """From each term on, two or more in the order of the list, until they have ECHO_LETTERS.

    A single term may well have been said.
    """
    for i, run in enumerate(terms[:-1]):
        for term in terms[i + 1 :]:
            run += term
            if letters_in(run) >= ECHO_LETTERS:
                break
        yield run


def same_words(first: str, second: str) -> bool:
    """Whether two normalised texts are two spellings of the same words."""
    return SequenceMatcher(None, first, second).ratio() >= SAME_WORDS_RATIO
