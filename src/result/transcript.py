"""Results of chunks → one transcript → the job's output. Plain values.

Knows nothing of samples, models or RunPod.

Times are floats in seconds from the start of the recording.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from contract.languages import ALIGNED_LANGUAGES, LANGUAGES
from result.account import Span, coverage
from result.sentences import Place, boundary, sentence_ends
from speech.text_units import join
from speech.tokens import Token, confidence_of, tokens_in
from speech.words import ChunkResult, dominant_language, speech_seconds

MIN_SENTENCE_PAUSE_SECONDS = 1.5  # such a pause ends a sentence
MAX_SENTENCE_SECONDS = 20
MAX_SENTENCE_CHARACTERS = 240

Output = dict[str, Any]  # a JSON object


@dataclass(frozen=True, slots=True)
class Segment:
    """A word or a sentence of the output: a slice of the transcript's text with its time."""

    start: float
    end: float
    text: str
    offset: int  # index of the first character in the transcript's text
    estimated: bool = False
    language: str | None = None
    ends_sentence: bool = False  # whether its punctuation ends a sentence before the next word
    confidence: float | None = None  # the mean probability of its tokens, where they are known
    channel: int | None = None  # where the channels were transcribed by themselves

    @property
    def end_offset(self) -> int:
        """Index behind the last character in the transcript's text."""
        return self.offset + len(self.text)

    def to_output(self, with_language: bool) -> Output:
        """Plain JSON values; seconds to the millisecond."""
        output: Output = {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "text": self.text,
            "offset": self.offset,
            "length": len(self.text),
        }
        if self.estimated:
            output["estimated"] = True
        if self.confidence is not None:
            output["confidence"] = round(self.confidence, 3)
        if with_language:
            output["language"] = self.language
        if self.channel is not None:
            output["channel"] = self.channel
        return output


@dataclass(frozen=True, slots=True)
class Transcript:
    """The transcript of one recording, or of the requested part of it."""

    text: str
    chunks: tuple[ChunkResult, ...]  # in the order of their times
    offsets: tuple[int, ...]  # where each chunk's text begins in `text`
    spans: tuple[Span, ...]  # they tile the recording or its part
    warnings: tuple[str, ...] = ()  # they concern the recording as a whole
    damaged: tuple[tuple[float, float], ...] = ()  # (start, end) where the file has lost its audio

    @property
    def parts(self) -> tuple["Transcript", ...]:
        """Transcripts whose times do not overlap: this one, or those of the channels."""
        return (self,)

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
        """Every word.

        With `punctuation` their slices together hold all of the text except white space. In a
        language without an aligner no word is marked as estimated: a warning says it of all. The
        confidence of a word is that of its letters, with punctuation or without.
        """
        ends = iter(sentence_ends(self.text, list(self._places())))
        for chunk, offset in zip(self.chunks, self.offsets):
            is_marked = chunk.language is None or chunk.language in ALIGNED_LANGUAGES
            for word, (first, end) in zip(chunk.words, _slices(chunk, punctuation)):
                tokens = tokens_in(chunk.tokens, word.offset, word.offset + len(word.text))
                yield Segment(
                    word.start,
                    word.end,
                    chunk.text[first:end],
                    offset + first,
                    word.estimated and is_marked,
                    chunk.language,
                    next(ends),
                    confidence_of(tokens),
                )

    def _places(self) -> Iterator[Place]:
        """Where each word is in `text`, and its language."""
        for chunk, offset in zip(self.chunks, self.offsets):
            for word in chunk.words:
                start = offset + word.offset
                yield start, start + len(word.text), chunk.language

    def sentences(self) -> list[Segment]:
        """Runs of words that end at a terminator, before a long pause, or at a maximal length."""
        found: list[Segment] = []
        run: list[Segment] = []
        words = list(self.words(punctuation=True))
        for word, following in zip(words, [*words[1:], None]):
            run.append(word)
            if following is None or _ends_sentence(run, following):
                found.append(self._sentence(run[0], run[-1]))
                run = []
        return found

    def _sentence(self, first: Segment, last: Segment) -> Segment:
        """The sentence from one word to another."""
        text = self.text[first.offset : last.end_offset]
        estimated = first.estimated or last.estimated
        confidence = confidence_of(self.tokens_in(first.offset, last.end_offset))
        return Segment(
            first.start,
            last.end,
            text,
            first.offset,
            estimated,
            first.language,
            confidence=confidence,
        )

    def tokens_in(self, start: int, end: int) -> list[Token]:
        """The tokens of a slice of the text, where the chunks have tokens."""
        found: list[Token] = []
        for i in range(self._chunk_at(start), bisect_left(self.offsets, end)):
            offset = self.offsets[i]
            found += tokens_in(self.chunks[i].tokens, start - offset, end - offset)
        return found

    def chunk_of(self, segment: Segment) -> ChunkResult:
        """The chunk with the first character of a segment."""
        return self.chunks[self._chunk_at(segment.offset)]

    def _chunk_at(self, position: int) -> int:
        return bisect_right(self.offsets, position) - 1

    def languages(self) -> list[Output]:
        """Each detected language with its ISO code and its seconds of speech, the most first."""
        return [
            {"language": name, "code": LANGUAGES.get(name), "seconds": round(seconds, 3)}
            for name, seconds in speech_seconds(self.chunks).items()
        ]

    def to_output(self, segment_level: str = "word", punctuation: bool = False) -> Output:
        """The job's output as plain JSON values that encode to UTF-8.

        Optional fields are there only where they have a value.
        """
        output = self.common_fields()
        several = len(output["languages"]) > 1
        segments = self._segments(segment_level, punctuation)
        output["segments"] = [segment.to_output(several) for segment in segments]
        if segment_level == "both":
            output["sentences"] = [sentence.to_output(several) for sentence in self.sentences()]
        return output | self.problem_fields()

    def _segments(self, level: str, punctuation: bool) -> Iterable[Segment]:
        if level == "chunk":
            return self.chunk_segments()
        return self.sentences() if level == "sentence" else self.words(punctuation)

    def chunk_segments(self) -> Iterator[Segment]:
        """The text of each chunk as one segment, for transcripts without word times."""
        for chunk, offset in zip(self.chunks, self.offsets):
            if chunk.text:
                yield Segment(
                    chunk.start,
                    chunk.end,
                    chunk.text,
                    offset,
                    language=chunk.language,
                    confidence=confidence_of(chunk.tokens),
                )

    def common_fields(self) -> Output:
        """The fields of every output format: the text, its languages and the seconds of audio."""
        return {
            "language_detected": self.language,
            "language_code": LANGUAGES.get(self.language or ""),
            "languages": self.languages(),
            "duration": round(self.duration, 3),
            "text": self.text,
        }

    def problem_fields(self) -> Output:
        """The fields that are there only after a problem.

        They are failed_spans, damaged_spans, retries and warnings.
        """
        warnings = [*self.warnings, *(chunk.warning for chunk in self.chunks)]
        fields: Output = {
            "failed_spans": [span.to_output() for span in self.failed],
            "damaged_spans": [_damaged_span(start, end) for start, end in self.damaged],
            "retries": [_retries_of(chunk) for chunk in self.chunks if chunk.retries],
            "warnings": [warning for warning in dict.fromkeys(warnings) if warning],
        }
        return {name: found for name, found in fields.items() if found}


