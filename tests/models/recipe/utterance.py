"""Utterances: samples with their words and word times. Imports no synthesiser and no model."""

import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_RATE = 16_000  # Hz, of every `pcm` in this folder
LONGEST = 9.5  # seconds, the longest clip the tiny models are trained on
STOPS = ".,。，"  # the punctuation a word may carry


@dataclass(frozen=True, slots=True)
class Word:
    text: str  # with the punctuation that follows it, so that any run of words joins to a text
    start: float  # seconds from the first sample
    end: float


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no single ==
class Utterance:
    language: str  # "English", "Chinese" or "None"
    words: tuple[Word, ...]
    pcm: np.ndarray  # (samples,) int16, mono, at SAMPLE_RATE

    @property
    def text(self) -> str:
        return join(self.language, self.words)

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.pcm) / SAMPLE_RATE


def join(language: str, words: Iterable[Word]) -> str:
    """The words as one text; Chinese has no spaces."""
    return (" " if language == "English" else "").join(w.text for w in words)


def plain(text: str) -> str:
    """A word without its punctuation and capitals."""
    return text.strip(STOPS).lower()


def read_pickle(path: str | Path) -> list[Utterance]:
    """What `write_pickle` wrote. As with any pickle, only read files of your own."""
    with open(path, "rb") as file:
        return pickle.load(file)


def write_pickle(utterances: list[Utterance], path: str | Path) -> None:
    with open(path, "wb") as file:
        pickle.dump(utterances, file)
