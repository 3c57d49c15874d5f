"""File objects for PyAV, for a file that may still be arriving. Knows nothing of audio."""

import os
import sys
from select import select

MAX_READ_BYTES = 1 << 20  # FFmpeg asks for a whole cover picture, which would be held twice
WAIT_SECONDS = 0.02  # between two looks at a file that is still arriving


class GrowingFile:
    """A read waits for bytes that have not arrived, and the size is that of the complete file."""

    def __init__(self, descriptor: int, size: int | None):
        """`size`: bytes of the complete file; None where unknown."""
        self._file = open(descriptor, "rb")  # noqa: SIM115 - it is open as long as the process runs
        self._size = size
        self._complete = False

    def read(self, count: int) -> bytes:
        """The next bytes: at most `count` and MAX_READ_BYTES, fewer only at the end of the file."""
        count = min(count, MAX_READ_BYTES)
        data = b""
        while len(data) < count:
            # Asked before the read, because only a complete file gets no more bytes afterwards.
            complete = self._is_complete()
            block = self._file.read(count - len(data))
            data += block
            if complete and not block:
                break
            if not block:
                self._is_complete(WAIT_SECONDS)
        return data

    def seek(self, offset: int, whence: int) -> int:
        if whence != os.SEEK_END:
            return self._file.seek(offset, whence)
        return self._file.seek(self.size + offset)

    def tell(self) -> int:
        return self._file.tell()

    @property
    def size(self) -> int:
        """Bytes; waits for the complete file where its size was not announced."""
        while self._size is None and not self._is_complete(WAIT_SECONDS):
            pass
        return self._size if self._size is not None else os.fstat(self._file.fileno()).st_size

    @property
    def known_size(self) -> int | None:
        """Bytes; None while the size is unknown."""
        return self.size if self._size is not None or self._is_complete() else None

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes that have arrived. Does not move the position of `read`."""
        return os.pread(self._file.fileno(), length, offset)

    def read_integer(self, offset: int, length: int) -> int:
        """Little-endian; as `read_at`."""
        return int.from_bytes(self.read_at(offset, length), "little")

    def _is_complete(self, wait: float = 0) -> bool:
        """Whether stdin is closed; waits up to `wait` seconds for it.

        A worker that dies closes it too, and then the output has no reader.
        """
        self._complete = self._complete or bool(select([sys.stdin], [], [], wait)[0])
        return self._complete


class ForwardOnlyFile:
    """A GrowingFile without `seek`.

    Some demuxers would seek to the end of a file, and wait for it, for data that decoding does not
    need.
    """

    def __init__(self, file: GrowingFile):
        self.read = file.read
