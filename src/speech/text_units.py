"""Text → where its words are. Pure functions.

A word stands between white space or marks that divide words, and includes its said signs. Where the
script has no spaces, a word is a character; in Thai, Lao, Khmer and Burmese it is a cluster.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

SENTENCE_MARKS = ".!?…。！？｡．؟۔।॥\u037e"  # in all languages
# Thai and Lao, Burmese, Khmer: no spaces between words, and vowels before or after their consonant.
_CLUSTERED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# Scripts without spaces between words: each character is a unit.
_UNSPACED = re.compile(
    "["
    f"{_CLUSTERED}"
    "\u3001-\u30ff\u31f0-\u31ff"  # CJK punctuation, kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # ideographs
    "\uff00-\uff9f"  # full-width forms
    "]"
)
_IN_CLUSTERS = re.compile(f"[{_CLUSTERED}]")
_VOWELS_BEFORE = frozenset("เแโใไເແໂໃໄ")
_VOWELS_AFTER = frozenset("ะาำๅະາຳຽ")
_STACKERS = frozenset("\u1039\u17d2")  # they put the next Burmese or Khmer consonant below
# A Burmese consonant with asat ends the syllable before it.
_ENDS_SYLLABLE = re.compile("[\u1000-\u1021]\u1037?\u103a")

# In an address no mark divides words.
_ADDRESS = (
    r"(?:https?|ftp)://[!-~]+|www\.[!-~]+"
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+"
)
# Marks that divide words without a space: commas, ends of sentences, dashes, ellipses, quotation
# marks and the punctuation of Chinese and Japanese.
_DIVIDERS = (
    r"(?:\.{2,}|--+|[,;!?\u037e…–—―،؛؟۔।॥\"“”„«»"
    r"\u3001-\u3003\u3008-\u3011\u3014-\u301b\u30fb！（），．：；？［］｛｝｟-･])+"
)
_MARKS_OF_NUMBERS = frozenset(",،．：–—―")  # between digits they divide none: 1,000
_BETWEEN_WORDS = re.compile(
    rf"(?P<address>(?a:{_ADDRESS}))|\s+|(?P<divider>{_DIVIDERS})|(?P<stop>[.:])", re.IGNORECASE
)

_SIGNS_OF_NAMES = frozenset("#@＃＠№§")  # #5, @name
_SIGNS_OF_NUMBERS = frozenset("+-−±~≈<>=≤≥＋－")  # -5
_SIGNS_AFTER = frozenset("%‰°٪％℃℉")  # 5%
_SIGNS_OF_GRADES = frozenset("+#＋＃")  # C++, C#


def is_unspaced(character: str) -> bool:
    """Whether the character belongs to a script without spaces between words."""
    return bool(_UNSPACED.match(character))


def join(texts: Sequence[str]) -> tuple[str, list[int]]:
    """(joined text, offset of each text in it).

    Texts are joined by a space, or by nothing between characters of unspaced scripts.
    """
    joined = ""
    offsets: list[int] = []
    for text in texts:
        if joined and text:
            unspaced = is_unspaced(joined[-1]) and is_unspaced(text[0])
            joined += "" if unspaced else " "
        offsets.append(len(joined))
        joined += text
    return joined, offsets


def is_clustered(character: str) -> bool:
    """Whether the character is Thai, Lao, Khmer or Burmese, which have spaces between phrases."""
    return bool(_IN_CLUSTERS.match(character))


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

    They are without punctuation, and with the signs that are said.
    """
    words: list[tuple[int, int]] = []
    begin = 0
    for start, end in [*_between_words(text), (len(text), len(text))]:
        for a, b in _split_unspaced(text[begin:start]):
            earliest = words[-1][1] if words else 0
            words.append(with_signs(text, begin + a, begin + b, earliest, len(text)))
        begin = end
    return words


def with_spaces(text: str) -> str:
    """`text` with a space after each mark that divides two words without one.

    Between characters of unspaced scripts it needs none.
    """
    spaced = ""
    begin = 0
    for start, end in _between_words(text):
        if start == 0 or end == len(text) or text[start:end].isspace():
            continue
        outside = text[start - 1] + text[end]
        if not any(character.isspace() or is_unspaced(character) for character in outside):
            spaced += text[begin:end] + " "
            begin = end
    return spaced + text[begin:]


