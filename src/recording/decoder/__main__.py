"""The child process of pcm_stream.py: decodes one file to int16 mono on stdout. No module of the worker imports it.

    python decoder '{"rate": 16000, "descriptor": 3, …}'    the arguments of `_main`, as JSON

It reads only the file that is open as `descriptor`, which may grow until stdin is closed; sandbox.py takes all other rights away.
FFmpeg's libraries come with PyAV. Neither numpy nor asyncio is imported: each takes longer to load than a minute of audio to decode.
A failure is one line of JSON on stderr, {"kind": …, "message": …} with the kind "empty", "undecodable", "too long" or "no channel".
A line of the kind "warning" is no failure: the file holds less than it declares.
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
import av.subtitles.codeccontext  # PyAV imports this and the next module with the first track, when confine() forbids it
import av.subtitles.stream
from sandbox import confine
from track import MATROSKA, MP4, Packets, Track, FileRefused

OUT_BYTES = 1 << 18  # 8 s at 16 kHz: each write wakes the worker
LENGTH_ERROR_SECONDS, LENGTH_ERROR_SHARE = (
    1.0,
    0.01,
)  # a declared length may be wrong by the larger of both
UNKNOWN_SIZES, UNKNOWN_SIZE_MARGIN = (
    (2**31, 2**32),
    2**16,
)  # bytes; a WAV written as a stream declares about one of these
SAMPLED_PACKETS = 500  # at the start of a file, to estimate how long a file of its size is
MAX_READ_BYTES = 1 << 20  # FFmpeg asks for a whole cover picture, which would be held twice
WAIT_SECONDS = 0.02  # between two looks at a file that is still arriving
FORWARD_ONLY = (
    b"OggS",
    b"RIFF",
    b"RF64",
    b"\x1a\x45\xdf\xa3",
)  # first bytes of Ogg, WAV, Matroska and WebM: decoded the same without seeking
DEMUXERS = (  # no playlists, no concatenation, no devices: nothing that opens another file or address
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,eac3,flac,flv,loas,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,webm,wv"
)


class GrowingFile:
    """File object for PyAV. A read waits for bytes that have not arrived, and the size is that of the complete file."""

    def __init__(self, descriptor: int, size: int | None):
        self._file, self._size, self._complete = open(descriptor, "rb"), size, False

    def read(self, count: int) -> bytes:
        """The next bytes: at most `count` and MAX_READ_BYTES, fewer only at the end of the file."""
        count = min(count, MAX_READ_BYTES)
        data = b""
        while len(data) < count:
            complete = (
                self._is_complete()
            )  # asked before the read: a complete file gets no more bytes
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

    def read_integer(self, offset: int, length: int) -> int:
        """Little-endian, from bytes that have arrived. Does not move the position of `read`."""
        return int.from_bytes(os.pread(self._file.fileno(), length, offset), "little")

    def _is_complete(self, wait: float = 0) -> bool:
        """Whether stdin is closed; waits up to `wait` seconds for it. A worker that dies closes it too, and then the output has no reader."""
        self._complete = self._complete or bool(select([sys.stdin], [], [], wait)[0])
        return self._complete


class ForwardOnlyFile:
    """A GrowingFile without `seek`. Some demuxers would seek to the end of a file, and wait for it, for data that decoding does not need."""

    def __init__(self, file: GrowingFile):
        self.read = file.read


def _decode(
    file: GrowingFile, rate: int, channel: int | None, begin: int, end: int, limit: float
) -> Iterator[bytes]:
    """The best audio track of the file as little-endian int16 mono at `rate`, up to the sample `end`; arguments as of `_main`."""
    with _open(file) as container:
        stream = _best_track(container)
        packets = Packets(container, stream)
        track = Track(container, stream, packets, rate, channel)
        unread = iter(packets)
        first = list(islice(unread, 1))
        declared = _declared_seconds(file, container, first[0]) if first else 0.0
        latest_end = begin / rate + limit  # seconds
        # the length that a Matroska with video declares may be the video's, so it cannot refuse the audio
        refusable = end / rate > latest_end and (
            container.format.name != MATROSKA or len(container.streams) == 1
        )
        if refusable and _is_longer(declared, latest_end):
            first += islice(unread, SAMPLED_PACKETS)
            if _is_longer(min(declared, _estimated_seconds(file.known_size, first)), latest_end):
                raise FileRefused(
                    "too long",
                    f"The audio is longer than the {limit:g} seconds allowed; start and end can choose a part of it.",
                )
        left = 2 * end  # bytes
        for block in chain(track.decode(chain(first, unread)), track.finish()):
            yield block[:left]
            left -= len(block)
            if left <= 0:
                break
        track.check_damage()
        held = max(track.seconds, packets.end)  # some writers declare the last timestamp
        if (
            left > 0
            and _is_longer(declared, held)
            and not _is_longer(packets.other_tracks_end, held)
        ):
            _report(
                "warning",
                f"The file declares {declared:.1f} seconds of audio, but holds only {track.seconds:.1f}; the rest is missing.",
            )


def _open(file: GrowingFile) -> av.container.InputContainer:
    av.logging.set_level(av.logging.PANIC)
    head = file.read(512)
    file.seek(0, os.SEEK_SET)
    _refuse_non_media(head)
    source = ForwardOnlyFile(file) if head.startswith(FORWARD_ONLY) else file
    try:
        return av.open(
            source, container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise FileRefused(
            "undecodable", "The file at audio_url is not audio or video in a known format."
        ) from error


def _refuse_non_media(head: bytes) -> None:
    if not head:
        raise FileRefused("empty", "The file at audio_url is empty (0 bytes).")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise FileRefused(
            "undecodable",
            "The file at audio_url is a web page, not audio; the URL must lead to the file itself.",
        )


def _best_track(container: av.container.InputContainer) -> av.AudioStream:
    stream = container.streams.best("audio")
    if stream is None:
        raise FileRefused("undecodable", "The file at audio_url has no audio track.")
    if stream.codec_context is None:  # decoding a packet of it would crash PyAV
        raise FileRefused(
            "undecodable",
            "The audio track of the file at audio_url is in a format that is not known.",
        )
    return stream


def _declared_seconds(
    file: GrowingFile, container: av.container.InputContainer, first: av.Packet
) -> float:
    """The length that the file declares, from time 0 to the end of the audio; 0 where FFmpeg would only estimate it.

    `first`: the first packet of the audio. For Matroska it is the length of the longest track.
    """
    name, stream = container.format.name, first.stream
    if name == MATROSKA:
        return (container.duration or 0) / av.time_base
    if name in (MP4, "flac"):
        late = (stream.start_time or 0) * stream.time_base - Fraction(
            container.start_time or 0, av.time_base
        )
        return float(late + (stream.duration or 0) * stream.time_base)
    if name != "wav" or not stream.codec_context.name.startswith("pcm_") or not first.size:
        return 0.0
    size = file.read_integer(
        first.pos - 4, 4
    )  # from the header: FFmpeg does not tell it where the file holds less
    if size == 2**32 - 1 and file.read_integer(0, 4) == int.from_bytes(b"RF64", "little"):
        size = file.read_integer(28, 8)
    is_known = all(abs(size - unknown) > UNKNOWN_SIZE_MARGIN for unknown in UNKNOWN_SIZES)
    return float(first.duration * stream.time_base) * size / first.size if is_known else 0.0


def _is_longer(declared: float, seconds: float) -> bool:
    """Whether `declared` is longer than `seconds` by more than its error."""
    return declared - seconds > max(LENGTH_ERROR_SECONDS, LENGTH_ERROR_SHARE * declared)


def _estimated_seconds(size: int | None, packets: list[av.Packet]) -> float:
    """Length of a file of `size` bytes that has the bit rate of these packets throughout; 0 where it cannot be estimated."""
    places = [
        (packet.pos, packet.pts * packet.time_base)
        for packet in packets
        if packet.pos is not None and packet.pts is not None
    ]
    (begin, start), (end, stop) = min(places), max(places)
    return size * float(stop - start) / (end - begin) if size and end > begin else 0.0


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
    """Write the file's audio at `rate` to stdout, from its first sample up to `end`; returns the exit status.

    `size`: bytes of the complete file, None where unknown. `channel`: the only one to decode, from 0; None mixes all.
    `limit`: a file that declares more than so many seconds between the samples `begin` and `end` is refused.
    """
    out = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "wb", closefd=False), OUT_BYTES)
    try:
        fcntl(out.fileno(), F_SETPIPE_SZ, 2 * OUT_BYTES)
    except OSError:
        pass  # over the user's limit for pipes: smaller writes then
    file = GrowingFile(descriptor, size)
    confine()
    try:
        for block in _decode(file, rate, channel, begin, end, limit):
            out.write(block)
        out.flush()
    except FileRefused as failure:
        out.flush()
        _report(*failure.args)
        return 1
    except BrokenPipeError:  # the job has ended
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(**json.loads(sys.argv[1])))
