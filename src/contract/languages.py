"""The languages of Qwen3-ASR: their names, their codes, and which of them the aligner knows."""

LANGUAGES = {  # that Qwen3-ASR transcribes: the name in its prompt → ISO 639 code
    "Chinese": "zh", "English": "en", "Cantonese": "yue", "Japanese": "ja", "Korean": "ko", "French": "fr", "German": "de",
    "Spanish": "es", "Portuguese": "pt", "Italian": "it", "Arabic": "ar", "Russian": "ru", "Thai": "th", "Vietnamese": "vi",
    "Indonesian": "id", "Turkish": "tr", "Hindi": "hi", "Malay": "ms", "Dutch": "nl", "Swedish": "sv", "Danish": "da",
    "Finnish": "fi", "Polish": "pl", "Czech": "cs", "Filipino": "fil", "Persian": "fa", "Greek": "el", "Romanian": "ro",
    "Hungarian": "hu", "Macedonian": "mk",
}  # fmt: skip
OTHER_CODES = {  # ISO 639-3, 639-2/B and withdrawn codes. For Hong Kong and Macau Chinese is Cantonese, as in other speech services
    "zho": "Chinese", "chi": "Chinese", "cmn": "Chinese", "eng": "English", "zh-yue": "Cantonese", "zh-hk": "Cantonese",
    "zh-mo": "Cantonese", "jpn": "Japanese", "kor": "Korean", "fra": "French", "fre": "French", "deu": "German", "ger": "German",
    "spa": "Spanish", "por": "Portuguese", "ita": "Italian", "ara": "Arabic", "arb": "Arabic", "rus": "Russian", "tha": "Thai",
    "vie": "Vietnamese", "ind": "Indonesian", "in": "Indonesian", "tur": "Turkish", "hin": "Hindi", "msa": "Malay", "may": "Malay",
    "zsm": "Malay", "nld": "Dutch", "dut": "Dutch", "swe": "Swedish", "dan": "Danish", "fin": "Finnish", "pol": "Polish",
    "ces": "Czech", "cze": "Czech", "tl": "Filipino", "tgl": "Filipino", "fas": "Persian", "per": "Persian", "pes": "Persian",
    "ell": "Greek", "gre": "Greek", "ron": "Romanian", "rum": "Romanian", "hun": "Hungarian", "mkd": "Macedonian", "mac": "Macedonian",
}  # fmt: skip
# of Qwen3-ForcedAligner
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