def with_signs(text: str, start: int, end: int, earliest: int, latest: int) -> tuple[int, int]:
    """The word text[start:end] with the signs that are said before and after it: $5, C++.

    The signs lie in text[earliest:latest].
    """
    while start > earliest and _is_said_before(text, start - 1):
        start -= 1
    while end < latest and _is_said_after(text[end - 1], text[end]):
        end += 1
    return start, end


def _between_words(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of white space and of marks that divide words."""
    for found in _BETWEEN_WORDS.finditer(text):
        start, end = found.span()
        if found["address"]:
            continue
        if found["divider"] and _is_number(text, start, end):
            continue
        if found["stop"] and not _divides_sentences(text, start):
            continue
        yield start, end


def _is_number(text: str, start: int, end: int) -> bool:
    """Whether the marks text[start:end] are part of a number, as in 1,000."""
    if text[start:end] not in _MARKS_OF_NUMBERS:
        return False
    return text[start - 1 : start].isdigit() and text[end : end + 1].isdigit()


def _divides_sentences(text: str, i: int) -> bool:
    """Whether the full stop or colon text[i] stands between sentences: maybe.Right.

    It does not in example.com, Ph.D, U.S. and EU:n.
    """
    before, after = text[max(0, i - 3) : i], text[i + 1 : i + 3]
    if not before or not after or not _are_letters(before[-2:] + after[0]):
        return False
    if before[-1].islower() and after[0].isupper():
        begins_word = after[1:].islower() or after[1:] in ("'", "’")
        is_word = len(before) == 3 and _are_letters(before) and after[1:] != "."
        return len(before) > 1 and (begins_word or (is_word and not after[1:].isalnum()))
    if _has_case(before[-1]) or _has_case(after[0]):
        return False
    is_syllable = "\uac00" <= before[-1] <= "\ud7a3"
    return is_syllable or (len(before) > 1 and len(after) > 1 and _are_letters(after))


def _are_letters(text: str) -> bool:
    return all(unicodedata.category(character)[0] in "LM" for character in text)


def _has_case(character: str) -> bool:
    return character.isupper() or character.islower()


def _is_said_before(text: str, i: int) -> bool:
    """Whether the sign text[i] is said with the word after it."""
    sign, following = text[i], text[i + 1]
    if unicodedata.category(sign) == "Sc":
        return following.isdigit()
    if sign in _SIGNS_OF_NAMES:
        return following.isalnum()
    if sign == "°":
        return following.isupper()
    if sign not in _SIGNS_OF_NUMBERS:
        return False
    before = text[i - 1] if i else " "
    begins = before.isspace() or unicodedata.category(before) in ("Ps", "Pi", "Po")
    return begins and (following.isdigit() or unicodedata.category(following) == "Sc")


def _is_said_after(before: str, sign: str) -> bool:
    """Whether `sign` is said with the word that ends with the character `before`."""
    if sign in _SIGNS_OF_GRADES:
        return before in _SIGNS_OF_GRADES or (before.isascii() and before.isalnum())
    if sign in _SIGNS_AFTER:
        return before.isalnum()
    return unicodedata.category(sign) == "Sc" and before.isdigit()


def _split_unspaced(token: str) -> list[tuple[int, int]]:
    """The units of a token without white space.

    They are the words of spaced scripts, and the single characters or clusters of the others.
    """
    spans: list[tuple[int, int]] = []
    begins_unit = True  # whether the next letter begins a unit
    for i, character in enumerate(token):
        kind = unicodedata.category(character)[0]
        is_unit = is_unspaced(character)
        continues = bool(spans) and spans[-1][1] == i
        if kind in "LN":
            if (begins_unit or is_unit) and not (continues and _continues_cluster(token, i)):
                spans.append((i, i + 1))
            else:
                spans[-1] = (spans[-1][0], i + 1)
            begins_unit = is_unit
        elif kind == "M" and continues:
            spans[-1] = (spans[-1][0], i + 1)  # a combining mark belongs to the letter before it
    return spans


def _continues_cluster(token: str, i: int) -> bool:
    """Whether the letter token[i] belongs to the cluster of the character before it."""
    before = token[i - 1]
    return (
        token[i] in _VOWELS_AFTER
        or before in _VOWELS_BEFORE
        or before in _STACKERS
        or bool(_ENDS_SYLLABLE.match(token, i))
    )
