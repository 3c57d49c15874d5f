"""Samples and their text → when each word is said, without an aligner. Pure functions.

First it is found which words are said between which pauses. Between two pauses the words are then
spread by their spoken length over what is heard.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from recording.chunk import Samples
from speech.pause_matching import Run, match
from speech.spoken_amount import FRAME_MS, SpokenAmount, spoken_amount
from speech.spoken_length import ends_between, spoken_lengths

# A word begins just behind its place on the axis of the amount, and ends just before the next:
# a pause has one place on that axis, and belongs to no word.
NEARBY = 1e-9


def estimated_times(
    pcm: Samples,
    speech: Sequence[tuple[int, int]],
    text: str,
    units: Sequence[tuple[int, int]],
) -> list[tuple[int, int]]:
    """(start, end) of each unit in ms from the first sample; in order, none before 0.

    `pcm`: (samples,) int16. `speech`: the detector's (start, end) in samples. `units`: (start, end)
    of each in `text`, at least one.
    """
    heard = spoken_amount(pcm, speech)
    lengths = spoken_lengths([text[start:end] for start, end in units])
    times: list[tuple[int, int]] = []
    for stretch in match(_runs(heard, sum(lengths)), lengths, ends_between(text, units)):
        first, end = heard.starts[stretch.first_run], heard.ends[stretch.last_run - 1]
        times += _spread(heard, first, end, lengths[stretch.first_word : stretch.last_word])
    return times


def _runs(heard: SpokenAmount, letters: float) -> list[Run]:
    """The runs with their amounts in letters, of which there are `letters` in all."""
    runs = []
    for start, end in zip(heard.starts, heard.ends):
        before, after = (letters * float(heard.by_run[frame]) for frame in (start, end))
        runs.append(Run(start * FRAME_MS / 1000, end * FRAME_MS / 1000, before, after))
    return runs


def _spread(
    heard: SpokenAmount, first: int, end: int, lengths: Sequence[float]
) -> Iterator[tuple[int, int]]:
    """(start, end) in ms of words of these lengths over the speech from frame `first` to `end`."""
    curve = heard.by_word[first : end + 1]
    passed = np.cumsum([0.0, *lengths])
    amounts = curve[0] + passed / passed[-1] * (curve[-1] - curve[0])
    frames = np.arange(first, end + 1)
    starts = np.interp(amounts[:-1] + NEARBY, curve, frames)
    ends = np.interp(amounts[1:] - NEARBY, curve, frames)
    for word_start, word_end in zip(starts, ends):
        yield round(word_start * FRAME_MS), round(word_end * FRAME_MS)
