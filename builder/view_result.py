"""The worker's answer → what the page shows: the words and sentences of each channel, and marks.

Times are floats in seconds from the start of the recording.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from contract.languages import LANGUAGES
from result.subtitles import Cue, cues_of
from result.transcript import Transcript, merge
from speech.words import ChunkResult, Word

Result = dict[str, Any]  # a JSON object from the worker


class Unviewable(Exception):
    """There is nothing to show; the sentence says why and what the input must be."""


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """An entry of the result's segments."""

    text: str
    start: float
    end: float
    offset: int  # where its first character is in the result's text
    estimated: bool
    confidence: float | None  # from 0 to 1
    language: str | None  # its ISO code, where it is known
    channel: int | None  # from 0, where the channels were transcribed one by one

    @property
    def end_offset(self) -> int:
        """Index behind its last character in the result's text."""
        return self.offset + len(self.text)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of one channel.

    `pieces` are its text in order; a piece that is a word comes with that word.
    """

    start: float
    end: float
    pieces: tuple[tuple[str, SpokenWord | None], ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    @property
    def words(self) -> list[SpokenWord]:
        return [word for _, word in self.pieces if word]


@dataclass(frozen=True, slots=True)
class MarkedSpan:
    """A span of the recording that the page marks."""

    start: float
    end: float
    kind: str  # "mended", "kept" or "failed"
    why: str  # empty where the result does not say


@dataclass(frozen=True, slots=True)
class Voice:
    """What is said in one channel, or in the recording where channels are not told apart."""

    transcript: Transcript
    words: tuple[SpokenWord, ...]  # those of the transcript, in its order

    def sentences(self) -> Iterator[Sentence]:
        """The sentences as the worker divides a text. Each has at least one word."""
        text = self.transcript.text
        words = zip(self.transcript.words(punctuation=False), self.words)
        following = next(words, None)
        for sentence in self.transcript.sentences():
            pieces: list[tuple[str, SpokenWord | None]] = []
            at = sentence.offset
            while following and following[0].offset < sentence.end_offset:
                place, word = following
                pieces += [(text[at : place.offset], None), (word.text, word)]
                at = place.end_offset
                following = next(words, None)
            pieces.append((text[at : sentence.end_offset], None))
            yield Sentence(sentence.start, sentence.end, tuple(pieces))

    def cues(self) -> list[Cue]:
        """The subtitles as the worker makes them."""
        return cues_of(list(self.transcript.words(punctuation=True)), self.transcript.end)


def result_in(answer: object) -> Result:
    """The transcript in an answer of the worker or of RunPod.

    Raises Unviewable if there is none.
    """
    if not isinstance(answer, dict):
        raise Unviewable(
            f"The file holds a {type(answer).__name__}; "
            "it must be the object that the worker or RunPod answers."
        )
    output = answer.get("output")
    result: Result = output if isinstance(output, dict) else answer
    if error := result.get("error") or answer.get("error"):
        code = f" ({result['error_code']})" if "error_code" in result else ""
        raise Unviewable(f"The job failed, so there is no transcript to show: {error}{code}")
    if result is answer and "status" in answer and "segments" not in answer:
        raise Unviewable(
            f"The job is {answer['status']} and has no output; "
            "save the answer of /status once it is COMPLETED."
        )
    if not isinstance(result.get("text"), str) or not isinstance(result.get("segments"), list):
        raise Unviewable(
            'The result has no "text" and "segments"; '
            'it must be one of "output_format": "json", the default.'
        )
    if result["text"].strip() and not result["segments"]:
        raise Unviewable(
            "The result has a text but no segments, so no times; "
            "if it was reduced, result_url has the whole."
        )
    return result


def words_in(result: Result) -> list[SpokenWord]:
    """The segments in the order of the text. Raises Unviewable."""
    words: list[SpokenWord] = []
    at = 0
    for i, segment in enumerate(result["segments"]):
        words.append(_spoken_word(result, segment, at, f"segments[{i}]"))
        at = words[-1].end_offset
    words.sort(key=lambda word: word.offset)
    for word, following in pairwise(words):
        if following.offset < word.end_offset:
            raise Unviewable(
                f"The segments {word.text!r:.80} and {following.text!r:.80} overlap in the text; "
                "each must have characters of its own."
            )
    return words


def _spoken_word(result: Result, segment: object, at: int, name: str) -> SpokenWord:
    """One segment. Without an offset it is looked for in the text from `at` on."""
    found: Result = segment if isinstance(segment, dict) else {}
    text = found.get("text")
    offset = _offset(result["text"], text, found.get("offset"), at)
    if not isinstance(text, str) or offset < 0:
        fault = f"{name} is {segment!r:.80}"
        raise Unviewable(f'{fault}; its "text" must stand in the transcript, in order.')
    return SpokenWord(
        text=text,
        start=_seconds(found, "start", name),
        end=_seconds(found, "end", name),
        offset=offset,
        estimated=found.get("estimated") is True,
        confidence=_confidence(found),
        language=LANGUAGES.get(str(found.get("language") or result.get("language_detected"))),
        channel=_channel(found),
    )


def _offset(whole: str, text: object, offset: object, at: int) -> int:
    """Where a segment stands in the whole text; -1 if nowhere."""
    if not isinstance(text, str) or not text.strip():
        return -1
    if isinstance(offset, int) and offset >= 0 and whole.startswith(text, offset):
        return offset
    return whole.find(text, at)


def _seconds(holder: object, key: str, name: str) -> float:
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise Unviewable(
            f"{name}.{key} is {value!r:.80}; "
            "it must be a number of seconds from the start of the recording."
        )
    return float(value)


def _confidence(segment: Result) -> float | None:
    value = segment.get("confidence")
    return float(value) if isinstance(value, (int, float)) else None


def _channel(segment: Result) -> int | None:
    value = segment.get("channel")
    return value if isinstance(value, int) else None


def voices(text: str, words: Sequence[SpokenWord], duration: float) -> list[Voice]:
    """The words of each channel with its text.

    `words`: in the order of `text`, in which the channels may take turns. A sentence goes on behind
    the words of another channel that interrupt it.
    """
    runs: dict[int | None, list[tuple[ChunkResult, list[SpokenWord]]]] = {}
    for run, begin, end in _runs(text, words):
        chunk = _as_chunk(run, text[begin:end], begin)
        runs.setdefault(run[0].channel, []).append((chunk, run))
    found: list[Voice] = []
    for turns in runs.values():
        turns.sort(key=lambda turn: turn[0].start)
        said = tuple(word for _, run in turns for word in run)
        found.append(Voice(merge([chunk for chunk, _ in turns], duration), said))
    return found


def _runs(text: str, words: Sequence[SpokenWord]) -> Iterator[tuple[list[SpokenWord], int, int]]:
    """Runs of words of one channel, with the start and the end of their text."""
    begin = 0
    run: list[SpokenWord] = []
    for word in words:
        if run and word.channel != run[-1].channel:
            end = _boundary(text, run[-1].end_offset, word.offset)
            yield run, begin, end
            begin, run = end, []
        run.append(word)
    if run:
        yield run, begin, len(text)


def _boundary(text: str, end: int, start: int) -> int:
    """The first white space between two words, or the second word's start where there is none."""
    for i in range(end, start):
        if text[i].isspace():
            return i
    return start


