"""A client's value → text for an error message: short, on one line, printable, without secrets."""

import re

MAX_SHOWN_CHARACTERS = 80


def shown(value: object) -> str:
    """The value as Python writes it; of a URL without its secrets, of an object only its kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
        value = without_secrets(value) if "://" in value else value
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + "..."


def without_secrets(url: str) -> str:
    """The URL without user and password, and without query and fragment.

    The latter hold signatures and tokens.
    """
    return re.sub(r"(?<=//)[^/]*@", "", re.split(r"[?#]", url)[0])
