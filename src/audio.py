"""File → one stream of 16 kHz mono int16, decoded once, in a child process. Knows nothing of URLs, pauses or models.

The child is this file run as a script: a broken file must not take the worker down, so it decodes behind limits on
memory and open files, reads nothing but the one local file, and can be killed. FFmpeg's libraries come with PyAV.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from errors import AudioTooLong, DecodeError, EmptyAudio

SAMPLE_RATE = 16_000  # Hz, of everything in this worker
BLOCK_BYTES = SAMPLE_RATE * 2 * 8  # 8 s: what is handed on at a time, at most
STALL_SECONDS = 60  # a decoder silent for so long is stuck
CHILD_MEMORY_BYTES = 4 * 1024**3
MAX_DAMAGED_SHARE = 0.02  # of packets that cannot be decoded; their time becomes silence
JUNK_RATIO = 4  # a damaged packet so many times the usual size is several, and junk, that the MP3 parser took for one
GAP_SECONDS, LONGEST_GAP_SECONDS = 0.05, 3600  # jumps in the timestamps that become silence; a longer one is a broken clock
OVERHEAD_BYTES = 4096  # of a container between two packets, at most
WAIT_SECONDS = 0.02  # for more of a file that is still arriving
FORWARD = (b"OggS", b"RIFF", b"RF64", b"\x1a\x45\xdf\xa3")  # Ogg, WAV, Matroska and WebM: decoded the same without seeking
DEMUXERS = (  # no playlists, no concatenation, no devices: nothing that opens another file or address
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,eac3,flac,flv,loas,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,webm,wv"
)


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A stretch of a recording: sample-exact, cut from it and nothing else."""

    index: int  # of its recording, from 0
    offset: int  # of its first sample in the recording
    pcm: np.ndarray  # (samples,) int16 mono at SAMPLE_RATE
    speech: tuple[tuple[int, int], ...]  # (start, end) samples of it in which the detector heard speech
    forced_cut: bool = False  # its end was cut where no pause was

    @property
    def start(self) -> float:
        """Seconds from the start of the recording."""
        return self.offset / SAMPLE_RATE

    @property
    def end(self) -> float:
        """Seconds from the start of the recording."""
        return (self.offset + len(self.pcm)) / SAMPLE_RATE

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.pcm) / SAMPLE_RATE

    @property
    def speech_seconds(self) -> float:
        """Seconds of speech in it, as far as the detector can tell."""
        return sum(end - start for start, end in self.speech) / SAMPLE_RATE

    def halves(self) -> tuple["AudioChunk", "AudioChunk"]:
        """Two chunks that tile this one, cut in the longest pause of its middle half; without one, in the middle."""
        quarter = len(self.pcm) // 4
        pauses = [(a, b) for (_, a), (b, _) in zip(self.speech, self.speech[1:]) if quarter <= (a + b) // 2 <= 3 * quarter]
        cut = sum(max(pauses, key=lambda p: p[1] - p[0])) // 2 if pauses else len(self.pcm) // 2
        before = tuple((a, min(b, cut)) for a, b in self.speech if a < cut)
        after = tuple((max(a, cut) - cut, b - cut) for a, b in self.speech if b > cut)
        return (
            AudioChunk(self.index, self.offset, self.pcm[:cut], before, forced_cut=not pauses),
            AudioChunk(self.index, self.offset + cut, self.pcm[cut:], after, self.forced_cut),
        )


def waveform(chunk: AudioChunk, at_least: float = 0.0) -> np.ndarray:
    """(samples,) float32 in [-1, 1) at SAMPLE_RATE, zero-padded at the end to `at_least` seconds."""
    missing = max(0, round(at_least * SAMPLE_RATE) - len(chunk.pcm))
    return np.pad(chunk.pcm, (0, missing)).astype(np.float32) / 32768


class PcmStream:
    """The decoded samples as they come; iterate once. `samples` counts what has been handed on."""

    def __init__(self, child: asyncio.subprocess.Process, report: BinaryIO, max_seconds: float, whole: Path | None):
        self.samples = 0
        self._whole = whole
        self._child = child
        self._report = report
        self._max_seconds = max_seconds

    @property
    def duration(self) -> float:
        """Seconds handed on so far; the recording's length once the iteration has ended."""
        return self.samples / SAMPLE_RATE

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        """Blocks of (samples,) int16.

        Raises AudioTooLong beyond the limit; at the end EmptyAudio where there was no sample, and DecodeError where the
        file is no audio, has no audio track, more than MAX_DAMAGED_SHARE of it cannot be decoded, or the decoder broke.
        """
        odd = b""
        while data := await self._read():
            data = odd + data
            whole = len(data) // 2 * 2
            odd = data[whole:]
            self.samples += whole // 2
            if self.duration > self._max_seconds:
                raise AudioTooLong(f"The audio is longer than the {self._max_seconds:g} seconds allowed.")
            yield np.frombuffer(data[:whole], np.int16)
        await self._child.wait()
        self._report.seek(0)
        _check(self._child.returncode, self._report.read().decode("utf-8", "replace"), self.samples)

    async def _read(self) -> bytes:
        while True:
            arriving = self._whole is not None and not self._whole.exists()  # the decoder may be waiting for more of it
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    return await self._child.stdout.read(BLOCK_BYTES)
            except TimeoutError:
                if not arriving:
                    raise DecodeError("The audio decoder got stuck on this file.") from None


@asynccontextmanager
async def decode(path: Path, max_seconds: float, size: int | None = None, whole: Path | None = None) -> AsyncIterator[PcmStream]:
    """Decode `path`, any rate and channel count, to a PcmStream; the child process ends with the context.

    The file may still be growing, up to `size` bytes if that is known: it is all there once the file `whole` exists.
    """
    # stderr goes to a file: a full unread pipe would block the child, and an unread paused one hangs wait()
    with tempfile.TemporaryFile() as report:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-B", "-E", "-s", __file__, str(path), str(size or ""), str(whole or ""),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=report, limit=BLOCK_BYTES,
        )  # fmt: skip
        try:
            yield PcmStream(child, report, max_seconds, whole)
        finally:
            if child.returncode is None:
                child.kill()
            await child.communicate()  # reads what is left: wait() alone hangs on a paused pipe


