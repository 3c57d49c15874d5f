"""The words of a chunk with their times. Plain values; knows nothing of samples, models or RunPod.

Times are floats in seconds from the start of the recording.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from speech.tokens import Token


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a chunk's text, or a character where the script has no spaces."""

    text: str
    start: float
    end: float
    offset: int  # where its first character is in the chunk's text
    # Whether its time comes from its neighbours' times or the speech around it, not from the
    # aligner.
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """The result of one chunk, or of a part of one, without its samples."""

    start: float
    end: float
    speech_seconds: float
    text: str = ""
    language: str | None = None
    words: tuple[Word, ...] = ()
    retries: tuple[str, ...] = ()  # the faults of the answers that were discarded for this one
    doubtful: bool = False  # True where the text has a fault that no retry removed
    failure: str | None = None  # "engine_error" or "timeout" where there is no answer
    warning: str | None = None
    tokens: tuple[Token, ...] = ()  # those of the text, where the request asked for them
    temperature: float = 0.0  # the one that the answer was sampled at
    channel: int | None = None  # as in AudioChunk

    @property
    def healthy(self) -> bool:
        """Whether there is a text without a fault."""
        return bool(self.text) and not self.doubtful

    @property
    def outcome(self) -> str:
        """What the retries came to.

        "failed": there is no answer. "kept": the text still has its fault. "mended": it has none.
        """
        if self.failure:
            return "failed"
        return "kept" if self.doubtful else "mended"


def by_channel(chunks: Iterable[ChunkResult]) -> dict[int | None, list[ChunkResult]]:
    """The chunks of each channel, in their order; None is for chunks of a mix."""
    found: defaultdict[int | None, list[ChunkResult]] = defaultdict(list)
    for chunk in chunks:
        found[chunk.channel].append(chunk)
    return found


def speech_seconds(chunks: Sequence[ChunkResult]) -> dict[str, float]:
    """Seconds of speech of each language in chunks with text, the most seconds first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for chunk in chunks:
        if chunk.text and chunk.language:
            seconds[chunk.language] += chunk.speech_seconds
    most_first = sorted(seconds.items(), key=lambda item: item[1], reverse=True)
    return dict(most_first)


def dominant_language(chunks: Sequence[ChunkResult]) -> str | None:
    """The language with the most seconds of speech. None without text."""
    return next(iter(speech_seconds(chunks)), None)
