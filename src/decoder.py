"""The child process of audio.py: decodes one file to int16 mono on stdout; run as a script, imported by nobody.

    python decoder.py RATE FILE [SIZE [WHOLE]]

It reads nothing but that one local file, behind limits on memory and on what it may write. FFmpeg's libraries come with
PyAV; neither numpy nor asyncio is imported, for both would take longer to load than a minute of sound to decode. The file
may still be growing, to SIZE bytes if that is given, until the file WHOLE exists. A failure is a line of JSON on stderr:
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

MEMORY_BYTES = 4 * 1024**3
OUT_BYTES = 1 << 18  # 8 s at 16 kHz: each write wakes the worker
MAX_DAMAGED_SHARE = 0.02  # of packets that cannot be decoded; their time becomes silence
JUNK_RATIO = 4  # a damaged packet so many times the usual size is several, and junk, that the MP3 parser took for one
GAP_SECONDS, LONGEST_GAP_SECONDS = 0.05, 3600  # jumps in the timestamps that become silence; a longer one is a broken clock
OVERHEAD_BYTES = 4096  # of a container between two packets, at most
WAIT_SECONDS = 0.02  # for more of a file that is still arriving
FORWARD = (b"OggS", b"RIFF", b"RF64", b"\x1a\x45\xdf\xa3")  # Ogg, WAV, Matroska and WebM: decoded the same without seeking
DEMUXERS = (  # no playlists, no concatenation, no devices: nothing that opens another file or address
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,eac3,flac,flv,loas,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,webm,wv"
)


class Undecodable(Exception):
    """(kind, sentence) for the parent."""


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


def _blocks(file: Growing, rate: int) -> Iterator[bytes]:
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
        track = container.streams.best("audio")
        if track is None:
            raise Undecodable("undecodable", "The file at audio_url has no audio track.")
        if track.codec_context is None:  # to decode one of its packets would crash PyAV
            raise Undecodable("undecodable", "The audio track of the file at audio_url is in a format that is not known.")
        yield from _resampled(_on_time(_frames(container, track)), rate)


def _refuse_what_is_no_media(head: bytes) -> None:
    if not head:
        raise Undecodable("empty", "The file at audio_url is empty (0 bytes).")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Undecodable("undecodable", "The file at audio_url is a web page, not audio; the URL must lead to the file itself.")


def _frames(container, track) -> Iterator:
    """Decoded frames; the time of damaged packets becomes silence, so that later times stay true."""
    packets = size = damaged = 0
    failed = missing = 0  # packets since the last frame that cannot be decoded; packets that these were once
    skipped, last = _Skipped(), None
    for packet in skipped.watch(_packets(container, track)):
        packets, size = packets + (packet.size > 0), size + packet.size
        try:
            frames = packet.decode()
        except av.error.FFmpegError:  # not always InvalidDataError: damaged AAC may give EPERM
            ratio = packet.size * (packets - 1) // max(1, size - packet.size)
            failed, missing = failed + 1, missing + (ratio if ratio >= JUNK_RATIO else 1)
            continue
        if frames:
            if last is None:
                missing = failed  # what is before the first frame may be a tag
            else:
                yield from _silence_like(last, missing * last.samples)
            packets, damaged = packets + missing - failed, damaged + missing
            failed = missing = 0
        for last in frames:
            yield last
    if last is None:
        raise Undecodable("undecodable" if failed else "empty", "The audio track of the file at audio_url holds no sound that can be decoded.")
    damaged += failed if container.format.name != "mp3" else 0  # behind the sound of an MP3 are tags
    damaged += skipped.packets(usual_size=size / packets) if len(container.streams) == 1 else 0
    if damaged > max(1, MAX_DAMAGED_SHARE * packets):
        raise Undecodable("undecodable", f"The file at audio_url is damaged: {damaged} of {packets} audio packets cannot be decoded.")


class _Skipped:
    """What the demuxer skipped as damaged: gaps in time, and bytes of no packet.

    Gaps alone are silence that was never sent; bytes alone are tags, or another track's.
    """

    def __init__(self):
        self.time, self.bytes = 0.0, 0  # time in packets

    def watch(self, packets: Iterator) -> Iterator:
        """Hands them on as they are."""
        position, held, end = 0, None, None  # held: bytes of the packets at `position`; those of an Ogg page share one
        for packet in packets:
            if packet.pos is not None:
                if held is not None and packet.pos - position - held > OVERHEAD_BYTES:
                    self.bytes += packet.pos - position - held
                held = packet.size + (held or 0) * (packet.pos == position)
                position = packet.pos
            if end is not None and packet.pts is not None and packet.duration:
                self.time += max(0, packet.pts - end) / packet.duration
            end = packet.pts + packet.duration if packet.pts is not None else None
            yield packet

    def packets(self, usual_size: float) -> int:
        """How many, as far as it can be told."""
        return round(min(self.time, self.bytes / max(1, usual_size)))


def _packets(container, track) -> Iterator:
    try:
        yield from container.demux(track)
    except av.error.EOFError:
        pass  # a file cut short: what came before the cut is good
    except av.error.InvalidDataError as error:
        raise Undecodable("undecodable", "The file at audio_url is damaged and cannot be read to its end.") from error


def _on_time(frames: Iterator) -> Iterator:
    """The frames, with silence where their timestamps leave a gap."""
    start, seconds, tick = None, 0.0, 0.0
    for frame in frames:
        if frame.pts is not None:
            tick = tick or float(frame.time_base)  # the track's, for every frame; to make a fraction each time is slow
            start = frame.pts * tick - seconds if start is None else start
            gap = frame.pts * tick - start - seconds
            if GAP_SECONDS < gap < LONGEST_GAP_SECONDS:
                yield from _silence_like(frame, round(gap * frame.sample_rate))
                seconds += gap
        seconds += frame.samples / frame.sample_rate
        yield frame


def _silence_like(frame, samples: int) -> Iterator:
    for start in range(0, samples, frame.sample_rate):
        silent = av.AudioFrame(frame.format.name, frame.layout.name, min(frame.sample_rate, samples - start))
        silent.sample_rate = frame.sample_rate
        # from 8 channels on PyAV lists more planes than there are, and to fill those overwrites the heap
        for plane in silent.planes[: silent.layout.nb_channels if silent.format.is_planar else 1]:
            plane.update(bytes(plane.buffer_size))
        yield silent


def _resampled(frames: Iterator, rate: int) -> Iterator[bytes]:
    """A second of frames at a time: the resampler's price is by the call."""
    resampler = fifo = shape = None
    for frame in frames:
        if shape != (frame.format.name, frame.layout.name, frame.sample_rate):  # may change within a file
            yield from _rest(resampler, fifo)
            shape = (frame.format.name, frame.layout.name, frame.sample_rate)
            resampler, fifo = av.AudioResampler(format="s16", layout="mono", rate=rate), av.AudioFifo()
        frame.pts = None  # samples follow one another; timestamps of damaged files do not
        fifo.write(frame)
        if fifo.samples >= frame.sample_rate:
            yield from _bytes(resampler.resample(fifo.read()))
    yield from _rest(resampler, fifo)


def _rest(resampler, fifo) -> Iterator[bytes]:
    if resampler:
        if fifo.samples:
            yield from _bytes(resampler.resample(fifo.read()))
        yield from _bytes(resampler.resample(None))


def _bytes(frames) -> Iterator[bytes]:
    for frame in frames:
        yield bytes(frame.planes[0])[: frame.samples * 2]  # a plane is padded


def _main(rate: str, path: str, size: str = "", whole: str = "") -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # it writes to a pipe and a short report
    out = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "wb", closefd=False), OUT_BYTES)
    try:
        fcntl(out.fileno(), F_SETPIPE_SZ, 2 * OUT_BYTES)
    except OSError:
        pass  # over the user's limit: smaller pieces then
    try:
        for block in _blocks(Growing(path, int(size) if size else None, whole), int(rate)):
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