def _check(returncode: int, report: str, samples: int) -> None:
    """Turn what the child left behind into an error, if it is one."""
    if returncode == 0 and samples:
        return
    if returncode == 0:
        raise EmptyAudio("The file at audio_url holds no audio: its audio track has no samples.")
    try:
        failure = json.loads(report.splitlines()[-1])
        raise {"empty": EmptyAudio}.get(failure["kind"], DecodeError)(failure["message"])
    except (IndexError, KeyError, TypeError, ValueError):
        raise DecodeError(f"The audio decoder failed on this file (exit status {returncode}).") from None


# What follows runs in the child.


class _Undecodable(Exception):
    """(kind, sentence) for the parent."""


class _Growing:
    """The file for PyAV, whose reads wait for what has not arrived; sizes are those it will have."""

    def __init__(self, path: str, size: int | None, whole: str):
        self._file, self._size, self._whole = open(path, "rb"), size, whole
        self._parent = os.getppid()

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            whole = not self._whole or os.path.exists(self._whole)  # looked at first: nothing is added afterwards
            block = self._file.read(count - len(data))
            data += block
            if whole and not block:
                break
            if not block:
                if os.getppid() != self._parent:
                    raise SystemExit("the worker is gone")
                time.sleep(WAIT_SECONDS)
        return data

    def seek(self, offset: int, whence: int) -> int:
        if whence != os.SEEK_END:
            return self._file.seek(offset, whence)
        return self._file.seek(self.size + offset)

    def tell(self) -> int:
        return self._file.tell()

    @property
    def size(self) -> int:
        while self._whole and self._size is None and not os.path.exists(self._whole):
            time.sleep(WAIT_SECONDS)
        return self._size if self._size is not None else os.fstat(self._file.fileno()).st_size


class _Forward:
    """The same for formats whose demuxers look at a file's end when they can, for what is not needed to decode it."""

    def __init__(self, file: _Growing):
        self.read = file.read


