"""16 kHz mono int16 stream → `AudioChunk`s cut in WebRTC VAD pauses. Does not know what happens to a chunk.

Every sample of the recording is in exactly one chunk or in a silence between chunks. Such a silence has no speech for the
detector and keeps MARGIN from any. Memory holds one chunk, not the file.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import webrtcvad
from recording.chunk import SAMPLE_RATE, AudioChunk

FRAME = SAMPLE_RATE * 30 // 1000  # samples; the longest frame webrtcvad takes
FRAME_BYTES = FRAME * 2
FRAME_SECONDS = FRAME / SAMPLE_RATE
PAUSE = round(0.24 / FRAME_SECONDS)  # frames; a shorter silence may lie inside a word
MARGIN = round(
    0.72 / FRAME_SECONDS
)  # frames of silence kept around speech: the detector may be late
QUIET = 5  # frames (150 ms) whose mean power finds the quietest point


@dataclass(
    frozen=True
)  # no slots: they exclude cached properties, which the scan reads at every event
class CutRules:
    """Where a recording is cut. The properties are in frames."""

    target_seconds: float  # usual length of a chunk
    limit_seconds: float  # maximum length of a chunk
    vad_mode: int  # webrtcvad's aggressiveness, 0 to 3

    @cached_property
    def target(self) -> int:
        """`target_seconds`, at least two pauses."""
        return max(2 * PAUSE, int(self.target_seconds / FRAME_SECONDS))

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
        """Here the longest pause since `earliest` is chosen; if there is none, the next pause."""
        return min(self.limit, self.target * 5 // 4)

    @cached_property
    def long_silence(self) -> int:
        """A silence of this length ends a chunk of any length."""
        return max(2 * MARGIN, self.target // 4)


async def split_at_pauses(
    pcm: AsyncIterable[np.ndarray], rules: CutRules, first: int = 0
) -> AsyncIterator[AudioChunk]:
    """Blocks of (samples,) int16 → chunks, each as soon as its end is known.

    `first`: the sample of the recording with which the blocks begin.
    """
    splitter = Splitter(rules, first)
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
    has_speech: bool = False  # until then the chunk's start moves on with the silence
    silence_start: int | None = None  # of the current silence; None within speech
    pauses: list[_Silence] = field(
        default_factory=list
    )  # silences of at least PAUSE that have ended

    @property
    def current_silence(self) -> _Silence:
        """Up to the last frame scanned; of length 0 within speech."""
        return _Silence(
            self.scanned if self.silence_start is None else self.silence_start, self.scanned
        )

    def scan(self, is_speech: bool) -> None:
        """Take the detector's decision on the next frame, in a chunk with speech."""
        if is_speech and self.silence_start is not None:
            if self.scanned - self.silence_start >= PAUSE:
                self.pauses.append(self.current_silence)
            self.silence_start = None
        elif not is_speech and self.silence_start is None:
            self.silence_start = self.scanned
        self.scanned += 1


