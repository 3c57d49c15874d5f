"""What the decoder tells its parent process: one line of JSON on stderr for each report."""

import json
import sys


class FileRefused(Exception):
    """(kind, sentence) for the parent process; pcm_stream.py lists the kinds."""


def report(kind: str, message: str, **values: object) -> None:
    """Write one line, {"kind": …, "message": …} and the other values."""
    print(json.dumps({"kind": kind, "message": message} | values), file=sys.stderr)
