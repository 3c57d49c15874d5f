"""Samples → runs of speech, and how much is said by when. Pure functions.

Time is a poor measure of what is said, because one sentence is twice as fast as another. Two
others hold at any rate: every sound changes the spectrum, and every syllable is a hill of loudness.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from recording.chunk import SAMPLE_RATE, Samples

FRAME_MS = 10
FRAME = SAMPLE_RATE * FRAME_MS // 1000  # samples
# The spectra are of pairs of samples, in windows of two frames.
SPECTRUM_RATE = SAMPLE_RATE // 2
SPECTRUM_FRAME = FRAME // 2
WINDOW = 2 * SPECTRUM_FRAME
BLOCK = 512  # spectra at once: what fits into the processor's cache is three times as fast

# Speech is louder than the background by this share of the way up to the loudest frames.
THRESHOLD = 0.35
MAX_RANGE_DB = 50.0
MIN_RANGE_DB = 6.0  # with less there is no pause to be heard
MIN_PAUSE = 8  # frames; a shorter silence is the closure of a consonant
MIN_RUN = 3  # frames; a shorter sound is a click

BAND_EDGES_HZ = (200, 425, 900, 1900, 4000)
BAND_FLOOR = 1e-3  # of a band's power where it is loud; what is below counts as silence
MAX_CHANGE_DB = 20.0  # of one band from the frame before to the frame after
SYLLABLE_HZ = (250, 1500)  # the loudest part of vowels
SYLLABLE_FRAMES = 13  # this smoothing leaves one hill for each syllable

# The shares of time, of change and of syllables in the amount.
RUN_SHARES = (0.2, 0.4, 0.4)
WORD_SHARES = (0.2, 0.8, 0.0)

Frames = NDArray[np.intp]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class SpokenAmount:
    """What is heard in a chunk.

    The amounts are (frames + 1,) and rise from 0 to 1: the share of all that is said before each
    frame.
    """

    starts: Frames  # (runs,) the first frame of each run of speech
    ends: Frames  # (runs,) the frame behind it
    by_run: Floats  # the amount to compare runs by
    by_word: Floats  # the amount to place words by within a run


def spoken_amount(pcm: Samples, speech: Sequence[tuple[int, int]]) -> SpokenAmount:
    """What is heard in (samples,) int16.

    `speech`: the detector's (start, end) in samples, for sound in which no pause can be heard.
    """
    whole, vowels, *bands = _band_powers(pcm).T
    starts, ends = _runs(whole, speech)
    is_heard = np.zeros(len(whole))
    for start, end in zip(starts, ends):
        is_heard[start:end] = 1
    measures = is_heard, is_heard * _changes(bands), is_heard * _syllables(vowels)
    return SpokenAmount(starts, ends, _amount(measures, RUN_SHARES), _amount(measures, WORD_SHARES))


def _amount(measures: Sequence[Floats], shares: Sequence[float]) -> Floats:
    """(frames + 1,) the measures' shares before each frame, each measure with its own weight."""
    amount = np.zeros(len(measures[0]) + 1)
    for measure, share in zip(measures, shares):
        amount[1:] += share * np.cumsum(measure) / max(measure.sum(), 1e-9)
    return amount


def _band_powers(pcm: Samples) -> Floats:
    """(frames, bands) mean power of the whole spectrum, of SYLLABLE_HZ and of the other bands.

    There is at least one frame.
    """
    frames = max(1, len(pcm) // FRAME)
    margin = (WINDOW - SPECTRUM_FRAME) // 2
    padded = np.zeros(frames * SPECTRUM_FRAME + 2 * margin, np.float32)
    pairs = padded[margin:][: len(pcm) // 2]
    pairs += pcm[0 : 2 * len(pairs) : 2]
    pairs += pcm[1 : 2 * len(pairs) : 2]
    windows = sliding_window_view(padded, WINDOW)[::SPECTRUM_FRAME]
    shape, means = np.hanning(WINDOW).astype(np.float32), _band_means()
    powers = np.empty((frames, means.shape[1]))
    for first in range(0, frames, BLOCK):
        spectra = np.fft.rfft(windows[first : first + BLOCK] * shape, axis=1)
        powers[first : first + BLOCK] = (spectra.real**2 + spectra.imag**2) @ means
    return powers


def _band_means() -> NDArray[np.float32]:
    """(bins, bands): the weight of each bin of a spectrum in the mean of each band."""
    bands = [(0, SPECTRUM_RATE / 2), SYLLABLE_HZ, *pairwise(BAND_EDGES_HZ)]
    means = np.zeros((WINDOW // 2 + 1, len(bands)), np.float32)
    for band, edges in enumerate(bands):
        first, end = (round(hertz * WINDOW / SPECTRUM_RATE) for hertz in edges)
        means[first:end, band] = 1 / (end - first)
    return means


def _decibels(power: Floats) -> Floats:
    return 10 * np.log10(power)


def _runs(power: Floats, speech: Sequence[tuple[int, int]]) -> tuple[Frames, Frames]:
    """(first frames, frames behind) of the runs of speech; there is at least one."""
    loudness = _decibels(power + 1)
    quiet, loud = np.percentile(loudness, (5, 95))
    quiet = max(quiet, loud - MAX_RANGE_DB)
    is_speech = loudness > quiet + THRESHOLD * (loud - quiet)
    edges = np.flatnonzero(np.diff(is_speech, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    is_pause = starts[1:] - ends[:-1] >= MIN_PAUSE
    starts = np.append(starts[:1], starts[1:][is_pause])
    ends = np.append(ends[:-1][is_pause], ends[-1:])
    is_run = ends - starts >= MIN_RUN
    if loud - quiet < MIN_RANGE_DB or not is_run.any():
        return _detected_runs(speech, len(power))
    return starts[is_run], ends[is_run]


def _detected_runs(speech: Sequence[tuple[int, int]], frames: int) -> tuple[Frames, Frames]:
    """The runs that the detector found, or else one of the whole sound."""
    spans = np.array(speech or [(0, frames * FRAME)])
    ends = np.minimum(spans[:, 1] // FRAME, frames)
    return np.minimum(spans[:, 0] // FRAME, ends), ends


def _changes(bands: Sequence[Floats]) -> Floats:
    """(frames,) how much the spectrum changes around each frame, in dB, summed over the bands."""
    changes = np.zeros(len(bands[0]))
    for power in bands:
        loudness = _decibels(power + BAND_FLOOR * np.percentile(power, 95) + 1)
        steps = np.abs(loudness[2:] - loudness[:-2])
        changes[1:-1] += np.minimum(steps, MAX_CHANGE_DB)
    return changes


def _syllables(power: Floats) -> Floats:
    """(frames,) 1 at the loudest frame of each syllable, elsewhere 0."""
    loudness = _decibels(power + BAND_FLOOR * power.mean() + 1)
    window = np.hanning(SYLLABLE_FRAMES)
    smooth = np.convolve(loudness, window)[SYLLABLE_FRAMES // 2 :][: len(loudness)]
    peaks = np.zeros(len(power))
    peaks[1:-1] = (smooth[1:-1] > smooth[:-2]) & (smooth[1:-1] >= smooth[2:])
    return peaks