def _blocks(file: _Growing) -> Iterator[bytes]:
    """The best audio track of the file as little-endian int16 mono at SAMPLE_RATE."""
    import av

    av.logging.set_level(av.logging.PANIC)
    head = file.read(512)
    file.seek(0, os.SEEK_SET)
    _refuse_what_is_no_media(head)
    source = _Forward(file) if head.startswith(FORWARD) else file
    try:
        # not `options`: PyAV 16 also frees those of streams that it had not seen when it allocated them (FLV, MPEG-PS)
        container = av.open(source, container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"})
    except (av.error.FFmpegError, ValueError) as error:
        raise _Undecodable("undecodable", "The file at audio_url is not audio or video in a known format.") from error
    with container:
        track = container.streams.best("audio")
        if track is None:
            raise _Undecodable("undecodable", "The file at audio_url has no audio track.")
        if track.codec_context is None:  # to decode one of its packets would crash PyAV
            raise _Undecodable("undecodable", "The audio track of the file at audio_url is in a format that is not known.")
        yield from _resampled(_on_time(_frames(container, track)))


def _refuse_what_is_no_media(head: bytes) -> None:
    if not head:
        raise _Undecodable("empty", "The file at audio_url is empty (0 bytes).")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _Undecodable("undecodable", "The file at audio_url is a web page, not audio; the URL must lead to the file itself.")


def _frames(container, track) -> Iterator:
    """Decoded frames; the time of damaged packets becomes silence, so that later times stay true."""
    import av

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
        raise _Undecodable("undecodable" if failed else "empty", "The audio track of the file at audio_url holds no sound that can be decoded.")
    damaged += failed if container.format.name != "mp3" else 0  # behind the sound of an MP3 are tags
    damaged += skipped.packets(usual_size=size / packets) if len(container.streams) == 1 else 0
    if damaged > max(1, MAX_DAMAGED_SHARE * packets):
        raise _Undecodable("undecodable", f"The file at audio_url is damaged: {damaged} of {packets} audio packets cannot be decoded.")


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
    import av

    try:
        yield from container.demux(track)
    except av.error.EOFError:
        pass  # a file cut short: what came before the cut is good
    except av.error.InvalidDataError as error:
        raise _Undecodable("undecodable", "The file at audio_url is damaged and cannot be read to its end.") from error


def _on_time(frames: Iterator) -> Iterator:
    """The frames, with silence where their timestamps leave a gap."""
    start, seconds = None, 0.0
    for frame in frames:
        if frame.pts is not None:
            start = frame.time - seconds if start is None else start
            gap = frame.time - start - seconds
            if GAP_SECONDS < gap < LONGEST_GAP_SECONDS:
                yield from _silence_like(frame, round(gap * frame.sample_rate))
                seconds += gap
        seconds += frame.samples / frame.sample_rate
        yield frame


def _silence_like(frame, samples: int) -> Iterator:
    import av

    for start in range(0, samples, frame.sample_rate):
        silent = av.AudioFrame(frame.format.name, frame.layout.name, min(frame.sample_rate, samples - start))
        silent.sample_rate = frame.sample_rate
        # from 8 channels on PyAV lists more planes than there are, and to fill those overwrites the heap
        for plane in silent.planes[: silent.layout.nb_channels if silent.format.is_planar else 1]:
            plane.update(bytes(plane.buffer_size))
        yield silent


def _resampled(frames: Iterator) -> Iterator[bytes]:
    import av

    resampler = shape = None
    for frame in frames:
        if shape != (frame.format.name, frame.layout.name, frame.sample_rate):  # may change within a file
            shape = (frame.format.name, frame.layout.name, frame.sample_rate)
            yield from _bytes(resampler.resample(None) if resampler else ())
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        frame.pts = None  # samples follow one another; timestamps of damaged files do not
        yield from _bytes(resampler.resample(frame))
    yield from _bytes(resampler.resample(None) if resampler else ())


def _bytes(frames) -> Iterator[bytes]:
    for frame in frames:
        yield bytes(frame.planes[0])[: frame.samples * 2]  # a plane is padded


def _main(path: str, size: str, whole: str) -> int:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY_BYTES, CHILD_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # it writes to a pipe and a short report
    try:
        for block in _blocks(_Growing(path, int(size) if size else None, whole)):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except _Undecodable as failure:
        kind, message = failure.args
        print(json.dumps({"kind": kind, "message": message}), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the job has ended
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
