"""File → one stream of 16 kHz mono int16, decoded once, in a child process. Knows nothing of URLs, pauses or models.

The child is decoder.py: a broken file must not take the worker down, and a hostile one must not take it over. So it can be
killed, is given the open file and none of this process's environment, and locks itself in (confine.py).
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from errors import AudioTooLong, DecodeError, EmptyAudio, InvalidRequest

SAMPLE_RATE = 16_000  # Hz, of everything in this worker
SHORTEST_SECONDS = 0.5  # that the models were trained on
HOP = 160  # samples from one mel frame of the models to the next
BLOCK_BYTES = SAMPLE_RATE * 2 * 8  # 8 s: what is handed on at a time, at most
DECODER = Path(__file__).parent / "decoder.py"
STALL_SECONDS = 60  # a decoder silent for so long is stuck
POLL_SECONDS = 0.02  # for the end of a file that is still arriving


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
        return self.split(sum(max(pauses, key=lambda p: p[1] - p[0])) // 2 if pauses else len(self.pcm) // 2)

    def split(self, cut: int) -> tuple["AudioChunk", "AudioChunk"]:
        """Two chunks that tile this one, of which the second begins at the sample `cut` of it."""
        before = tuple((a, min(b, cut)) for a, b in self.speech if a < cut)
        after = tuple((max(a, cut) - cut, b - cut) for a, b in self.speech if b > cut)
        return (
            AudioChunk(self.index, self.offset, self.pcm[:cut], before, forced_cut=any(a < cut < b for a, b in self.speech)),
            AudioChunk(self.index, self.offset + cut, self.pcm[cut:], after, self.forced_cut),
        )


def waveform(chunk: AudioChunk) -> np.ndarray:
    """For a model: (samples,) float32 in [-1, 1) at SAMPLE_RATE, zero-padded at the end to SHORTEST_SECONDS and to whole hops.

    vLLM pads to whole hops, the aligner's package does not; so both models get the same frames.
    """
    wave = np.zeros(max(-(-len(chunk.pcm) // HOP) * HOP, round(SHORTEST_SECONDS * SAMPLE_RATE)), np.float32)
    np.multiply(chunk.pcm, np.float32(1 / 32768), out=wave[: len(chunk.pcm)])
    return wave


class PcmStream:
    """The decoded samples as they come; iterate once. `samples` counts what has been handed on, from the recording's `first` on."""

    def __init__(self, child: asyncio.subprocess.Process, report: BinaryIO, first: int, max_seconds: float, whole: Path | None):
        self.first, self.samples = first, 0
        self.warning: str | None = None  # set once the iteration has ended, where the file holds less than it declares
        self._whole = whole
        self._child = child
        self._report = report
        self._max_seconds = max_seconds

    @property
    def duration(self) -> float:
        """Seconds handed on so far; the length of the recording, or of its part, once the iteration has ended."""
        return self.samples / SAMPLE_RATE

    @property
    def start(self) -> float:
        """Of what is handed on, in seconds from the start of the recording."""
        return self.first / SAMPLE_RATE

    @property
    def end(self) -> float:
        """Of what has been handed on so far, in seconds from the start of the recording."""
        return (self.first + self.samples) / SAMPLE_RATE

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        """Blocks of (samples,) int16.

        Raises AudioTooLong beyond the limit, before the first block where the file declares it; at the end EmptyAudio where
        there was no sample, and DecodeError where the file is no audio, has no audio track, more than MAX_DAMAGED_SHARE of it
        cannot be decoded, or the decoder broke. InvalidRequest where it does not have the channel.
        """
        # what lies before the part is dropped here, not by the decoder: one that is silent for long is taken to be stuck
        odd, ahead = b"", self.first
        while data := await self._read():
            data = odd + data
            whole = len(data) // 2 * 2
            odd = data[whole:]
            block = np.frombuffer(data[:whole], np.int16)
            block, ahead = block[ahead:], max(0, ahead - len(block))
            self.samples += len(block)
            if self.duration > self._max_seconds:
                raise AudioTooLong(
                    f"The audio is longer than the {self._max_seconds:g} seconds allowed; start and end can choose a part of it."
                )
            if len(block):
                yield block
        await self._child.wait()
        self._report.seek(0)
        decoded = self.first - ahead + self.samples
        self.warning = _outcome(self._child.returncode, self._report.read().decode("utf-8", "replace"), decoded)
        if not self.samples:
            raise EmptyAudio(f"start is {self.start:.3f}, but the audio at audio_url ends at {decoded / SAMPLE_RATE:.3f} seconds.")

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
async def decode(
    path: Path,
    max_seconds: float,
    size: int | None = None,
    whole: Path | None = None,
    *,
    start: float = 0,
    end: float | None = None,
    channel: int | None = None,
) -> AsyncIterator[PcmStream]:
    """Decode `path`, any rate and channel count, to a PcmStream; the child process ends with the context.

    `start`, `end`: the part wanted, in seconds from the start of the file; the same samples as of the whole, which is decoded no
    further than `end`. `channel`: the only one to be heard, from 0; None mixes all.

    The file may still be growing, up to `size` bytes if that is known: it is all there once the file `whole` exists.
    Time 0 is where the file starts, pictures included: where its sound starts later, silence comes first.
    More than `max_seconds` that a file declares of the part is believed as far as its bytes may hold it, and refused without
    decoding.
    """
    begin = round(start * SAMPLE_RATE)
    options = dict(rate=SAMPLE_RATE, size=size, channel=channel, begin=begin, limit=max_seconds)
    if end is not None:
        options["end"] = max(begin + 1, round(end * SAMPLE_RATE))
    # stderr goes to a file: a full unread pipe would block the child, and an unread paused one hangs wait()
    with tempfile.TemporaryFile() as report, path.open("rb") as file:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-B", "-E", "-s", DECODER, json.dumps(options | {"descriptor": file.fileno()}),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=report, limit=BLOCK_BYTES,
            env={}, pass_fds=[file.fileno()],
        )  # fmt: skip
        telling = asyncio.create_task(_close_once_there(child.stdin, whole))
        try:
            yield PcmStream(child, report, begin, max_seconds, whole)
        finally:
            telling.cancel()
            child.stdin.close()
            if child.returncode is None:
                child.kill()
            await child.communicate()  # reads what is left: wait() alone hangs on a paused pipe


async def _close_once_there(stdin: asyncio.StreamWriter, whole: Path | None) -> None:
    """The child may not look into the job's folder."""
    while whole is not None and not whole.exists():
        await asyncio.sleep(POLL_SECONDS)
    stdin.close()


def _outcome(returncode: int, report: str, samples: int) -> str | None:
    """The child's warning, None without one. Raises the error that it left behind."""
    if returncode == 0 and not samples:
        raise EmptyAudio("The file at audio_url holds no audio: its audio track has no samples.")
    try:
        said = json.loads(report.splitlines()[-1])
        kind, message = said["kind"], said["message"]
    except (IndexError, KeyError, TypeError, ValueError):
        if returncode == 0:
            return None
        raise DecodeError(f"The audio decoder failed on this file (exit status {returncode}).") from None
    if kind == "warning":
        return message
    raise {"empty": EmptyAudio, "too long": AudioTooLong, "no channel": InvalidRequest}.get(kind, DecodeError)(message)
