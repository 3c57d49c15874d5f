"""vLLM's log-probabilities of an answer → the `Token`s of its text. Knows no engine."""

from collections.abc import Sequence
from typing import Any

from speech.models.prompt import TEXT_TAG
from speech.models.tokenizer import token_bytes
from speech.tokens import Token, decoded, moved, origins_of


def answer_tokens(
    tokenizer: Any, token_ids: Sequence[int], logprobs: Sequence[float], text: str
) -> tuple[Token, ...]:
    """The tokens of `text`, which is the answer without its language and its added tokens.

    `token_ids`, `logprobs`: all tokens of the answer, with its end. The tokens are counted from
    their bytes, because one alone may be a part of a character.
    """
    added = tokenizer.get_added_vocab()
    begin = token_ids.index(added[TEXT_TAG]) + 1 if added[TEXT_TAG] in token_ids else 0
    added_ids = set(added.values())
    spoken = [i for i in range(begin, len(token_ids)) if token_ids[i] not in added_ids]
    ids = [token_ids[i] for i in spoken]
    pieces = zip(ids, token_bytes(tokenizer, ids), (logprobs[i] for i in spoken))
    said, tokens = decoded(pieces)
    return moved(tokens, origins_of(text, said))
