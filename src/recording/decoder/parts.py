"""Files that are several recordings joined byte by byte: one file object for each of them.

Radio stations send an Ogg stream a song. FLAC and WAV files were put together with `cat`. FFmpeg
would stop, or decode with the wrong parameters, where the second one begins.
"""

import os
import re
from functools import partial

from growing_file import GrowingFile

OGG_PAGE = re.compile(rb"OggS\0(?:[\x02\x06]|(?P<body>.))", re.DOTALL)
FLAC_HEADER = re.compile(rb"fLaC[\0\x80]\0\0\x22")
MARK_BYTES = 8  # no mark is longer


class MarkedParts:
    """A file object without `seek`, for the parts of an Ogg or FLAC file one after the other.

    A part begins with a mark, of which an Ogg with several tracks has several. What is before the
    first mark belongs to the first part.
    """

    def __init__(self, file: GrowingFile, mark: re.Pattern[bytes]):
        """`mark`: matches the start of a part; with a group "body", also what is inside a part."""
        self._file = file
        self._marks = mark
        self._has_body = False  # whether the next start of a part is that of another one
        self._held = b""  # read from the file, and not yet given
        self._is_at_end = False  # of the part

    def read(self, count: int) -> bytes:
        """The next bytes of the part: at most `count`, none at its end."""
        if self._is_at_end:
            return b""
        missing = count + MARK_BYTES - len(self._held)
        self._held += self._file.read(missing) if missing > 0 else b""
        end = self._end_of_part(count)
        self._is_at_end = end < min(count, len(self._held))
        data, self._held = self._held[:end], self._held[end:]
        return data

    def next(self) -> bool:
        """Move to the next part; False where there is none."""
        while self.read(1 << 16):
            pass
        self._is_at_end = self._has_body = False
        return bool(self._held)

    def _end_of_part(self, count: int) -> int:
        """Where the next part begins in the held bytes; `count` where it is not before."""
        for match in self._marks.finditer(self._held):
            if match.start() >= count:
                break
            is_body = "body" in match.groupdict() and match["body"] is not None
            if self._has_body and not is_body:
                return match.start()
            self._has_body = is_body or "body" not in match.groupdict()
        return count


class WavParts:
    """A file object without `seek`, for the parts of a WAV file, whose headers tell their sizes."""

    def __init__(self, file: GrowingFile):
        self._file = file
        self._start = 0
        self.read = file.read

    def next(self) -> bool:
        """Move to the next part; False where there is none."""
        self._start += 8 + self._file.read_integer(self._start + 4, 4)
        self._file.seek(self._start, os.SEEK_SET)
        head = self._file.read(12)
        self._file.seek(self._start, os.SEEK_SET)
        return head[:4] == b"RIFF" and head[8:] == b"WAVE"


Parts = MarkedParts | WavParts
ogg_parts = partial(MarkedParts, mark=OGG_PAGE)
flac_parts = partial(MarkedParts, mark=FLAC_HEADER)
