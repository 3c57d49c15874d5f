"""The child process of audio.py: decodes one file to int16 mono on stdout; run as a script, imported by nobody.

    python decoder.py '{"rate": 16000, "descriptor": 3, …}'    the arguments of `_main`, as JSON

It reads nothing but the one file that is open as `descriptor`, and confine.py sees to it that it can do nothing else. FFmpeg's
libraries come with PyAV; neither numpy nor asyncio is imported, for both would take longer to load than a minute of sound to
decode. The file may still be growing, until stdin is closed. A failure is a line of JSON on stderr: {"kind": "empty",
"undecodable", "too long" or "no channel", "message"}; so is a "warning", without failure, that the file holds less than it
declares.
"""

import io
import json
import os
import sys
from collections.abc import Iterator
from fcntl import F_SETPIPE_SZ, fcntl
from fractions import Fraction
from itertools import chain, islice
from math import inf
from select import select

import av
import av.subtitles.codeccontext  # like the next, PyAV imports it with the first track: too late
import av.subtitles.stream

from confine import confine
from track import MATROSKA, MP4, Packets, Track, Undecodable

OUT_BYTES = 1 << 18  # 8 s at 16 kHz: each write wakes the worker
WRONG_SECONDS, WRONG_SHARE = 1.0, 0.01  # of a declared length: it may be wrong by the larger of both
UNKNOWN_SIZES, UNKNOWN_MARGIN = (2**31, 2**32), 2**16  # bytes that a WAV declares, more or less, whose writer knew no size
SAMPLED_PACKETS = 500  # at the start of a file: their bytes tell how long a file of its size may be
WAIT_SECONDS = 0.02  # for more of a file that is still arriving
FORWARD = (b"OggS", b"RIFF", b"RF64", b"\x1a\x45\xdf\xa3")  # Ogg, WAV, Matroska and WebM: decoded the same without seeking
DEMUXERS = (  # no playlists, no concatenation, no devices: nothing that opens another file or address
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,eac3,flac,flv,loas,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,webm,wv"
)


class Growing:
    """The file for PyAV, whose reads wait for what has not arrived; sizes are those it will have."""

    def __init__(self, descriptor: int, size: int | None):
        self._file, self._size, self._whole = open(descriptor, "rb"), size, False

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            whole = self._is_whole()  # looked at first: nothing is added afterwards
            block = self._file.read(count - len(data))
            data += block
            if whole and not block:
                break
            if not block:
                self._is_whole(WAIT_SECONDS)
        return data

    def seek(self, offset: int, whence: int) -> int:
        if whence != os.SEEK_END:
            return self._file.seek(offset, whence)
        return self._file.seek(self.size + offset)

    def tell(self) -> int:
        return self._file.tell()

    @property
    def size(self) -> int:
        while self._size is None and not self._is_whole(WAIT_SECONDS):
            pass
        return self._size if self._size is not None else os.fstat(self._file.fileno()).st_size

    @property
    def known_size(self) -> int | None:
        """None while nobody can tell."""
        return self.size if self._size is not None or self._is_whole() else None

    def number(self, at: int, length: int) -> int:
        """Little-endian, from bytes that have arrived; reading goes on where it was."""
        return int.from_bytes(os.pread(self._file.fileno(), length, at), "little")

    def _is_whole(self, wait: float = 0) -> bool:
        """Within `wait` seconds. A worker that dies closes stdin too, and then nobody reads what is decoded."""
        self._whole = self._whole or bool(select([sys.stdin], [], [], wait)[0])
        return self._whole


class Forward:
    """The same for formats whose demuxers look at a file's end when they can, for what is not needed to decode it."""

    def __init__(self, file: Growing):
        self.read = file.read


