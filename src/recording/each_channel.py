"""The channels of a recording, each by itself, in one pass: samples → chunks of every channel.

Silence gives no chunk, so a silent channel costs nothing. The copy of another channel is made
silent, so a mono call that is stored as stereo is transcribed once. The channels are consumed in
step, so memory does not depend on the length of the recording.
"""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
from recording.chunk import SAMPLE_RATE, AudioChunk, Samples
from recording.pcm_stream import PcmStream
from recording.vad import CutRules, Splitter, chunks_by

COPY_SAMPLES = SAMPLE_RATE  # of two channels a second is compared at once
# What is left of a copy without the other channel has at most this share of its power (-35 dB).
# Lossy codecs leave -45 dB of a mono voice that is stored as stereo.
MAX_RESIDUE = 10 ** (-35 / 10)
ROUNDING = 4.0  # the mean power that the rounding of 16 bits, with noise for it, may leave
SAME_LEVEL = 0.5  # -3 dB; of channels that are about as loud, the first is no copy


async def split_recording(pcm: PcmStream, rules: CutRules) -> AsyncIterator[AudioChunk]:
    """The chunks of a recording, each as soon as its end is known.

    Where its channels are decoded by themselves, the chunks have the number of their channel. They
    come in about the order of their ends.
    """
    splitter = EachChannel(pcm, rules) if pcm.is_each else Splitter(rules, pcm.offset)
    async for chunk in chunks_by(splitter, pcm):
        yield chunk


class EachChannel:
    """A splitter for every channel of a stream. It takes blocks of (samples, channels) int16."""

    def __init__(self, pcm: PcmStream, rules: CutRules):
        self._pcm = pcm
        self._rules = rules
        self._splitters: dict[int, Splitter] = {}  # by the number of the channel
        self._count = 0  # complete chunks
        self._held: list[Samples] = []  # blocks that together are shorter than COPY_SAMPLES
        self._copied: Counter[tuple[int, int]] = Counter()  # samples by (copy, original)

    def push(self, block: Samples) -> list[AudioChunk]:
        """Take the next block; returns the chunks that are now complete."""
        if not self._splitters:  # The numbers are known with the first block.
            offset = self._pcm.offset
            self._splitters = {n: Splitter(self._rules, offset) for n in self._pcm.channels}
        held = np.concatenate([*self._held, block])
        whole = len(held) // COPY_SAMPLES * COPY_SAMPLES
        self._held = [held[whole:]]
        return self._split(held[:whole])

    def finish(self) -> list[AudioChunk]:
        """The recording has ended; returns the remaining chunks."""
        chunks: list[AudioChunk] = []
        for block in self._held:
            chunks += self._split(block)
        for number, splitter in self._splitters.items():
            chunks += self._numbered(splitter.finish(), number)
        self._warn_of_copies()
        return chunks

    def _split(self, block: Samples) -> list[AudioChunk]:
        own = self._without_copies(block)
        chunks: list[AudioChunk] = []
        for column, (number, splitter) in enumerate(self._splitters.items()):
            chunks += self._numbered(splitter.push(own[:, column]), number)
        return chunks

    def _numbered(self, chunks: list[AudioChunk], channel: int) -> list[AudioChunk]:
        numbered = [
            replace(chunk, index=index, channel=channel)
            for index, chunk in enumerate(chunks, self._count)
        ]
        self._count += len(chunks)
        return numbered

    def _without_copies(self, block: Samples) -> Samples:
        """The block with silence where a channel is a copy of another one."""
        own = block.copy()
        numbers = self._pcm.channels
        for start in range(0, len(block), COPY_SAMPLES):
            part = block[start : start + COPY_SAMPLES]
            for copy, original in copies_in(part):
                own[start : start + COPY_SAMPLES, copy] = 0
                self._copied[numbers[copy], numbers[original]] += len(part)
        return own

    def _warn_of_copies(self) -> None:
        warnings = [
            f"Channel {copy} has the sound of channel {original} for "
            f"{samples / SAMPLE_RATE:.1f} seconds; there it was transcribed only as that channel."
            for (copy, original), samples in sorted(self._copied.items())
        ]
        self._pcm.warnings = (*self._pcm.warnings, *warnings)


def copies_in(block: Samples) -> list[tuple[int, int]]:
    """(copy, original) for each channel that has the sound of another one.

    `block`: (samples, channels) int16. The level and the sign of a copy may be others. The louder
    channel is the original.
    """
    sound = block.astype(np.float64)
    products = sound.T @ sound
    powers = products.diagonal()
    found: list[tuple[int, int]] = []
    for copy, power in enumerate(powers):
        limit = max(MAX_RESIDUE * power, ROUNDING * len(block))
        for original, other in enumerate(powers):
            is_first = original < copy
            is_louder = power < (other / SAME_LEVEL if is_first else SAME_LEVEL * other)
            if not power or not is_louder:
                continue
            residue = power - products[copy, original] ** 2 / other
            if residue <= limit:
                found.append((copy, original))
                break
    return found
