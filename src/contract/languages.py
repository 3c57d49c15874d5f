"""The languages of Qwen3-ASR: their names, their codes, and which of them the aligner knows."""

import re

# The names are those in Qwen3-ASR's prompt; the codes are ISO 639.
LANGUAGES = {
    "Chinese": "zh",
    "English": "en",
    "Cantonese": "yue",
    "Japanese": "ja",
    "Korean": "ko",
    "French": "fr",
    "German": "de",
    "Spanish": "es",
    "Portuguese": "pt",
    "Italian": "it",
    "Arabic": "ar",
    "Russian": "ru",
    "Thai": "th",
    "Vietnamese": "vi",
    "Indonesian": "id",
    "Turkish": "tr",
    "Hindi": "hi",
    "Malay": "ms",
    "Dutch": "nl",
    "Swedish": "sv",
    "Danish": "da",
    "Finnish": "fi",
    "Polish": "pl",
    "Czech": "cs",
    "Filipino": "fil",
    "Persian": "fa",
    "Greek": "el",
    "Romanian": "ro",
    "Hungarian": "hu",
    "Macedonian": "mk",
}
# ISO 639-3, 639-2/B and withdrawn codes. For Hong Kong and Macau Chinese is Cantonese, as in other
# speech services.
OTHER_CODES = {
    "zho": "Chinese",
    "chi": "Chinese",
    "cmn": "Chinese",
    "eng": "English",
    "zh-yue": "Cantonese",
    "zh-hk": "Cantonese",
    "zh-mo": "Cantonese",
    "jpn": "Japanese",
    "kor": "Korean",
    "fra": "French",
    "fre": "French",
    "deu": "German",
    "ger": "German",
    "spa": "Spanish",
    "por": "Portuguese",
    "ita": "Italian",
    "ara": "Arabic",
    "arb": "Arabic",
    "rus": "Russian",
    "tha": "Thai",
    "vie": "Vietnamese",
    "ind": "Indonesian",
    "in": "Indonesian",
    "tur": "Turkish",
    "hin": "Hindi",
    "msa": "Malay",
    "may": "Malay",
    "zsm": "Malay",
    "nld": "Dutch",
    "dut": "Dutch",
    "swe": "Swedish",
    "dan": "Danish",
    "fin": "Finnish",
    "pol": "Polish",
    "ces": "Czech",
    "cze": "Czech",
    "tl": "Filipino",
    "tgl": "Filipino",
    "fas": "Persian",
    "per": "Persian",
    "pes": "Persian",
    "ell": "Greek",
    "gre": "Greek",
    "ron": "Romanian",
    "rum": "Romanian",
    "hun": "Hungarian",
    "mkd": "Macedonian",
    "mac": "Macedonian",
}
# The languages of Qwen3-ForcedAligner.
ALIGNED_LANGUAGES = frozenset(
    (
        "Chinese",
        "English",
        "Cantonese",
        "French",
        "German",
        "Italian",
        "Japanese",
        "Korean",
        "Portuguese",
        "Russian",
        "Spanish",
    )
)
_BY_NAME = {
    **{name.lower(): name for name in LANGUAGES},
    **{code: name for name, code in LANGUAGES.items()},
    **OTHER_CODES,
}
# The scripts of Chinese: Simplified, Traditional, and the standards of Taiwan and Hong Kong. A tag
# without a script has that of its region (CLDR's likely subtags). zh-CN and zh-SG are left out:
# most requests in Chinese say zh-CN, and their text stays as the model writes it.
CHINESE_SCRIPTS = {
    "hans": "Hans",
    "hant": "Hant",
    "tw": "Hant-TW",
    "hk": "Hant-HK",
    "mo": "Hant-HK",
}
SCRIPT_LETTERS = 4  # a subtag of four letters is a script (BCP 47)
# BCP 47 in lower case, without its extensions of one letter.
_TAG = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")


def language_named(text: str) -> str | None:
    """The language with this name or code, in any case; None for an unknown one.

    Of a tag like zh-Hant-HK a region may change the language, while a script never does.
    """
    name = text.lower().replace("_", "-")
    if not _TAG.fullmatch(name):
        return _BY_NAME.get(name)
    language, *subtags = name.split("-")
    for subtag in subtags:
        if (code := f"{language}-{subtag}") in _BY_NAME:
            return _BY_NAME[code]
    return _BY_NAME.get(language)


def script_named(text: str) -> str | None:
    """The script of Chinese or Cantonese in a tag: zh-Hant, zh-TW, yue-Hans. None without one.

    A region makes zh-Hant more precise, and does not change zh-Hans. Raises ValueError, with the
    subtag, for another script.
    """
    if language_named(text) not in ("Chinese", "Cantonese"):
        return None
    subtags = text.lower().replace("_", "-").split("-")[1:]
    for subtag in subtags:
        if len(subtag) == SCRIPT_LETTERS and subtag.isalpha() and subtag not in CHINESE_SCRIPTS:
            raise ValueError(subtag.title())
    named = [CHINESE_SCRIPTS[subtag] for subtag in subtags if subtag in CHINESE_SCRIPTS]
    if "Hans" in named[:1]:
        return "Hans"
    return max(named, key=len, default=None)
