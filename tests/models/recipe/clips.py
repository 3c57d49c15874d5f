"""Utterances in a row: whole recordings, and pieces of them like those a splitter makes."""

import random

import numpy as np
from utterance import LONGEST, SAMPLE_RATE, Utterance, Word


def recording(
    pool: list[Utterance],
    seconds: float,
    seed: int,
    shortest_pause: float = 0.2,
    longest_pause: float = 1.5,
) -> Utterance:
    """Utterances drawn from the pool (one may come twice), faint noise after each, until at least
    `seconds` are full.

    The result is mono int16 at SAMPLE_RATE like its parts, in the language of the last one drawn,
    so give a pool of one language. Pauses are in seconds; the utterances' own silences add to them.
    The same arguments give the same samples. Raises IndexError for an empty pool, ValueError for no
    seconds.
    """
    rng, noise = random.Random(seed), np.random.RandomState(seed)
    parts, words, samples = [], [], 0
    while samples < seconds * SAMPLE_RATE:
        u = rng.choice(pool)
        pause = noise.randn(int(rng.uniform(shortest_pause, longest_pause) * SAMPLE_RATE))
        pause = (pause * 10 ** rng.uniform(-4, -2.5) * 32767).astype(np.int16)
        words += [_shifted(w, samples / SAMPLE_RATE) for w in u.words]
        parts += [u.pcm, pause]
        samples += len(u.pcm) + len(pause)
    if not parts:
        raise ValueError(f"a recording of {seconds} s holds no utterance")
    return Utterance(u.language, tuple(words), np.concatenate(parts))


def cut_between_words(whole: Utterance, rng: random.Random, longest: float = LONGEST) -> Utterance:
    """A piece of a recording with the words that lie in it, their times counted from its first
    sample.

    Mostly from the middle of one pause to that of another, sometimes from any word to any word; at
    most `longest` seconds, unless a single word or a pause is longer, and at least half a second,
    zero-padded. A recording without words comes back whole.
    """
    if not whole.words:
        return whole
    words = whole.words
    gaps = [(a.end, b.start) for a, b in zip(words, words[1:])]
    # Gap i lies before word i.
    gaps = [
        (0.0, words[0].start),
        *gaps,
        (words[-1].end, whole.duration),
    ]
    pauses = [i for i, (a, b) in enumerate(gaps) if b - a > 0.2 or i in (0, len(words))]

    first = rng.choice(pauses[:-1]) if rng.random() < 0.75 else rng.randrange(len(words))
    start = _within(gaps[first], rng)
    limit = start + longest * (rng.uniform(0.4, 1) if rng.random() < 0.5 else 1)
    ends = [i for i in range(first + 1, len(words) + 1) if gaps[i][0] <= limit] or [first + 1]
    last = (
        max([i for i in pauses if i in ends], default=ends[-1]) if rng.random() < 0.75 else ends[-1]
    )
    end = min(_within(gaps[last], rng), max(limit, gaps[last][0]))

    pcm = whole.pcm[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
    pcm = np.pad(pcm, (0, max(0, SAMPLE_RATE // 2 - len(pcm))))
    return Utterance(whole.language, tuple(_shifted(w, -start) for w in words[first:last]), pcm)


def _shifted(word: Word, seconds: float) -> Word:
    return Word(word.text, word.start + seconds, word.end + seconds)


def _within(gap: tuple[float, float], rng: random.Random) -> float:
    start, end = gap
    return (
        (start + end) / 2 if rng.random() < 0.5 else rng.uniform(min(start, end), max(start, end))
    )
