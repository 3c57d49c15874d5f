"""Which words are said in which run of speech. Pure functions; knows neither sound nor text.

Dynamic programming over (run, boundary between two words). A run costs the more, the less its
amount of speech fits the length of its words. A pause costs little at a mark and more elsewhere. A
run may be joined to the one before it, where the pause is within a word, and it may have no words,
where it is noise. The cost is linear in the length of the chunk: boundaries far from where they are
expected are left out, and so are runs with far too many words.
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
MAX_DRIFT = 100.0  # letters between a boundary and where the speech until then would have it
MAX_EXCESS = 1.5  # a run has words for this many times its amount at most, and MIN_EXCESS letters
MIN_EXCESS = 20.0


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
        self._words = _WordCosts(self._passed, np.take(NO_PAUSE_AT, kinds), _largest_amount(runs))
        shape = len(runs) + 1, len(self._passed)
        self._cost: Floats = np.full(shape, np.inf)
        self._cost[0, 0] = 0
        self._run_before: Indices = np.zeros(shape, np.intp)
        self._words_since: Indices = np.zeros(shape, np.intp)

    def add(self, run: int) -> None:
        """Find the costs at the end of run number `run`, from 1."""
        near = self._boundaries_near(run)
        cost = self._cost[run, near]
        for first in range(max(0, run - MAX_JOINED), run):
            found, words = self._cheapest(first, run, near)
            is_better = found < cost
            cost[is_better] = found[is_better]
            self._run_before[run, near][is_better] = first
            self._words_since[run, near][is_better] = words[is_better]
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
        """(cost, words) for each boundary: the best number of words for the runs [first, run)."""
        runs = self._runs[first:run]
        cost = self._words.costs(runs[-1].after - runs[0].before, near)
        if len(runs) == 1:
            cost[:, 0] = NOISE + NOISE_PER_SECOND * (runs[0].end - runs[0].start)
        cost += self._cost[first][self._words.before[near, : cost.shape[1]]]
        words = cost.argmin(1)
        cheapest = cost[np.arange(len(cost)), words]
        for run_before, run_after in zip(runs, runs[1:]):
            cheapest += JOINED + JOINED_PER_SECOND * (run_after.start - run_before.end)
        return cheapest, words

    def stretches(self) -> list[Stretch]:
        """The cheapest way through all runs; empty where there is none."""
        run, word = len(self._runs), len(self._passed) - 1
        if not np.isfinite(self._cost[run, word]):
            return []
        found = []
        while run:
            first = int(self._run_before[run, word])
            words = int(self._words_since[run, word])
            if words:
                found.append(Stretch(first, run, word - words, word))
            run, word = first, word - words
        return found[::-1]


class _WordCosts:
    """What it costs that a run has the last 0, 1, 2, … words before a boundary."""

    def __init__(self, passed: Floats, unpaused: Floats, largest_amount: float):
        """`passed`: letters before each boundary. `unpaused`: its cost where no pause is there."""
        boundaries = np.arange(len(passed))
        first = np.searchsorted(passed, passed - _most_letters(largest_amount))
        words = np.arange(max(2, int((boundaries - first).max()) + 1))
        before = boundaries[:, None] - words
        self.before = np.maximum(before, 0)  # (boundaries, words + 1)
        letters = np.where(before < 0, np.inf, passed[:, None] - passed[self.before])
        self._least_letters = letters.min(0)
        letters[:, 0] = np.inf
        variance = SPREAD**2 + WORD_SPREAD**2 / letters
        sums = np.cumsum([0.0, *unpaused])
        inside = sums[:-1, None] - sums[self.before + 1]
        self._fixed = np.where(np.isinf(letters), np.inf, np.log(variance) / 2 + inside)
        self._precision = 1 / (2 * variance)
        self._log_letters = np.where(np.isinf(letters), 0, np.log(letters))

    def costs(self, amount: float, near: slice) -> Floats:
        """(boundaries, words + 1); infinite without words."""
        is_possible = self._least_letters <= _most_letters(amount)
        table = near, slice(0, max(2, int(is_possible.sum())))
        ratio = np.log(max(amount, 1e-9)) - self._log_letters[table]
        cost: Floats = self._precision[table] * ratio**2 + self._fixed[table]
        return cost


def _most_letters(amount: float) -> float:
    """That a run with this amount of speech may have."""
    return MAX_EXCESS * amount + MIN_EXCESS


def _largest_amount(runs: Sequence[Run]) -> float:
    """Of as many runs as may be joined."""
    lasts = [*runs[MAX_JOINED - 1 :], *[runs[-1]] * (MAX_JOINED - 1)]
    return max(last.after - first.before for first, last in zip(runs, lasts))
