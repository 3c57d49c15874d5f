"""A stretch of a recording that the models take at once. Knows nothing of where it came from."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000  # Hz, everywhere in this worker
MIN_SECONDS = 0.5  # the models were trained on no shorter audio
HOP = 160  # samples between two mel frames of the models

Samples = NDArray[np.int16]  # (samples,) mono at SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """Consecutive samples of a recording, unchanged."""

    index: int  # the chunk's number in the recording, from 0
    offset: int  # the sample of the recording with which the chunk begins
    pcm: Samples
    speech: tuple[tuple[int, int], ...]  # (start, end) of detected speech, in samples of the chunk
    channel: int | None = None  # its number, where the channels are transcribed by themselves

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
        """Seconds of detected speech."""
        return sum(end - start for start, end in self.speech) / SAMPLE_RATE

    def halves(self) -> tuple["AudioChunk", "AudioChunk"]:
        """Two chunks that tile this one, cut in the longest pause of its middle half.

        Without a pause there, they are cut in the middle.
        """
        quarter = len(self.pcm) // 4
        cut, longest = len(self.pcm) // 2, 0
        for (_, start), (end, _) in zip(self.speech, self.speech[1:]):
            middle = (start + end) // 2
            if quarter <= middle <= 3 * quarter and end - start > longest:
                cut, longest = middle, end - start
        return self.split(cut)

    def split(self, cut: int) -> tuple["AudioChunk", "AudioChunk"]:
        """Two chunks that tile this one; the second begins at this one's sample `cut`."""
        before = tuple((start, min(end, cut)) for start, end in self.speech if start < cut)
        after = tuple((max(start, cut) - cut, end - cut) for start, end in self.speech if end > cut)
        return (
            replace(self, pcm=self.pcm[:cut], speech=before),
            replace(self, offset=self.offset + cut, pcm=self.pcm[cut:], speech=after),
        )


def waveform(chunk: AudioChunk) -> NDArray[np.float32]:
    """The chunk for a model: (samples,) float32 in [-1, 1) at SAMPLE_RATE.

    It is zero-padded to MIN_SECONDS and to whole hops. vLLM pads to whole hops and the aligner's
    package does not; padded here, both models get the same frames.
    """
    whole_hops = -(-len(chunk.pcm) // HOP) * HOP
    wave = np.zeros(max(whole_hops, round(MIN_SECONDS * SAMPLE_RATE)), np.float32)
    np.multiply(chunk.pcm, np.float32(1 / 32768), out=wave[: len(chunk.pcm)])
    return wave