class Splitter:
    """Synchronous splitter: push blocks of samples, get complete chunks. The chunks do not depend on the sizes of the blocks."""

    def __init__(self, rules: CutRules, first: int = 0):
        """`first`: the sample of the recording with which the blocks begin."""
        self._rules = rules
        self._vad = webrtcvad.Vad(rules.vad_mode)
        self._count = 0  # complete chunks
        self._offset = first  # sample of the recording at which the open chunk starts
        self._held = bytearray()  # int16 samples from there on
        self._speech: list[bool] = []  # the detector's decision for each frame of them
        self._open = _OpenChunk()

    def push(self, block: np.ndarray) -> list[AudioChunk]:
        """Take the next (samples,) int16 of the recording; returns the chunks that are now complete."""
        self._held += block.tobytes()
        self._detect_speech()
        chunks = list(self._complete_chunks())
        if not self._open.has_speech:
            self._drop_silence_before(len(self._speech))
        return chunks

    def finish(self) -> list[AudioChunk]:
        """The recording has ended; returns the remaining chunks."""
        tail = bytes(self._held[len(self._speech) * FRAME_BYTES :])
        if tail:  # part of a frame; padded for the detector only
            self._speech.append(self._vad.is_speech(tail.ljust(FRAME_BYTES, b"\0"), SAMPLE_RATE))
        chunks = list(self._complete_chunks())
        if self._open.has_speech:
            chunks.append(
                self._close(
                    len(self._speech) - max(0, self._open.current_silence.length - MARGIN),
                    forced=False,
                )
            )
        return chunks

    def _detect_speech(self) -> None:
        fresh, size, is_speech = (
            bytes(self._held[len(self._speech) * FRAME_BYTES :]),
            FRAME_BYTES,
            self._vad.is_speech,
        )
        self._speech += [
            is_speech(fresh[i : i + size], SAMPLE_RATE)
            for i in range(0, len(fresh) - size + 1, size)
        ]

    def _complete_chunks(self) -> Iterator[AudioChunk]:
        while self._skip_to_event():
            if not self._open.has_speech:
                self._start_at_speech()
                continue
            self._open.scan(self._speech[self._open.scanned])
            if cut := self._find_cut():
                yield self._close(*cut)

    def _skip_to_event(self) -> bool:
        """Go to the next frame that begins or ends a silence or may decide a cut; False if there is none yet."""
        rules, chunk, end = self._rules, self._open, len(self._speech)
        in_silence = not chunk.has_speech or chunk.silence_start is not None
        if chunk.has_speech:
            is_late = (
                chunk.scanned >= rules.latest and not in_silence
            )  # then only a silence or the limit decides
            end = min(end, (rules.limit if is_late else rules.latest) - 1)
        if chunk.silence_start is not None:
            end = min(end, chunk.silence_start + rules.long_silence - 1)
        if chunk.scanned < end:
            try:
                chunk.scanned = self._speech.index(
                    in_silence, chunk.scanned, end
                )  # in a silence the next event is speech
            except ValueError:
                chunk.scanned = end
        return chunk.scanned < len(self._speech)

    def _start_at_speech(self) -> None:
        """The next frame is the open chunk's first speech."""
        self._drop_silence_before(self._open.scanned)
        self._open.has_speech = True
        self._open.scanned += 1

    def _find_cut(self) -> tuple[int, bool] | None:
        """(frame, forced) of the open chunk's end; None while more has to be scanned."""
        rules, chunk, silence = self._rules, self._open, self._open.current_silence
        if silence.length >= rules.long_silence:
            return silence.cut, False
        if chunk.scanned < rules.latest:
            return None
        pauses = [
            p for p in (*chunk.pauses, silence) if p.length >= PAUSE and p.cut >= rules.earliest
        ]
        # after `latest` the first pause is cut in when it has ended, or when its cut no longer moves
        if pauses and (chunk.scanned == rules.latest or silence.length in (0, 2 * MARGIN)):
            return max(pauses, key=lambda pause: pause.length).cut, False
        if chunk.scanned < rules.limit:
            return None
        if pauses:
            return pauses[-1].cut, False
        return self._quietest(rules.earliest, rules.limit), True

    def _quietest(self, start: int, end: int) -> int:
        """The frame in the middle of the QUIET consecutive frames of least power."""
        pcm = np.frombuffer(
            bytes(self._held[start * FRAME_BYTES : end * FRAME_BYTES]), np.int16
        ).astype(np.float64)
        power = (pcm[: len(pcm) // FRAME * FRAME].reshape(-1, FRAME) ** 2).mean(1)
        return start + int(np.convolve(power, np.ones(QUIET), "valid").argmin()) + QUIET // 2

    def _close(self, frames: int, forced: bool) -> AudioChunk:
        """The first `frames` held, as a chunk. The next chunk starts behind them, so the frames left are scanned again."""
        pcm = np.frombuffer(bytes(self._held[: frames * FRAME_BYTES]), np.int16)
        chunk = AudioChunk(
            self._count, self._offset, pcm, _spans(self._speech[:frames], len(pcm)), forced
        )
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
    edges = [i for i, (a, b) in enumerate(zip([False, *speech], [*speech, False])) if a != b]
    return tuple((a * FRAME, min(b * FRAME, samples)) for a, b in zip(edges[::2], edges[1::2]))
