"""What the decoder tells its parent process: one line of JSON on stderr for each report."""

import json
import sys


class FileRefused(Exception):
    """(kind, sentence) for the parent process; pcm_stream.py lists the kinds."""


def report(kind: str, message: str, **fields: object) -> None:
    """Write one line, {"kind": …, "message": …} with `fields`."""
    print(json.dumps({"kind": kind, "message": message} | fields), file=sys.stderr)