def _as_chunk(run: Sequence[SpokenWord], text: str, begin: int) -> ChunkResult:
    """A run of words as the worker's own type. Its text begins at `begin` in the result's."""
    stripped = text.strip()
    begin += len(text) - len(text.lstrip())
    words = tuple(Word(w.text, w.start, w.end, w.offset - begin, w.estimated) for w in run)
    return ChunkResult(run[0].start, run[-1].end, 0.0, stripped, words=words)


def marked_spans(result: Result) -> Iterator[MarkedSpan]:
    """What was recognised again and what is missing. Raises Unviewable.

    Failed retries are among the failed spans, so they are left out.
    """
    for i, span in enumerate(entries(result, "failed_spans")):
        start, end = (_seconds(span, key, f"failed_spans[{i}]") for key in ("start", "end"))
        yield MarkedSpan(start, end, "failed", str(span.get("reason") or ""))
    for i, retry in enumerate(entries(result, "retries")):
        start, end = (_seconds(retry, key, f"retries[{i}]") for key in ("start", "end"))
        if retry.get("outcome") in ("mended", "kept"):
            reasons = ", ".join(map(str, entries(retry, "reasons")))
            yield MarkedSpan(start, end, retry["outcome"], reasons)


def entries(result: Result, key: str) -> list[Any]:
    """The list in a field; empty where the field is missing. Raises Unviewable if it is none."""
    value = result.get(key) or []
    if not isinstance(value, list):
        raise Unviewable(f"{key} is {value!r:.80}; it must be a list.")
    return value
