"""16 kHz mono int16 stream → `AudioChunk`s cut in WebRTC VAD pauses.

Every sample of the recording is in exactly one chunk or in a silence between chunks. The detector
hears no speech in such a silence, nor within MARGIN of it. Memory holds one chunk, not the file.
Does not know what happens to a chunk.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
import webrtcvad
from contract.settings import Settings
from recording.chunk import SAMPLE_RATE, AudioChunk, Samples

FRAME = SAMPLE_RATE * 30 // 1000  # samples; webrtcvad takes no longer frames
FRAME_BYTES = FRAME * 2
FRAME_SECONDS = FRAME / SAMPLE_RATE
# The next three are in frames.
MIN_PAUSE = round(0.24 / FRAME_SECONDS)  # a shorter silence may lie inside a word
MARGIN = round(0.72 / FRAME_SECONDS)  # silence kept around speech: the detector may be late
QUIET = 5  # the quietest point is the middle of this many frames (150 ms) of least mean power


@dataclass(frozen=True)  # The cached properties, read at every frame, exclude slots.
class CutRules:
    """Where a recording is cut. The properties are in frames."""

    target_seconds: float  # usual length of a chunk
    limit_seconds: float  # maximum length of a chunk
    vad_mode: int  # webrtcvad's aggressiveness, 0 to 3

    @cached_property
    def target(self) -> int:
        """`target_seconds`, at least two pauses."""
        return max(2 * MIN_PAUSE, int(self.target_seconds / FRAME_SECONDS))

    @cached_property
    def limit(self) -> int:
        """`limit_seconds`, at least the target."""
        return max(self.target, int(self.limit_seconds / FRAME_SECONDS))

    @cached_property
    def earliest(self) -> int:
        """A pause before this is not cut in, unless it is a long silence."""
        return self.target // 2

    @cached_property
    def latest(self) -> int:
        """At this frame we cut in the longest pause since `earliest`, else wait for the next."""
        return min(self.limit, self.target * 5 // 4)

    @cached_property
    def long_silence(self) -> int:
        """A silence of this length ends a chunk of any length."""
        return max(2 * MARGIN, self.target // 4)


def cut_rules(settings: Settings, language: str | None) -> CutRules:
    """Where recordings in `language` are cut; None is for one that is to be detected."""
    target = settings.target_seconds(language)
    return CutRules(target, settings.chunk_limit_seconds, settings.vad_mode)


async def split_at_pauses(
    pcm: AsyncIterable[Samples], rules: CutRules, offset: int = 0
) -> AsyncIterator[AudioChunk]:
    """Blocks of (samples,) int16 → chunks, each as soon as its end is known.

    `offset`: the sample of the recording with which the blocks begin.
    """
    async for chunk in chunks_by(Splitter(rules, offset), pcm):
        yield chunk


class SplitsBlocks(Protocol):
    """Takes blocks of samples, gives complete chunks."""

    def push(self, block: Samples) -> list[AudioChunk]:
        """Take the next block; returns the chunks that are now complete."""

    def finish(self) -> list[AudioChunk]:
        """The recording has ended; returns the remaining chunks."""


async def chunks_by(
    splitter: SplitsBlocks, pcm: AsyncIterable[Samples]
) -> AsyncIterator[AudioChunk]:
    """The chunks that `splitter` makes of the blocks, each as soon as its end is known."""
    async for block in pcm:
        for chunk in await asyncio.to_thread(splitter.push, block):
            yield chunk
    for chunk in await asyncio.to_thread(splitter.finish):
        yield chunk


class _Silence(NamedTuple):
    """A run of frames without speech in the open chunk."""

    start: int
    end: int  # the frame behind it

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def cut(self) -> int:
        """The frame to cut at: the middle, but at most MARGIN after the speech before it."""
        return min((self.start + self.end) // 2, self.start + MARGIN)


@dataclass(slots=True)
class _OpenChunk:
    """What the scan has found in the chunk under construction. Frames count from its start."""

    scanned: int = 0  # number of frames
    has_speech: bool = False  # leading silence is dropped until speech starts
    silence_start: int | None = None  # None within speech
    pauses: list[_Silence] = field(default_factory=list)  # they have ended

    @property
    def current_silence(self) -> _Silence:
        """Up to the last frame scanned; its length is 0 within speech."""
        start = self.scanned if self.silence_start is None else self.silence_start
        return _Silence(start, self.scanned)

    def scan(self, is_speech: bool) -> None:
        """Take the detector's decision on the next frame."""
        self.has_speech = self.has_speech or is_speech
        if is_speech and self.silence_start is not None:
            if self.current_silence.length >= MIN_PAUSE:
                self.pauses.append(self.current_silence)
            self.silence_start = None
        elif self.has_speech and not is_speech and self.silence_start is None:
            self.silence_start = self.scanned
        self.scanned += 1


