"""The bytes of an MP3 or AAC file without what is no audio between its frames.

Files that were joined byte by byte keep their tags. A saved radio stream may hold the titles that
its server sent. FFmpeg would take both for damaged audio. Knows nothing of samples.
"""

import os
import re

from growing_file import GrowingFile

ID3V2_BYTES = 10  # of its header, and of its footer where it has one
ID3V1 = re.compile(rb"TAG[^\x01-\x08\x0e-\x1f]{125}", re.DOTALL)  # text of fixed length, a genre
ID3V1_BYTES = 128
APE_BYTES = 32  # of its header
APE_NAME = b"APETAGEX"
APE_HEADER_FLAG = 1 << 29  # set in a header, not in a footer
MARKS = (b"ID3", APE_NAME, b"TAG")
MAX_ICY_BYTES = 16 * 255  # of a block of titles, whose length is one byte that counts 16 bytes
MAX_ICY_INTERVAL = 1 << 15  # bytes of audio between two blocks; common servers send 8000 to 32768


class WithoutTags:
    """A file object that skips ID3 and APE tags, but for ID3v2 tags at its start.

    A tag has to be followed by a frame, another tag, or the end of the file. Positions count the
    bytes that are not skipped.
    """

    def __init__(self, file: GrowingFile):
        self._file = file
        self._leading = _leading_tags_bytes(file)
        self._skipped: dict[int, int] = {}  # bytes of the tag before each position
        self._move(0)

    def read(self, count: int) -> bytes:
        """The next bytes: at most `count`, fewer before a tag, none at the end of the file."""
        while True:
            missing = count + ID3V1_BYTES - len(self._held)
            self._held += self._file.read(missing) if missing > 0 else b""
            start = self._next_mark(count)
            if start > 0 or not self._held:
                return self._take(start)
            if not self._skip_tag():
                self._checked = 1

    def seek(self, offset: int, whence: int) -> int:
        """Knows no other tags than those that were skipped so far."""
        if whence == os.SEEK_END:
            offset += self._file.size - sum(self._skipped.values())
        self._move(offset)
        return offset

    def tell(self) -> int:
        return self._position

    def _move(self, position: int) -> None:
        before = [size for place, size in self._skipped.items() if place <= position]
        self._file.seek(position + sum(before), os.SEEK_SET)
        self._position = position
        self._held = b""  # read from the file, and not yet given
        self._checked = max(0, self._leading - position)  # so many of these bytes begin no tag

    def _next_mark(self, count: int) -> int:
        """Where the first mark of a tag lies in the held bytes; at most `count`."""
        first = min(count, len(self._held))
        for mark in MARKS:
            at = self._held.find(mark, self._checked, first + len(mark))
            first = at if 0 <= at < first else first
        return first

    def _take(self, count: int) -> bytes:
        data, self._held = self._held[:count], self._held[count:]
        self._position += len(data)
        self._checked = max(0, self._leading - self._position)
        return data

    def _skip_tag(self) -> bool:
        """Move behind the tag with which the held bytes begin; False where they begin none."""
        size = _tag_bytes(self._held)
        if not size:
            return False
        here = self._file.tell()
        end = here - len(self._held) + size
        self._file.seek(end, os.SEEK_SET)
        behind = self._file.read(ID3V1_BYTES)
        if not _is_audio_or_tag(behind) and (behind or end > self._file.size):
            self._file.seek(here, os.SEEK_SET)
            return False
        self._skipped[self._position] = size
        self._held = behind
        return True


class WithoutTitles:
    """A file object without `seek` for a saved radio stream: skips the titles of its server.

    After every `interval` bytes of audio such a stream has a byte that tells the length of a block
    of text, mostly 0.
    """

    def __init__(self, file: GrowingFile, interval: int):
        self._file = file
        self._interval = interval
        self._missing = interval  # bytes up to the next block

    def read(self, count: int) -> bytes:
        """The next bytes: at most `count`, fewer before a block, none at the end of the file."""
        if not self._missing:
            self._skip_block()
        data = self._file.read(min(count, self._missing))
        self._missing -= len(data)
        return data

    def _skip_block(self) -> None:
        """Skip a block. Where there is none, the rest of the file is no such stream."""
        here = self._file.tell()
        length = 16 * int.from_bytes(self._file.read(1), "little")
        self._missing = self._interval
        if length and not self._file.read(length).startswith(b"Stream"):
            self._file.seek(here, os.SEEK_SET)
            self._missing = 1 << 62


def without_tags(file: GrowingFile) -> WithoutTags | WithoutTitles:
    """The audio of an MP3 or AAC file, from its start."""
    file.seek(0, os.SEEK_SET)
    interval = _icy_interval(file.read(MAX_ICY_INTERVAL + 1 + MAX_ICY_BYTES))
    file.seek(0, os.SEEK_SET)
    return WithoutTitles(file, interval) if interval else WithoutTags(file)


def _icy_interval(head: bytes) -> int:
    """Bytes of audio before the first block of titles of a radio stream; 0 without one."""
    title = head.find(b"StreamTitle='")
    if title < 1:
        return 0
    text = head[title : title + 16 * head[title - 1]]
    return title - 1 if text.rstrip(b"\0").endswith(b"';") else 0


def _leading_tags_bytes(file: GrowingFile) -> int:
    """Bytes of the ID3v2 tags with which the file begins."""
    size = 0
    while tag := _id3v2_bytes(file.read(ID3V2_BYTES)):
        size += tag
        file.seek(size, os.SEEK_SET)
    file.seek(0, os.SEEK_SET)
    return size


def _tag_bytes(data: bytes) -> int:
    """Bytes of the tag whose start this is; 0 for none."""
    if ID3V1.match(data):
        return ID3V1_BYTES
    if data.startswith(APE_NAME) and len(data) >= APE_BYTES:
        size, _, flags = (int.from_bytes(data[i : i + 4], "little") for i in (12, 16, 20))
        return APE_BYTES + size if flags & APE_HEADER_FLAG else 0
    return _id3v2_bytes(data)


def _id3v2_bytes(data: bytes) -> int:
    """Bytes of an ID3v2 tag by its header (id3.org/id3v2.4.0-structure, section 3.1)."""
    is_header = len(data) >= ID3V2_BYTES and data.startswith(b"ID3") and 2 <= data[3] <= 4
    if not is_header or data[4] == 0xFF or data[5] & 0x0F or max(data[6:10]) > 0x7F:
        return 0
    size = 0
    for byte in data[6:10]:  # 7 bits each
        size = size << 7 | byte
    return ID3V2_BYTES + size + (ID3V2_BYTES if data[5] & 0x10 else 0)


def _is_audio_or_tag(data: bytes) -> bool:
    """Whether these bytes begin with a frame of MPEG audio or with a tag, behind any zeros."""
    data = data.lstrip(b"\0")
    is_frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    return is_frame or _tag_bytes(data) > 0
