"""Results of chunks → one transcript → the job's output. Plain values; knows nothing of samples, models or RunPod.

Times are floats in seconds from the start of the recording.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from contract.languages import LANGUAGES
from speech.text_units import is_unspaced
from speech.words import ChunkResult, dominant_language, speech_seconds

TERMINATED = re.compile(
    r"""[.!?…。！？｡．؟۔।॥]["'”’»）)\]」』】]*$"""
)  # the end of a sentence, closing quotes and brackets included
_INITIALS = re.compile(r"(\w\.)+")  # J. and U.S. do not end a sentence
SENTENCE_PAUSE_SECONDS = 1.5  # a longer pause ends a sentence
SENTENCE_SECONDS, SENTENCE_CHARACTERS = 20, 240  # the longest sentence


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the recording. Its state is "transcribed", "silent" or "failed"."""

    start: float
    end: float
    state: str
    reason: str | None = None  # of a failure

    def to_output(self) -> dict:
        """A failed span as plain JSON values; seconds to the millisecond."""
        return {"start": round(self.start, 3), "end": round(self.end, 3), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Segment:
    """A word or a sentence of the output: a slice of the transcript's text with its time."""

    start: float
    end: float
    text: str
    offset: int  # of its first character in the transcript's text
    estimated: bool = False
    language: str | None = None

    def to_output(self, with_language: bool) -> dict:
        """Plain JSON values; seconds to the millisecond."""
        output = {"start": round(self.start, 3), "end": round(self.end, 3), "text": self.text}
        output |= {"offset": self.offset, "length": len(self.text)}
        output |= {"estimated": True} if self.estimated else {}
        return output | ({"language": self.language} if with_language else {})


@dataclass(frozen=True, slots=True)
class Transcript:
    """The transcript of one recording, or of the requested part of it."""

    text: str
    chunks: tuple[ChunkResult, ...]  # in order
    offsets: tuple[int, ...]  # of each chunk's text in `text`
    spans: tuple[Span, ...]  # tile the recording or its part
    warning: str | None = None  # of the recording as a whole

    @property
    def language(self) -> str | None:
        """The language with the most seconds of speech. None without text."""
        return dominant_language(self.chunks)

    @property
    def duration(self) -> float:
        """Seconds of audio in the recording or its part."""
        return sum(span.end - span.start for span in self.spans)

    @property
    def end(self) -> float:
        """Where the recording or its part ends."""
        return self.spans[-1].end if self.spans else 0.0

    @property
    def failed(self) -> tuple[Span, ...]:
        """The spans without an answer."""
        return tuple(span for span in self.spans if span.state == "failed")

    def words(self, punctuation: bool) -> Iterator[Segment]:
        """Every word. With `punctuation` their slices together hold every character of the text except white space."""
        for chunk, offset in zip(self.chunks, self.offsets):
            for word, (a, b) in zip(chunk.words, _slices(chunk, punctuation)):
                yield Segment(
                    word.start,
                    word.end,
                    chunk.text[a:b],
                    offset + a,
                    word.estimated,
                    chunk.language,
                )

    def sentences(self) -> list[Segment]:
        """Runs of words that end at a terminator, before a long pause, or at the greatest length of a sentence."""
        found, run = [], []
        words = list(self.words(punctuation=True))
        for word, following in zip(words, [*words[1:], None]):
            run.append(word)
            if following is None or _ends_sentence(self.text, run, following):
                text = self.text[run[0].offset : run[-1].offset + len(run[-1].text)]
                estimated = run[0].estimated or run[-1].estimated
                found.append(
                    Segment(
                        run[0].start, run[-1].end, text, run[0].offset, estimated, run[0].language
                    )
                )
                run = []
        return found

    def languages(self) -> list[dict]:
        """Each detected language with its ISO code and its seconds of speech, the most first."""
        return [
            {"language": name, "code": LANGUAGES.get(name), "seconds": round(seconds, 3)}
            for name, seconds in speech_seconds(self.chunks).items()
        ]

    def to_output(self, segment_level: str = "word", punctuation: bool = False) -> dict:
        """The job's output as plain JSON values that encode to UTF-8. Optional fields are there only where they have a value."""
        output = self.common_fields()
        several = len(output["languages"]) > 1
        segments = self.sentences() if segment_level == "sentence" else self.words(punctuation)
        output["segments"] = [segment.to_output(several) for segment in segments]
        if segment_level == "both":
            output["sentences"] = [sentence.to_output(several) for sentence in self.sentences()]
        return output | self.problem_fields()

    def common_fields(self) -> dict:
        """The fields of every output format: the text, its languages and the seconds of audio."""
        code = LANGUAGES.get(self.language or "")
        languages = {
            "language_detected": self.language,
            "language_code": code,
            "languages": self.languages(),
        }
        return languages | {"duration": round(self.duration, 3), "text": self.text}

    def problem_fields(self) -> dict:
        """The fields that are there only after a problem: failed_spans, retries, warnings."""
        output: dict = {}
        if self.failed:
            output["failed_spans"] = [span.to_output() for span in self.failed]
        if retried := [c for c in self.chunks if c.retries]:
            output["retries"] = [
                {"start": c.start, "end": c.end, "reasons": list(c.retries), "outcome": c.outcome}
                for c in retried
            ]
        if warnings := list(
            dict.fromkeys(w for w in (self.warning, *(c.warning for c in self.chunks)) if w)
        ):
            output["warnings"] = warnings
        return output


