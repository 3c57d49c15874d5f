"""The tokens of an answer: where they are in its text, and how probable the model held them.

Pure functions. Knows no tokenizer and no model. A position is an index of a character.
"""

import codecs
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

# The lowest log-probability, as in vLLM's server. A logarithm of 0, and a NaN, are no valid JSON.
MIN_LOGPROB = -9999.0


class Token(NamedTuple):
    """A token, with the characters of a text of which it has at least one byte.

    A character of three tokens is in all of them. A token may have characters of two words.
    """

    id: int  # in the model's vocabulary
    logprob: float  # natural logarithm of its probability, from MIN_LOGPROB to 0
    start: int  # its first character in the text
    end: int  # the character after its last


def decoded(pieces: Iterable[tuple[int, bytes, float]]) -> tuple[str, list[Token]]:
    """(text, its tokens). `pieces`: id, UTF-8 bytes and log-probability of each token.

    Bytes that are not valid UTF-8 become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts: list[str] = []
    tokens: list[Token] = []
    length = 0
    for token_id, data, logprob in pieces:
        start = length
        parts.append(decoder.decode(data))
        length += len(parts[-1])
        unfinished, _ = decoder.getstate()
        end = length + 1 if unfinished else length
        tokens.append(Token(token_id, _bounded(logprob), start, end))
    parts.append(decoder.decode(b"", final=True))
    return "".join(parts), tokens


def _bounded(logprob: float) -> float:
    return min(logprob, 0.0) if logprob > MIN_LOGPROB else MIN_LOGPROB


def origins_of(text: str, source: str) -> list[int]:
    """For each character of `text` its position in `source`, in order.

    `text`: what is left of `source` after some of its characters were taken out. A character that
    is not found gets the position of the next one.
    """
    origins: list[int] = []
    position = 0
    for character in text:
        found = source.find(character, position)
        if found < 0:
            origins.append(min(position, len(source) - 1))
        else:
            origins.append(found)
            position = found + 1
    return origins


def moved(tokens: Iterable[Token], origins: Sequence[int]) -> tuple[Token, ...]:
    """The tokens of a text that is made of characters of another text.

    `tokens`: those of the other text, of which some may have no character here. `origins`: for each
    character its position in the other text, in order.
    """
    found: list[Token] = []
    for token in tokens:
        start = bisect_left(origins, token.start)
        end = bisect_left(origins, token.end)
        if start < end:
            found.append(Token(token.id, token.logprob, start, end))
    return tuple(found)


def tokens_in(tokens: Sequence[Token], start: int, end: int) -> Sequence[Token]:
    """Those of a text's tokens that have a character of its slice from `start` to `end`."""
    first = bisect_right(tokens, start, key=attrgetter("end"))
    last = bisect_left(tokens, end, key=attrgetter("start"))
    return tokens[first:last]


def mean_logprob(tokens: Sequence[Token]) -> float | None:
    """The mean of their log-probabilities, or None where there are no tokens."""
    if not tokens:
        return None
    return sum(token.logprob for token in tokens) / len(tokens)


def confidence_of(tokens: Sequence[Token]) -> float | None:
    """The geometric mean of their probabilities, or None where there are no tokens."""
    mean = mean_logprob(tokens)
    return None if mean is None else math.exp(mean)
