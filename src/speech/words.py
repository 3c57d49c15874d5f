"""The words of a chunk with their times. Plain values; knows nothing of samples, models or RunPod.

Times are floats in seconds from the start of the recording.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a chunk's text, or a character where the script has no spaces."""

    text: str
    start: float
    end: float
    offset: int  # of its first character in the chunk's text
    estimated: bool = False  # its time does not come from the aligner, but from its neighbours' times or the speech around it


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """The result of one chunk, or of a part of one, without its samples."""

    start: float
    end: float
    speech_seconds: float
    text: str = ""
    language: str | None = None
    words: tuple[Word, ...] = ()
    retries: tuple[str, ...] = ()  # the reason of each retry: the faults of the answers before it
    doubtful: bool = False  # the text has a fault that no retry removed
    failure: str | None = None  # why there is no answer: "engine_error" or "timeout"
    warning: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether there is a text without a fault."""
        return bool(self.text) and not self.doubtful

    @property
    def outcome(self) -> str:
        """Of the retries: "failed" (no answer), "kept" (the text still has its fault) or "mended"."""
        return "failed" if self.failure else "kept" if self.doubtful else "mended"


def speech_seconds(chunks: Sequence[ChunkResult]) -> Counter[str]:
    """Seconds of speech of each language, in chunks with text."""
    seconds: Counter[str] = Counter()
    for chunk in chunks:
        if chunk.text and chunk.language:
            seconds[chunk.language] += chunk.speech_seconds
    return seconds


def dominant_language(chunks: Sequence[ChunkResult]) -> str | None:
    """The language with the most seconds of speech. None without text."""
    return next((name for name, _ in speech_seconds(chunks).most_common(1)), None)