def merge(
    chunks: Sequence[ChunkResult], end: float, warning: str | None = None, start: float = 0.0
) -> Transcript:
    """The transcript of a recording, or of its part from `start` to `end` seconds. `chunks` may come in any order."""
    ordered = tuple(sorted(chunks, key=lambda chunk: chunk.start))
    text, offsets = join([chunk.text for chunk in ordered])
    return Transcript(text, ordered, tuple(offsets), tuple(coverage(ordered, end, start)), warning)


def coverage(chunks: Sequence[ChunkResult], end: float, start: float = 0.0) -> Iterator[Span]:
    """Spans that tile [start, end]: the chunks, and the silence between them."""
    at = start
    for chunk in chunks:
        if chunk.start > at:
            yield Span(at, chunk.start, "silent")
        yield Span(
            chunk.start, chunk.end, "failed" if chunk.failure else "transcribed", chunk.failure
        )
        at = chunk.end
    if end > at:
        yield Span(at, end, "silent")


def join(texts: Sequence[str]) -> tuple[str, list[int]]:
    """(joined text, offset of each text in it). Texts are joined by a space, or by nothing between characters of unspaced scripts."""
    joined, offsets = "", []
    for text in texts:
        if joined and text and not (is_unspaced(joined[-1]) and is_unspaced(text[0])):
            joined += " "
        offsets.append(len(joined))
        joined += text
    return joined, offsets


def _slices(chunk: ChunkResult, punctuation: bool) -> list[tuple[int, int]]:
    """(start, end) of each word in the chunk's text, with or without its punctuation."""
    words = [(word.offset, word.offset + len(word.text)) for word in chunk.words]
    if not punctuation or not words:
        return words
    edges = [
        0,
        *(_boundary(chunk.text, a, b) for (_, a), (b, _) in zip(words, words[1:])),
        len(chunk.text),
    ]
    return [_trimmed(chunk.text, a, b) for a, b in zip(edges, edges[1:])]


def _boundary(text: str, end: int, start: int) -> int:
    """Where the punctuation of the first of two words ends: at white space, or else before an opening mark of the second."""
    gap = text[end:start]
    for i, character in enumerate(gap):
        if (
            character.isspace()
            or unicodedata.category(character) in ("Ps", "Pi")
            or character in "¿¡"
        ):
            return end + i
    return start


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while text[start].isspace():
        start += 1
    while text[end - 1].isspace():
        end -= 1
    return start, end


def _ends_sentence(text: str, run: Sequence[Segment], following: Segment) -> bool:
    last = run[-1]
    gap = text[last.offset + len(last.text) : following.offset]
    if (
        TERMINATED.search(last.text)
        and (gap or is_unspaced(last.text[-1]))
        and not _INITIALS.fullmatch(last.text)
    ):
        return True
    seconds, characters = (
        following.end - run[0].start,
        following.offset + len(following.text) - run[0].offset,
    )
    pause = following.start - last.end
    return (
        pause >= SENTENCE_PAUSE_SECONDS
        or seconds > SENTENCE_SECONDS
        or characters > SENTENCE_CHARACTERS
    )
