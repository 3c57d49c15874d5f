"""16 kHz mono int16 stream → `AudioChunk`s cut in WebRTC VAD pauses. Does not know what happens to a chunk.

The chunks and the silence between them tile the recording: every sample is in exactly one chunk, or in a span where
the detector heard no speech and that lies at least MARGIN from any speech. Memory holds one chunk, not the file.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np
import webrtcvad

from audio import SAMPLE_RATE, AudioChunk

FRAME = SAMPLE_RATE * 30 // 1000  # samples; the longest frame webrtcvad takes
FRAME_SECONDS = FRAME / SAMPLE_RATE
PAUSE = round(0.24 / FRAME_SECONDS)  # frames; a shorter gap may lie inside a word
MARGIN = round(0.72 / FRAME_SECONDS)  # frames of silence kept around speech: the detector may be late
QUIET = 5  # frames (150 ms) over which loudness is averaged to find the quietest point


@dataclass(frozen=True, slots=True)
class CutRules:
    """Where a recording is cut."""

    target_seconds: float  # chunks come out about this long
    limit_seconds: float  # and never longer than this
    vad_mode: int  # webrtcvad's aggressiveness, 0 to 3

    @property
    def target(self) -> int:
        """Frames."""
        return max(2 * PAUSE, int(self.target_seconds / FRAME_SECONDS))

    @property
    def limit(self) -> int:
        """Frames."""
        return max(self.target, int(self.limit_seconds / FRAME_SECONDS))

    @property
    def earliest(self) -> int:
        """Frames; a pause before this is too early to cut in."""
        return self.target // 2

    @property
    def latest(self) -> int:
        """Frames; the choice among the pauses around the target is made once so much has been heard."""
        return min(self.limit, self.target * 5 // 4)

    @property
    def long_silence(self) -> int:
        """Frames without speech that end a chunk wherever they come."""
        return max(2 * MARGIN, self.target // 4)


async def split_at_pauses(pcm: AsyncIterable[np.ndarray], rules: CutRules, first: int = 0) -> AsyncIterator[AudioChunk]:
    """Chunks of a recording that comes in blocks of (samples,) int16, each as soon as its end is known.

    `first`: the sample of the recording with which the blocks begin.
    """
    splitter = Splitter(rules, first)
    async for block in pcm:
        for chunk in await asyncio.to_thread(splitter.push, block):
            yield chunk
    for chunk in await asyncio.to_thread(splitter.finish):
        yield chunk


class Splitter:
    """The same without a loop: push blocks, take chunks. How the samples come in blocks changes nothing."""

    def __init__(self, rules: CutRules, first: int = 0):
        self._rules = rules
        self._vad = webrtcvad.Vad(rules.vad_mode)
        self._count = 0  # chunks made
        self._offset = first  # sample of the recording at which what is held begins
        self._held = bytearray()  # int16 samples that are in no chunk yet
        self._speech: list[bool] = []  # one a frame held
        self._look_again()

    def push(self, block: np.ndarray) -> list[AudioChunk]:
        """Take the next (samples,) int16 of the recording; returns the chunks that are now complete."""
        self._held += block.tobytes()
        fresh, frame, is_speech = bytes(self._held[len(self._speech) * FRAME * 2 :]), FRAME * 2, self._vad.is_speech
        self._speech += [is_speech(fresh[i : i + frame], SAMPLE_RATE) for i in range(0, len(fresh) - frame + 1, frame)]
        chunks = list(self._complete_chunks())
        if self._first is None:
            self._forget(len(self._speech) - MARGIN)
        return chunks

    def finish(self) -> list[AudioChunk]:
        """The recording has ended: the chunks that are left."""
        tail = bytes(self._held[len(self._speech) * FRAME * 2 :])
        if tail:  # less than a frame; padded for the detector only
            self._speech.append(self._vad.is_speech(tail.ljust(FRAME * 2, b"\0"), SAMPLE_RATE))
        chunks = list(self._complete_chunks())
        if self._first is not None:
            silent = len(self._speech) - self._run_start if self._run_start is not None else 0
            chunks.append(self._take(len(self._speech) - max(0, silent - MARGIN), forced=False))
        return chunks

    def _look_again(self) -> None:
        """Begin a chunk at the first frame held."""
        self._seen = 0  # frames of it looked at
        self._first: int | None = None  # its first frame of speech
        self._run_start: int | None = None  # where the present run without speech began
        self._pauses: list[tuple[int, int]] = []  # (start, end) of those that are over

    def _complete_chunks(self) -> Iterator[AudioChunk]:
        while self._to_next_decision():
            speech = self._speech[self._seen]
            self._seen += 1
            if self._first is None:
                if speech:
                    self._first = self._seen - 1 - self._forget(self._seen - 1 - MARGIN)
                continue
            if speech and self._run_start is not None:
                self._pauses.append((self._run_start, self._seen - 1))
                self._run_start = None
            elif not speech and self._run_start is None:
                self._run_start = self._seen - 1
            if cut := self._cut():
                yield self._take(*cut)

    def _to_next_decision(self) -> bool:
        """Pass over frames that change nothing; whether there is one left to look at."""
        sought, end = self._first is None or self._run_start is not None, len(self._speech)
        if self._first is not None:
            end = min(end, self._rules.latest - 1)
        if self._run_start is not None:
            end = min(end, self._run_start + self._rules.long_silence - 1)
        if self._seen < end:
            try:
                self._seen = self._speech.index(sought, self._seen, end)
            except ValueError:
                self._seen = end
        return self._seen < len(self._speech)

    def _cut(self) -> tuple[int, bool] | None:
        """(frame, forced) of this chunk's end, if what has been seen decides it."""
        rules = self._rules
        present = (self._run_start, self._seen) if self._run_start is not None else (self._seen, self._seen)
        if _length(present) >= rules.long_silence:
            return _within(present), False
        if self._seen < rules.latest:
            return None
        pauses = [*self._pauses, present]
        near = [p for p in pauses if _length(p) >= PAUSE and _within(p) >= rules.earliest]
        if near and (self._seen == rules.latest or _length(present) in (0, 2 * MARGIN)):
            return _within(max(near, key=_length)), False
        if self._seen < rules.limit:
            return None
        if near:
            return _within(near[-1]), False
        return self._quietest(rules.earliest, rules.limit), True

    def _quietest(self, start: int, end: int) -> int:
        """The frame in the middle of the quietest QUIET frames."""
        pcm = np.frombuffer(bytes(self._held[start * FRAME * 2 : end * FRAME * 2]), np.int16).astype(np.float64)
        power = (pcm[: len(pcm) // FRAME * FRAME].reshape(-1, FRAME) ** 2).mean(1)
        return start + int(np.convolve(power, np.ones(QUIET), "valid").argmin()) + QUIET // 2

    def _take(self, frames: int, forced: bool) -> AudioChunk:
        pcm = np.frombuffer(bytes(self._held[: frames * FRAME * 2]), np.int16)
        chunk = AudioChunk(self._count, self._offset, pcm, _spans(self._speech[:frames], len(pcm)), forced)
        self._count += 1
        self._forget(frames)
        self._look_again()
        return chunk

    def _forget(self, frames: int) -> int:
        """Drop the first frames held, if that is more than none; returns how many."""
        frames = max(0, frames)
        del self._held[: frames * FRAME * 2], self._speech[:frames]
        self._offset += frames * FRAME
        self._seen -= frames
        return frames


def _spans(speech: list[bool], samples: int) -> tuple[tuple[int, int], ...]:
    """(start, end) samples of the runs of speech; the last frame may be cut short."""
    edges = [i for i, (a, b) in enumerate(zip([False, *speech], [*speech, False])) if a != b]
    return tuple((a * FRAME, min(b * FRAME, samples)) for a, b in zip(edges[::2], edges[1::2]))


def _length(run: tuple[int, int]) -> int:
    return run[1] - run[0]


def _within(pause: tuple[int, int]) -> int:
    """Where to cut: in its middle, but not further than MARGIN behind the speech before it."""
    return min(sum(pause) // 2, pause[0] + MARGIN)