class Splitter:
    """Takes blocks of samples, gives complete chunks, whatever the sizes of the blocks."""

    def __init__(self, rules: CutRules, offset: int = 0):
        """`offset`: the sample of the recording with which the blocks begin."""
        self._rules = rules
        self._vad = webrtcvad.Vad(rules.vad_mode)
        self._count = 0  # complete chunks
        self._offset = offset  # the sample of the recording at which the open chunk starts
        self._held = bytearray()  # int16 samples from there on
        self._speech: list[bool] = []  # the detector's decision for each frame of them
        self._open = _OpenChunk()

    def push(self, block: Samples) -> list[AudioChunk]:
        """Take the next (samples,) int16; returns the chunks that are now complete."""
        self._held += block.tobytes()
        self._detect_speech()
        chunks = list(self._complete_chunks())
        if not self._open.has_speech:
            self._drop_silence_before(self._open.scanned)
        return chunks

    def finish(self) -> list[AudioChunk]:
        """The recording has ended; returns the remaining chunks."""
        part_of_frame = bytes(self._held[len(self._speech) * FRAME_BYTES :])
        if part_of_frame:
            padded = part_of_frame.ljust(FRAME_BYTES, b"\0")
            self._speech.append(self._vad.is_speech(padded, SAMPLE_RATE))
        chunks = list(self._complete_chunks())
        if self._open.has_speech:
            silent_end = max(0, self._open.current_silence.length - MARGIN)
            chunks.append(self._close(len(self._speech) - silent_end))
        return chunks

    def _detect_speech(self) -> None:
        fresh = bytes(self._held[len(self._speech) * FRAME_BYTES :])
        for start in range(0, len(fresh) - FRAME_BYTES + 1, FRAME_BYTES):
            frame = fresh[start : start + FRAME_BYTES]
            self._speech.append(self._vad.is_speech(frame, SAMPLE_RATE))

    def _complete_chunks(self) -> Iterator[AudioChunk]:
        while self._open.scanned < len(self._speech):
            is_speech = self._speech[self._open.scanned]
            if is_speech and not self._open.has_speech:
                self._drop_silence_before(self._open.scanned)
            self._open.scan(is_speech)
            if self._open.has_speech and (cut := self._find_cut()):
                yield self._close(cut)

    def _find_cut(self) -> int | None:
        """The frame at which the open chunk ends; None while more has to be scanned."""
        rules, chunk, silence = self._rules, self._open, self._open.current_silence
        if silence.length >= rules.long_silence:
            return silence.cut
        if chunk.scanned < rules.latest:
            return None
        pauses = self._usable_pauses()
        # After `latest`, a pause is cut in when it has ended, or when its cut no longer moves.
        is_settled = silence.length in (0, 2 * MARGIN)
        if pauses and (chunk.scanned == rules.latest or is_settled):
            return max(pauses, key=lambda pause: pause.length).cut
        if chunk.scanned < rules.limit:
            return None
        return pauses[-1].cut if pauses else self._quietest(rules.earliest, rules.limit)

    def _usable_pauses(self) -> list[_Silence]:
        """The pauses since `earliest`, the current silence included."""
        silences = (*self._open.pauses, self._open.current_silence)
        earliest = self._rules.earliest
        return [s for s in silences if s.length >= MIN_PAUSE and s.cut >= earliest]

    def _quietest(self, start: int, end: int) -> int:
        """The frame in the middle of the QUIET consecutive frames of least power."""
        held = bytes(self._held[start * FRAME_BYTES : end * FRAME_BYTES])
        pcm = np.frombuffer(held, np.int16).astype(np.float64)
        whole = len(pcm) // FRAME * FRAME
        power = (pcm[:whole].reshape(-1, FRAME) ** 2).mean(1)
        sums = np.convolve(power, np.ones(QUIET), "valid")
        return start + int(sums.argmin()) + QUIET // 2

    def _close(self, frames: int) -> AudioChunk:
        """The first `frames` held, as a chunk. The frames behind them are scanned again."""
        pcm = np.frombuffer(bytes(self._held[: frames * FRAME_BYTES]), np.int16)
        speech = _spans(self._speech[:frames], len(pcm))
        chunk = AudioChunk(self._count, self._offset, pcm, speech)
        self._count += 1
        self._drop(frames)
        self._open = _OpenChunk()
        return chunk

    def _drop_silence_before(self, frame: int) -> None:
        """Move the start of an open chunk without speech to MARGIN before `frame`."""
        frames = max(0, frame - MARGIN)
        self._drop(frames)
        self._open.scanned -= frames

    def _drop(self, frames: int) -> None:
        del self._held[: frames * FRAME_BYTES], self._speech[:frames]
        self._offset += frames * FRAME


def _spans(speech: list[bool], samples: int) -> tuple[tuple[int, int], ...]:
    """(start, end) samples of the runs of speech; the last frame may be cut short."""
    spans, position = [], 0
    for is_speech, run in groupby(speech):
        end = position + len(list(run))
        if is_speech:
            spans.append((position * FRAME, min(end * FRAME, samples)))
        position = end
    return tuple(spans)
