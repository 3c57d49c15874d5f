"""The child process of audio.py: decodes one file to int16 mono on stdout; run as a script, imported by nobody.

    python decoder.py RATE HELPERS FILE [SIZE [WHOLE]]

It reads nothing but that one local file, behind limits on memory and on what it may write. With HELPERS over 1 it forks
so many to decode long files in ranges, where that gives the same samples. FFmpeg's libraries come with PyAV; neither
numpy nor asyncio is imported, for both would take longer to load than a minute of sound to decode. The file may still be
growing, to SIZE bytes if that is given, until the file WHOLE exists. A failure is a line of JSON on stderr:
{"kind": "empty" or "undecodable", "message"}.
"""

import io
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from fcntl import F_SETPIPE_SZ, fcntl

import av

from ranges import LEAD, side_by_side
from track import Packets, Track, Undecodable

MEMORY_BYTES = 4 * 1024**3
OUT_BYTES = 1 << 18  # 8 s at 16 kHz: each write wakes the worker
WAIT_SECONDS = 0.02  # for more of a file that is still arriving
FORWARD = (b"OggS", b"RIFF", b"RF64", b"\x1a\x45\xdf\xa3")  # Ogg, WAV, Matroska and WebM: decoded the same without seeking
DEMUXERS = (  # no playlists, no concatenation, no devices: nothing that opens another file or address
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,eac3,flac,flv,loas,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,webm,wv"
)


class Growing:
    """The file for PyAV, whose reads wait for what has not arrived; sizes are those it will have."""

    def __init__(self, path: str, size: int | None, whole: str):
        self._file, self._size, self._whole = open(path, "rb"), size, whole
        self._parent = os.getppid()

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            whole = self._is_whole()  # looked at first: nothing is added afterwards
            block = self._file.read(count - len(data))
            data += block
            if whole and not block:
                break
            if not block:
                self._wait()
        return data

    def seek(self, offset: int, whence: int) -> int:
        if whence != os.SEEK_END:
            return self._file.seek(offset, whence)
        return self._file.seek(self.size + offset)

    def tell(self) -> int:
        return self._file.tell()

    @property
    def size(self) -> int:
        while self._size is None and not self._is_whole():
            self._wait()
        return self._size if self._size is not None else os.fstat(self._file.fileno()).st_size

    def _is_whole(self) -> bool:
        return not self._whole or os.path.exists(self._whole)

    def _wait(self) -> None:
        if os.getppid() != self._parent:
            raise SystemExit("the worker is gone")
        time.sleep(WAIT_SECONDS)


class Forward:
    """The same for formats whose demuxers look at a file's end when they can, for what is not needed to decode it."""

    def __init__(self, file: Growing):
        self.read = file.read


def _blocks(file: Growing, rate: int, helpers: int) -> Iterator[bytes]:
    """The best audio track of the file as little-endian int16 mono at `rate`."""
    av.logging.set_level(av.logging.PANIC)
    head = file.read(512)
    file.seek(0, os.SEEK_SET)
    _refuse_what_is_no_media(head)
    source = Forward(file) if head.startswith(FORWARD) else file
    try:
        # not `options`: PyAV 16 also frees those of streams that it had not seen when it allocated them (FLV, MPEG-PS)
        container = av.open(source, container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"})
    except (av.error.FFmpegError, ValueError) as error:
        raise Undecodable("undecodable", "The file at audio_url is not audio or video in a known format.") from error
    with container:
        stream = container.streams.best("audio")
        if stream is None:
            raise Undecodable("undecodable", "The file at audio_url has no audio track.")
        if stream.codec_context is None:  # to decode one of its packets would crash PyAV
            raise Undecodable("undecodable", "The audio track of the file at audio_url is in a format that is not known.")
        packets = Packets(container, stream)
        track = Track(container, stream, packets, rate)
        in_ranges = helpers > 1 and track.codec.name in LEAD
        yield from side_by_side(track, packets, helpers) if in_ranges else track.decode(packets)
        yield from track.finish()


def _refuse_what_is_no_media(head: bytes) -> None:
    if not head:
        raise Undecodable("empty", "The file at audio_url is empty (0 bytes).")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Undecodable("undecodable", "The file at audio_url is a web page, not audio; the URL must lead to the file itself.")


def _main(rate: str, helpers: str, path: str, size: str = "", whole: str = "") -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # it writes to a pipe and a short report
    out = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "wb", closefd=False), OUT_BYTES)
    try:
        fcntl(out.fileno(), F_SETPIPE_SZ, 2 * OUT_BYTES)
    except OSError:
        pass  # over the user's limit: smaller pieces then
    try:
        for block in _blocks(Growing(path, int(size) if size else None, whole), int(rate), int(helpers)):
            out.write(block)
        out.flush()
    except Undecodable as failure:
        out.flush()
        kind, message = failure.args
        print(json.dumps({"kind": kind, "message": message}), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the job has ended
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
