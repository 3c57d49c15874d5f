"""What was heard, as plain values: words of chunks merged into one transcript and the job's output.

Knows nothing of samples, models or RunPod. Seconds are floats from the start of the recording.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# Scripts written without spaces between words: a character of theirs is a unit of its own.
_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff00-\uff9f\U00020000-\U0003ffff]"
)  # fmt: skip  # Thai, Lao, Myanmar, Khmer; CJK punctuation, kana, ideographs; full-width forms


@dataclass(frozen=True, slots=True)
class Word:
    """A slice of a chunk's text with its time."""

    text: str
    start: float
    end: float
    estimated: bool = False  # its time was not measured but worked out from its neighbours'


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What became of one chunk; its samples are gone."""

    start: float
    end: float
    speech_seconds: float
    text: str
    language: str | None
    words: tuple[Word, ...]
    retries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A unit of the output: a word, or a character where the script has no spaces."""

    start: float
    end: float
    text: str

    def to_output(self) -> dict:
        """Plain JSON values; seconds to the millisecond."""
        return {"start": round(self.start, 3), "end": round(self.end, 3), "text": self.text}


@dataclass(frozen=True, slots=True)
class Transcript:
    """The whole of one recording."""

    text: str
    language: str | None
    segments: tuple[Segment, ...]

    def to_output(self) -> dict:
        """The job's output: plain JSON values that encode to UTF-8."""
        output = {
            "language_detected": self.language,
            "text": self.text,
            "segments": [segment.to_output() for segment in self.segments],
        }
        return output


def merge(chunks: Sequence[ChunkResult]) -> Transcript:
    """The transcript of a recording from its chunks, in any order."""
    ordered = sorted(chunks, key=lambda chunk: chunk.start)
    return Transcript(
        text=join([chunk.text for chunk in ordered]),
        language=dominant_language(ordered),
        segments=tuple(Segment(word.start, word.end, word.text) for chunk in ordered for word in chunk.words),
    )


def join(texts: Sequence[str]) -> str:
    """Texts one after another: with a space, or with nothing between two scripts written without spaces."""
    joined = ""
    for text in filter(None, (t.strip() for t in texts)):
        unspaced = joined and _NO_SPACES.match(joined[-1]) and _NO_SPACES.match(text[0])
        joined += text if not joined or unspaced else f" {text}"
    return joined


def dominant_language(chunks: Sequence[ChunkResult]) -> str | None:
    """The language with the most seconds of speech; None where nothing was heard."""
    seconds: Counter[str] = Counter()
    for chunk in chunks:
        if chunk.text and chunk.language:
            seconds[chunk.language] += chunk.speech_seconds
    return seconds.most_common(1)[0][0] if seconds else None


def units_in(text: str) -> list[tuple[int, int]]:
    """(start, end) in `text` of its words, or of its characters where the script has no spaces; punctuation left out.

    Text without any letter or number is one unit, so that no text is without a time.
    """
    spans = [
        (match.start() + a, match.start() + b)
        for match in re.finditer(r"\S+", text)
        for a, b in _split_unspaced(match.group())
    ]
    return spans or [(match.start(), match.end()) for match in re.finditer(r"\S.*\S|\S", text, re.DOTALL)]


def _split_unspaced(token: str) -> list[tuple[int, int]]:
    """The units of a token without white space: runs of spaced script, single characters of the others."""
    spans: list[tuple[int, int]] = []
    fresh = True  # the next letter begins a unit
    for i, character in enumerate(token):
        kind = unicodedata.category(character)[0]
        alone = bool(_NO_SPACES.match(character))
        if kind in "LN":
            if fresh or alone:
                spans.append((i, i + 1))
            else:
                spans[-1] = (spans[-1][0], i + 1)
            fresh = alone
        elif kind == "M" and spans and spans[-1][1] == i:
            spans[-1] = (spans[-1][0], i + 1)  # a combining mark belongs to the letter before it
    return spans
