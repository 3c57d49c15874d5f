"""Which words are said in which run of speech. Pure functions; knows neither sound nor text.

Dynamic programming over (run, boundary between two words). A run costs the more, the less its
amount of speech fits the length of its words. A pause costs little at a mark and more elsewhere. A
run may be joined to the one before it, where the pause is within a word, and it may have no words,
where it is noise. The effort is linear in the length of the chunk, because boundaries far from
where they are expected are left out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

WITHIN, CLAUSE, SENTENCE = 0, 1, 2  # what ends at a boundary

# All costs are negative logarithms of probabilities.
SPREAD = 0.08  # of a long run's amount around the length of its words, as a share of it
WORD_SPREAD = 0.6  # the same for a run of one letter; it falls with the root of the length
PAUSE_AT = (2.0, 0.3, 0.0)  # within a clause, after a clause, after a sentence
PAUSE_WITHIN_PER_SECOND = 1.8
NO_PAUSE_AT = (0.0, 1.0, 1.8)  # as PAUSE_AT, where there is none
JOINED = 0.8  # a pause within a word
JOINED_PER_SECOND = 8.0
NOISE = 4.0  # a run without words
NOISE_PER_SECOND = 5.0

MAX_JOINED = 2  # runs
TINY = 1e-9  # letters, instead of none
# For the speed: what is less likely than that is left out.
MAX_DRIFT = 100.0  # letters between a boundary and where the amount of speech would have it
MAX_BEHIND = 12.0  # of a boundary's cost behind the least one at the same run


class Run(NamedTuple):
    """A run of speech; its times are in seconds."""

    start: float
    end: float
    before: float  # the amount of speech before it, in letters
    after: float  # the amount until its end


class Stretch(NamedTuple):
    """In the runs [first_run, last_run) the words [first_word, last_word) are said."""

    first_run: int
    last_run: int
    first_word: int
    last_word: int


def match(runs: Sequence[Run], lengths: Sequence[float], ends: Sequence[int]) -> list[Stretch]:
    """The likeliest words of each run, in order. Runs without words are left out.

    `lengths`: of each word, in letters; they sum up to the amount of all runs. `ends`: WITHIN,
    CLAUSE or SENTENCE for each word but the last. Where nothing fits, all runs have all words.
    """
    matching = _Matching(runs, lengths, ends)
    for run in range(1, len(runs) + 1):
        matching.add(run)
    return matching.stretches() or [Stretch(0, len(runs), 0, len(lengths))]


class _Matching:
    """The least cost at each (run, boundary): the words before it are said when the run ends."""

    def __init__(self, runs: Sequence[Run], lengths: Sequence[float], ends: Sequence[int]):
        self._runs = runs
        self._passed = np.cumsum([0.0, *lengths])  # letters before each boundary
        kinds = np.array([SENTENCE, *ends, SENTENCE])
        self._pause_cost = np.take(PAUSE_AT, kinds)
        self._is_within = kinds == WITHIN
        self._unpaused = np.cumsum([0.0, *np.take(NO_PAUSE_AT, kinds)])  # before each boundary
        shape = len(runs) + 1, len(self._passed)
        self._cost: Floats = np.full(shape, np.inf)
        self._cost[0, 0] = 0
        self._run_before: Indices = np.zeros(shape, np.intp)
        self._boundary_before: Indices = np.zeros(shape, np.intp)

    def add(self, run: int) -> None:
        """Find the costs at the end of run number `run`, from 1."""
        near = self._boundaries_near(run)
        cost = self._cost[run, near]
        for first in range(max(0, run - MAX_JOINED), run):
            found, before = self._cheapest(first, run, near)
            is_better = found < cost
            cost[is_better] = found[is_better]
            self._run_before[run, near][is_better] = first
            self._boundary_before[run, near][is_better] = before[is_better]
        if run < len(self._runs):
            pause = self._runs[run].start - self._runs[run - 1].end
            within = PAUSE_WITHIN_PER_SECOND * min(1.0, pause)
            cost += self._pause_cost[near] + within * self._is_within[near]

    def _boundaries_near(self, run: int) -> slice:
        """Those that may be at the end of a run."""
        if run == len(self._runs):
            return slice(len(self._passed) - 1, len(self._passed))
        expected = self._runs[run - 1].after
        low, high = np.searchsorted(self._passed, (expected - MAX_DRIFT, expected + MAX_DRIFT))
        return slice(int(low), int(high))

    def _cheapest(self, first: int, run: int, near: slice) -> tuple[Floats, Indices]:
        """(cost, boundary before) for each boundary, if the runs [first, run) are one stretch."""
        runs = self._runs[first:run]
        likely = self._cost[first] <= self._cost[first].min() + MAX_BEHIND
        before = np.flatnonzero(likely)
        letters = self._passed[near, None] - self._passed[before]
        cost = _misfit(runs[-1].after - runs[0].before, np.maximum(letters, TINY))
        cost += self._unpaused[near, None] - self._unpaused[before + 1]
        cost[letters < 0] = np.inf
        cost[letters == 0] = _noise_cost(runs)
        cost += self._cost[first, before]
        best = cost.argmin(1)
        cheapest = cost[np.arange(len(cost)), best]
        for run_before, run_after in zip(runs, runs[1:]):
            cheapest += JOINED + JOINED_PER_SECOND * (run_after.start - run_before.end)
        return cheapest, before[best]

    def stretches(self) -> list[Stretch]:
        """The cheapest way through all runs; empty where there is none."""
        run, word = len(self._runs), len(self._passed) - 1
        if not np.isfinite(self._cost[run, word]):
            return []
        found = []
        while run:
            first = int(self._run_before[run, word])
            first_word = int(self._boundary_before[run, word])
            if first_word < word:
                found.append(Stretch(first, run, first_word, word))
            run, word = first, first_word
        return found[::-1]


def _misfit(amount: float, letters: Floats) -> Floats:
    """What it costs that this amount of speech has words of so many letters."""
    variance = SPREAD**2 + WORD_SPREAD**2 / letters
    ratio = np.log(max(amount, TINY) / letters)
    cost: Floats = ratio**2 / (2 * variance) + np.log(variance) / 2
    return cost


def _noise_cost(runs: Sequence[Run]) -> float:
    """What it costs that runs have no words; only a single one may have none."""
    seconds = runs[0].end - runs[0].start
    return NOISE + NOISE_PER_SECOND * seconds if len(runs) == 1 else np.inf
