"""A checkpoint's tokenizer, loaded as it was published, and text without its special tokens."""

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
