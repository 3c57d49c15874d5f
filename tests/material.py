"""Audio for the tests: the bank's utterances, silence, noise, speech without a pause.

All is (samples,) int16 mono at 16 kHz.
"""

from pathlib import Path

import bank
import numpy as np
from recording.chunk import SAMPLE_RATE, AudioChunk
from utterance import Utterance

BANK = bank.load(Path(__file__).parent / "models" / "bank")
ENGLISH = [u for u in BANK if u.language == "English"]
CHINESE = [u for u in BANK if u.language == "Chinese"]


def chunk_of(pcm: np.ndarray, offset: int = 0) -> AudioChunk:
    """A chunk that is speech from its first sample to its last; `offset` is its first sample in the
    recording.
    """
    return AudioChunk(0, offset, pcm, ((0, len(pcm)),))


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), np.int16)


def noise(seconds: float, level: float = 3000) -> np.ndarray:
    """White noise of standard deviation `level`.

    From a few hundred on, the voice detector takes it for speech without a pause.
    """
    samples = np.random.default_rng(1).normal(0, level, round(seconds * SAMPLE_RATE))
    return samples.clip(-32768, 32767).astype(np.int16)


def voice(seconds: float) -> np.ndarray:
    """Speech without a pause: one loud word over and over."""
    u: Utterance = max(ENGLISH, key=lambda u: np.abs(u.pcm.astype(int)).mean())
    word = u.words[0]
    return np.resize(
        u.pcm[round(word.start * SAMPLE_RATE) : round(word.end * SAMPLE_RATE)],
        round(seconds * SAMPLE_RATE),
    )
