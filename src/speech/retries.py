"""One chunk → the best text for it: which answer is worth a retry, and which one is kept.

Knows no jobs, no platform and no vLLM. A chunk is recognised once, and `fault_in` names the fault
of the answer, if it has one. Each fault has one retry:

    fault         what is wrong                          retry
    loop          it repeats a phrase, up to its token   the two halves of the chunk, each with its
                  limit or faster than anyone speaks     own retries; a short chunk whole, sampled
    cut_off       it ran into its token limit, without   the same
                  a loop
    too_much      it has more text than anyone can say   the same
                  in the time
    too_little    it has next to no text, in a long      the chunk, sampled
                  chunk
    context_echo  it begins like its prompt              the chunk, without context and vocabulary
    engine_error  the engine refused the chunk, or       the chunk, without context and vocabulary
                  answered as a broken GPU does
    timeout       there was no answer in time            none
    tail_missing  speech follows the last aligned word   only what follows that word

An answer and its retry are candidates: tuples of answers that tile the chunk. The one with fewer
`defects` is kept. Two exceptions:
    context_echo  where both answers begin alike, the words were said: the first answer is healthy
    tail_missing  the text of the tail is added to the answer, where it is healthy and has as many
                  letters as speech
A text that stays faulty is delivered and marked as doubtful. A chunk fails only where no
recognition gave an answer.

The context is in the first prompt only. The vocabulary is in all prompts, except for a tail, which
is music more often than speech, and for retries of engine_error and of answers that echo their
prompt.
"""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from contract.errors import RecognitionError
from recording.chunk import AudioChunk
from runpod import RunPodLogger
from speech.faults import (
    LONG_SECONDS,
    collapsed,
    echoed,
    fault_in,
    letters_in,
    normalised,
    same_words,
)
from speech.models.recogniser import EMPTY_VOCABULARY, Hypothesis, Vocabulary
from speech.tail import split_at_tail, words_repeated
from speech.together import together
from speech.tokens import Token, moved
from speech.watched_models import WatchedModels
from speech.words import ChunkResult, Word

if TYPE_CHECKING:
    from torch import Tensor

RETRY_BUDGET = 2.0  # retries may recognise at most 2 times the audio of the chunk
RETRY_TEMPERATURE = 0.4  # Whisper's retries sample at 0.2 to 1.0, in steps of 0.2
TAIL_LETTERS_PER_SECOND = 1.0  # a tail with fewer is probably music, and its text invented
NO_ANSWER = ("engine_error", "timeout")
RETRIED_IN_HALVES = ("loop", "cut_off", "too_much")
RETRIED_WITH_SAMPLING = (*RETRIED_IN_HALVES, "too_little")

