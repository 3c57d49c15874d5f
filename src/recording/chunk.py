"""A stretch of a recording that the models take at once. Knows nothing of where it came from."""

from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16_000  # Hz, everywhere in this worker
MIN_SECONDS = 0.5  # shortest audio that the models were trained on
HOP = 160  # samples between two mel frames of the models


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """Consecutive samples of a recording, unchanged."""

    index: int  # among the chunks of the recording, from 0
    offset: int  # of the first sample in the recording
    pcm: np.ndarray  # (samples,) int16 mono at SAMPLE_RATE
    speech: tuple[
        tuple[int, int], ...
    ]  # (start, end) of speech by the detector, in samples of the chunk
    forced_cut: bool = False  # it does not end in a pause

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
        """Seconds of speech by the detector."""
        return sum(end - start for start, end in self.speech) / SAMPLE_RATE

    def halves(self) -> tuple["AudioChunk", "AudioChunk"]:
        """Two chunks that tile this one, cut in the longest pause of its middle half; without a pause, in the middle."""
        quarter = len(self.pcm) // 4
        pauses = [
            (a, b)
            for (_, a), (b, _) in zip(self.speech, self.speech[1:])
            if quarter <= (a + b) // 2 <= 3 * quarter
        ]
        return self.split(
            sum(max(pauses, key=lambda p: p[1] - p[0])) // 2 if pauses else len(self.pcm) // 2
        )

    def split(self, cut: int) -> tuple["AudioChunk", "AudioChunk"]:
        """Two chunks that tile this one; the second begins at this one's sample `cut`."""
        before = tuple((a, min(b, cut)) for a, b in self.speech if a < cut)
        after = tuple((max(a, cut) - cut, b - cut) for a, b in self.speech if b > cut)
        return (
            AudioChunk(
                self.index,
                self.offset,
                self.pcm[:cut],
                before,
                forced_cut=any(a < cut < b for a, b in self.speech),
            ),
            AudioChunk(self.index, self.offset + cut, self.pcm[cut:], after, self.forced_cut),
        )


def waveform(chunk: AudioChunk) -> np.ndarray:
    """The chunk for a model: (samples,) float32 in [-1, 1) at SAMPLE_RATE, zero-padded to MIN_SECONDS and to whole hops.

    vLLM pads to whole hops, the aligner's package does not; padded here, both models get the same frames.
    """
    wave = np.zeros(
        max(-(-len(chunk.pcm) // HOP) * HOP, round(MIN_SECONDS * SAMPLE_RATE)), np.float32
    )
    np.multiply(chunk.pcm, np.float32(1 / 32768), out=wave[: len(chunk.pcm)])
    return wave