def merge(
    chunks: Sequence[ChunkResult],
    end: float,
    warnings: Sequence[str] = (),
    start: float = 0.0,
    damaged: Sequence[tuple[float, float]] = (),
    channel: int | None = None,
) -> Transcript:
    """The transcript of a recording, or of its part from `start` to `end` seconds.

    `chunks` may come in any order. `damaged`: (start, end) where the file has lost its audio.
    `channel`: that of all chunks.
    """
    ordered = tuple(sorted(chunks, key=lambda chunk: chunk.start))
    text, offsets = join([chunk.text for chunk in ordered])
    spans = tuple(coverage(ordered, end, start, channel))
    return Transcript(text, ordered, tuple(offsets), spans, tuple(warnings), tuple(damaged))


def _slices(chunk: ChunkResult, punctuation: bool) -> list[tuple[int, int]]:
    """(start, end) of each word in the chunk's text, with or without its punctuation."""
    words = [(word.offset, word.offset + len(word.text)) for word in chunk.words]
    if not punctuation or not words:
        return words
    edges = [0]
    for (_, end), (start, _) in zip(words, words[1:]):
        edges.append(boundary(chunk.text, end, start))
    edges.append(len(chunk.text))
    return [_trimmed(chunk.text, first, end) for first, end in zip(edges, edges[1:])]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The slice without white space at its ends. It must have another character."""
    while text[start].isspace():
        start += 1
    while text[end - 1].isspace():
        end -= 1
    return start, end


def _ends_sentence(run: Sequence[Segment], following: Segment) -> bool:
    """Whether the words of `run` are a sentence without the word that follows."""
    first, last = run[0], run[-1]
    if last.ends_sentence:
        return True
    seconds = following.end - first.start
    characters = following.end_offset - first.offset
    pause = following.start - last.end
    return (
        pause >= MIN_SENTENCE_PAUSE_SECONDS
        or seconds > MAX_SENTENCE_SECONDS
        or characters > MAX_SENTENCE_CHARACTERS
    )


def _damaged_span(start: float, end: float) -> Output:
    return {"start": round(start, 3), "end": round(end, 3)}


def _retries_of(chunk: ChunkResult) -> Output:
    output: Output = {
        "start": chunk.start,
        "end": chunk.end,
        "reasons": list(chunk.retries),
        "outcome": chunk.outcome,
    }
    return output if chunk.channel is None else output | {"channel": chunk.channel}