log = RunPodLogger()


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one recognition of `chunk`, which is a whole chunk or a part of one."""

    chunk: AudioChunk
    text: str = ""
    language: str | None = None
    spectrum: "Tensor | None" = None  # (mel bands, frames) float, from the recogniser
    tokens: tuple[Token, ...] = ()  # those of the text, where they were asked for
    temperature: float = 0.0
    fault: str | None = None
    echo: str = ""  # the letters of its prompt that the text begins with
    reasons: tuple[str, ...] = ()  # the faults of the answers that were discarded for this one

    def of(self, kept: Sequence[int]) -> "Answer":
        """The same answer with a text of these characters alone. `kept`: positions in the text."""
        text = "".join(self.text[i] for i in kept)
        return replace(self, text=text, tokens=moved(self.tokens, kept))

    def result(self, words: tuple[Word, ...] = (), warning: str | None = None) -> ChunkResult:
        """The same without the samples."""
        return ChunkResult(
            start=self.chunk.start,
            end=self.chunk.end,
            speech_seconds=self.chunk.speech_seconds,
            text=self.text,
            language=self.language,
            words=words,
            retries=tuple(dict.fromkeys(self.reasons)),
            doubtful=self.fault is not None,
            failure=self.fault if self.fault in NO_ANSWER else None,
            warning=warning,
            tokens=self.tokens,
            temperature=self.temperature,
            channel=self.chunk.channel,
        )


async def transcribe_chunk(
    chunk: AudioChunk,
    language: str | None,
    context: str,
    vocabulary: Vocabulary,
    models: WatchedModels,
) -> list[ChunkResult]:
    """The results of one chunk, in order: one, or several that tile it.

    There are several where the parts of the chunk gave more than the whole. `language`: the one to
    recognise in, or None to detect it. Raises EngineDead.
    """
    transcription = _Transcription(chunk, language, models)
    answers = await transcription.best_answers(chunk, context, vocabulary)
    timed = await together(*(transcription.with_tail(answer) for answer in answers))
    return [result for results in timed for result in results]


class _Transcription:
    """What all recognitions of one chunk and its parts share."""

    def __init__(self, chunk: AudioChunk, language: str | None, models: WatchedModels):
        self._language = language
        self._models = models
        self._seconds_left = RETRY_BUDGET * chunk.duration
        self._refusal_logged = False

    async def best_answers(
        self, chunk: AudioChunk, context: str, vocabulary: Vocabulary
    ) -> tuple[Answer, ...]:
        """Answers that tile the chunk: the first one, or its retry where that is better."""
        first = await self._answer(chunk, vocabulary, context)
        if first.fault in (None, "timeout") or not self._may_recognise(chunk.duration):
            return (first,)
        retry = await self._retried(first, vocabulary)
        if first.fault == "context_echo" and _begins_with(retry[0].text, first.echo):
            return (replace(first, fault=None),)
        best = min((first,), retry, key=defects)
        return tuple(replace(answer, reasons=(first.fault, *answer.reasons)) for answer in best)

    async def _retried(self, first: Answer, vocabulary: Vocabulary) -> tuple[Answer, ...]:
        """The retry of a faulty answer: the best ones for its halves, or one more for its chunk."""
        if first.echo or first.fault == "engine_error":
            vocabulary = EMPTY_VOCABULARY
        if first.fault in RETRIED_IN_HALVES and first.chunk.duration >= LONG_SECONDS:
            halves = first.chunk.halves()
            front, back = await together(
                *(self.best_answers(half, "", vocabulary) for half in halves)
            )
            return (*front, *back)
        temperature = RETRY_TEMPERATURE if first.fault in RETRIED_WITH_SAMPLING else 0.0
        return (await self._answer(first.chunk, vocabulary, temperature=temperature),)

    async def with_tail(self, answer: Answer) -> list[ChunkResult]:
        """The result of an answer with word times.

        There is a second result where speech after the last word was missing from the answer.
        Without word times nobody knows that.
        """
        if not self._models.with_words:
            return [answer.result()]
        result = await self._with_times(answer)
        parts = None if answer.fault else split_at_tail(answer.chunk, result.words)
        if parts is None or not self._may_recognise(parts[1].duration):
            return [result]
        front, tail = parts
        missing = await self._answer(tail, EMPTY_VOCABULARY)
        is_music = not missing.text and not missing.fault
        if is_music:
            return [result]
        if missing.fault or letters_in(missing.text) < TAIL_LETTERS_PER_SECOND * tail.duration:
            return [replace(result, retries=(*result.retries, "tail_missing"), doubtful=True)]
        once = answer.of(_without_repetition(answer.text, result.words, missing.text))
        before = replace(once, chunk=front, spectrum=None)
        after = replace(missing, reasons=("tail_missing",))
        return [await self._with_times(before), await self._with_times(after)]

    async def _with_times(self, answer: Answer) -> ChunkResult:
        if not answer.text:
            return answer.result()
        words, warning = await self._models.align(
            answer.chunk, answer.text, answer.language, answer.spectrum
        )
        return answer.result(words, warning)

    async def _answer(
        self,
        chunk: AudioChunk,
        vocabulary: Vocabulary,
        context: str = "",
        temperature: float = 0.0,
    ) -> Answer:
        """One recognition, with the fault of its answer. Raises EngineDead."""
        try:
            hypothesis = await self._models.recognise(
                chunk, self._language, context, temperature, vocabulary
            )
        except RecognitionError as error:
            self._log_refusal(chunk, error)
            return Answer(chunk, fault="engine_error")
        except TimeoutError:
            return Answer(chunk, fault="timeout")
        answer = _judged(hypothesis, chunk, context, vocabulary)
        return replace(answer, temperature=temperature)

    def _may_recognise(self, seconds: float) -> bool:
        """Take `seconds` from the budget of the retries, if it has as many. Returns whether."""
        if seconds > self._seconds_left:
            return False
        self._seconds_left -= seconds
        return True

    def _log_refusal(self, chunk: AudioChunk, error: RecognitionError) -> None:
        """Log the cause of a refusal, once for the chunk and its parts."""
        if not self._refusal_logged:
            log.warn(f"the chunk at {chunk.start:.3f} s was refused: {origin_of(error)}")
        self._refusal_logged = True


def _judged(
    hypothesis: Hypothesis, chunk: AudioChunk, context: str, vocabulary: Vocabulary
) -> Answer:
    echo = echoed(context, vocabulary.terms, hypothesis.text)
    fault = fault_in(hypothesis, echo, chunk.duration)
    answer = Answer(
        chunk,
        hypothesis.text,
        hypothesis.language,
        hypothesis.spectrum,
        hypothesis.tokens,
        fault=fault,
        echo=echo,
    )
    return answer.of(collapsed(answer.text)) if fault == "loop" else answer


def _begins_with(text: str, letters: str) -> bool:
    """Whether `text` begins with the words whose normalised letters are given."""
    return same_words(letters, normalised(text)[: len(letters)])


def _without_repetition(text: str, words: Sequence[Word], tail: str) -> range:
    """The positions in `text` without those last words that the text of the tail has again."""
    repeated = words_repeated(words, tail)
    if not repeated:
        return range(len(text))
    kept = text[: words[-repeated].offset].rstrip()
    return range(len(kept) if letters_in(kept) else 0)


def defects(candidate: Sequence[Answer]) -> tuple[float, bool, float]:
    """A key to compare candidates for one chunk; the lowest is the best.

    It is (seconds without an answer, whether there is no text at all, seconds with a fault).
    """
    unanswered = sum(answer.chunk.duration for answer in candidate if answer.fault in NO_ANSWER)
    faulty = sum(answer.chunk.duration for answer in candidate if answer.fault)
    return unanswered, not any(answer.text for answer in candidate), faulty


def origin_of(error: BaseException) -> str:
    """Type and place of the first error in a chain.

    Its message is left out, because it may quote the request.
    """
    while error.__cause__:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