def _blocks(file: Growing, rate: int, channel: int | None, begin: int, end: int, limit: float) -> Iterator[bytes]:
    """The best audio track of the file as little-endian int16 mono at `rate`, up to the sample `end`; see `_main`."""
    av.logging.set_level(av.logging.PANIC)
    head = file.read(512)
    file.seek(0, os.SEEK_SET)
    _refuse_what_is_no_media(head)
    source = Forward(file) if head.startswith(FORWARD) else file
    try:
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
        track = Track(container, stream, packets, rate, channel)
        coming = iter(packets)
        first = list(islice(coming, 1))
        declared = _declared_seconds(file, container, first[0]) if first else 0.0
        furthest = begin / rate + limit  # seconds
        # a Matroska with pictures declares their length too, and its sound may be far shorter: nothing can be refused by it
        refusable = end / rate > furthest and (container.format.name != MATROSKA or len(container.streams) == 1)
        if refusable and _is_longer(declared, furthest):
            first += islice(coming, SAMPLED_PACKETS)
            if _is_longer(min(declared, _seconds_in(file.known_size, first)), furthest):
                raise Undecodable("too long", f"The audio is longer than the {limit:g} seconds allowed; start and end can choose a part of it.")
        left = 2 * end  # bytes
        for block in chain(track.decode(chain(first, coming)), track.finish()):
            yield block[:left]
            left -= len(block)
            if left <= 0:
                break
        track.check()
        held = max(track.seconds, packets.end)  # some writers declare the last timestamp
        if left > 0 and _is_longer(declared, held) and not _is_longer(packets.others_end, held):
            _report("warning", f"The file declares {declared:.1f} seconds of audio, but holds only {track.seconds:.1f}; the rest is missing.")


def _declared_seconds(file: Growing, container, first) -> float:
    """The length that the file declares, from time 0 to the end of the sound; 0 where FFmpeg could but guess it.

    `first` is the first packet of the sound. Of Matroska it is the length of the longest track.
    """
    name, stream = container.format.name, first.stream
    if name == MATROSKA:
        return (container.duration or 0) / av.time_base
    if name in (MP4, "flac"):
        late = (stream.start_time or 0) * stream.time_base - Fraction(container.start_time or 0, av.time_base)
        return float(late + (stream.duration or 0) * stream.time_base)
    if name != "wav" or not stream.codec_context.name.startswith("pcm_") or not first.size:
        return 0.0
    size = file.number(first.pos - 4, 4)  # FFmpeg keeps it to itself where less is there
    if size == 2**32 - 1 and file.number(0, 4) == int.from_bytes(b"RF64", "little"):
        size = file.number(28, 8)
    is_known = all(abs(size - unknown) > UNKNOWN_MARGIN for unknown in UNKNOWN_SIZES)
    return float(first.duration * stream.time_base) * size / first.size if is_known else 0.0


def _is_longer(declared: float, seconds: float) -> bool:
    """Whether by more than a declared length may be wrong."""
    return declared - seconds > max(WRONG_SECONDS, WRONG_SHARE * declared)


def _seconds_in(size: int | None, first: list) -> float:
    """Of sound in a file of `size` bytes, if all of it takes as many a second as its first packets; 0 where that is not known."""
    places = [(packet.pos, packet.pts * packet.time_base) for packet in first if packet.pos is not None and packet.pts is not None]
    (begin, start), (end, stop) = min(places), max(places)
    return size * float(stop - start) / (end - begin) if size and end > begin else 0.0


def _refuse_what_is_no_media(head: bytes) -> None:
    if not head:
        raise Undecodable("empty", "The file at audio_url is empty (0 bytes).")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Undecodable("undecodable", "The file at audio_url is a web page, not audio; the URL must lead to the file itself.")


def _report(kind: str, message: str) -> None:
    print(json.dumps({"kind": kind, "message": message}), file=sys.stderr)


def _main(
    rate: int,
    descriptor: int,
    size: int | None = None,
    channel: int | None = None,
    begin: int = 0,
    end: int = sys.maxsize,
    limit: float = inf,
) -> int:
    """Write the file's sound at `rate` to stdout, from its first sample up to `end`; returns the exit status.

    `size`: bytes that the file will have, None where that is not known; `channel`: the only one to be heard, from 0, None for all
    mixed; `limit`: a file that declares more than so many seconds between the samples `begin` and `end` is refused.
    """
    out = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "wb", closefd=False), OUT_BYTES)
    try:
        fcntl(out.fileno(), F_SETPIPE_SZ, 2 * OUT_BYTES)
    except OSError:
        pass  # over the user's limit: smaller pieces then
    file = Growing(descriptor, size)
    confine()
    try:
        for block in _blocks(file, rate, channel, begin, end, limit):
            out.write(block)
        out.flush()
    except Undecodable as failure:
        out.flush()
        _report(*failure.args)
        return 1
    except BrokenPipeError:  # the job has ended
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(**json.loads(sys.argv[1])))
