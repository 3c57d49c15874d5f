"""What the decoder tells its parent process: one line of JSON on stderr for each report."""

import json
import sys


class FileRefused(Exception):
    """(kind, sentence) for the parent process; pcm_stream.py lists the kinds."""


def report(kind: str, message: str) -> None:
    """Write one line, {"kind": …, "message": …}."""
    print(json.dumps({"kind": kind, "message": message}), file=sys.stderr)
