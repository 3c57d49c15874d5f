"""Chinese text in the script that a request asks for, by OpenCC. Pure functions."""

from dataclasses import replace
from functools import cache

from opencc import OpenCC
from speech.words import ChunkResult

# OpenCC's conversions to each script. Text that is in the script already stays.
CONVERSIONS = {"Hans": "t2s", "Hant": "s2t", "Hant-TW": "s2tw", "Hant-HK": "s2hk"}


def in_script(result: ChunkResult, script: str | None) -> ChunkResult:
    """`result` with its text and words in `script`, at the same offsets; as it is for None."""
    if script is None:
        return result
    text = converted(result.text, script)
    words = [
        replace(word, text=text[word.offset : word.offset + len(word.text)])
        for word in result.words
    ]
    return replace(result, text=text, words=tuple(words))


def converted(text: str, script: str) -> str:
    """`text` in `script`, with as many characters.

    Phrases are converted as a whole: 头发 is 頭髮, and 开发 is 開發. Where a phrase would change
    its length, each character is converted by itself.
    """
    converter = _converter(script)
    whole = str(converter.convert(text))
    if len(whole) == len(text):
        return whole
    return "".join(map(converter.convert, text))


@cache
def _converter(script: str) -> OpenCC:
    return OpenCC(CONVERSIONS[script])
