"""A checkpoint's tokenizer, loaded as it was published, and text without its special tokens."""

from collections.abc import Sequence
from functools import cache
from typing import Any


def load_tokenizer(folder: str) -> Any:
    """The tokenizer in the local folder, without transformers' repair for Mistral's.

    For a local folder, transformers 4.57 takes Qwen's pre-tokenizer for a broken one of Mistral's:
    it logs a warning, or with `fix_mistral_regex=True` replaces it, which splits iPhone, YouTube
    and GmbH in another way than in the model's training.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, fix_mistral_regex=False)


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """All added and special tokens of the tokenizer, the longest first."""
    tokens = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    return tuple(sorted(tokens, key=len, reverse=True))


def without_tokens(tokens: tuple[str, ...], text: str) -> str:
    """`text` without any of `tokens`, even where the removal of one joins the parts of another."""
    before = None
    while before != text:
        before = text
        for token in tokens:
            text = text.replace(token, "")
    return text


def token_bytes(tokenizer: Any, token_ids: Sequence[int]) -> list[bytes]:
    """The UTF-8 bytes of each token, of which none is an added one.

    A byte-level BPE prints each byte as one character, by GPT-2's `bytes_to_unicode`.
    """
    byte_of = _byte_of_character()
    printed = tokenizer.convert_ids_to_tokens(list(token_ids))
    return [bytes(byte_of[character] for character in token or "") for token in printed]


@cache
def _byte_of_character() -> dict[str, int]:
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
