"""One chunk → the best text for it: what is wrong with an answer, which retry that is worth, and which answer is kept.

Knows no jobs, no RunPod and no vLLM. A chunk is decoded once, and `fault_in` names the fault of the answer, if it has one. Each
fault has one retry:

    fault          what is wrong                                          retry
    loop           it repeats a phrase, up to its token limit or          the two halves of the chunk, each with its own retries;
                   faster than anyone speaks                              a chunk under 20 s as a whole, with sampling
    cut_off        it ran into its token limit, without a loop            the same
    too_much       it has more text than anyone can say in the time       the same
    too_little     it has next to no text, for 20 s of audio or more      the chunk, with sampling
    context_echo   it begins like its prompt                              the chunk, without context and vocabulary
    engine_error   the engine refused the chunk                           the chunk, without context and vocabulary
    timeout        there was no answer in time                            none
    tail_missing   speech follows the last aligned word                   only what follows that word

An answer and its retry are candidates: tuples of answers that tile the chunk. The one with less `badness` is kept. Two exceptions:
    context_echo   where both answers begin alike, the words were said: the first answer counts as healthy
    tail_missing   the text of the tail is added to the answer, where it is healthy and has as many letters as speech
A text that stays faulty is delivered and marked as doubtful. A chunk fails only where no decode gave an answer.

The context is in the first prompt only. The vocabulary is in all prompts, except for a tail, which is music more often than speech,
and for retries of engine_error and of answers that echo their prompt.
"""

import re
from asyncio import gather
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from typing import TYPE_CHECKING

from contract.errors import RecognitionError
from recording.chunk import SAMPLE_RATE, AudioChunk
from speech.models.recogniser import EMPTY_VOCABULARY, Hypothesis, Vocabulary
from speech.words import ChunkResult, Word

if TYPE_CHECKING:
    from torch import Tensor

RETRY_BUDGET = 2.0  # audio that all retries of a chunk may decode together, in lengths of the chunk
LONG_SECONDS = (
    20.0  # from this length on a chunk is retried in halves, and too little text is a fault
)
RETRY_TEMPERATURE = (
    0.4  # of a retry with sampling; Whisper's fallback goes from 0.2 to 1.0 in steps of 0.2
)
MAX_LETTERS_PER_SECOND = 40  # of audio; the fastest speech of any language has about 30
MIN_RATED_SECONDS = 2.0  # a shorter chunk may have as many letters as one of this length
MIN_LETTERS_PER_SECOND = 0.25  # of a long chunk: three words in a minute
REPEATED = re.compile(
    r"(.{1,60}?)\1{9,}|(.{20,120}?)\2{3,}", re.DOTALL
)  # a phrase 10 times in a row, a long one 4 times
TAIL_SECONDS = (
    2.0  # where the speech goes on for longer than this after the last word, text may be missing
)
TAIL_LETTERS_PER_SECOND = 1.0  # a tail with fewer is probably music, and its text invented
PAUSE_NEAR_SECONDS = (
    0.3  # a pause that begins at most so long after a word is the pause after that word
)
ECHO_LETTERS = 16  # an answer that begins with so many letters of its prompt is an echo
MIN_ECHO_LETTERS = 8  # or with all letters of a shorter context or list, if they are so many
SAME_WORDS_RATIO = 0.7  # difflib's, for names and their phonetic spellings; 95 of 100 pairs of other words are under 0.65
FIRST_WIDE, WIDE_LETTERS = (
    0x1100,
    3,
)  # from this code point on a character is a syllable or more: it counts as 3 letters
NO_ANSWER = ("engine_error", "timeout")
RETRIED_IN_HALVES = ("loop", "cut_off", "too_much")
RETRIED_WITH_SAMPLING = (*RETRIED_IN_HALVES, "too_little")

Recognise = Callable[
    [AudioChunk, str | None, str, float, Vocabulary], Awaitable[Hypothesis]
]  # language, context, temperature
Align = Callable[
    ..., Awaitable[tuple[tuple[Word, ...], str | None]]
]  # chunk, text, language, spectrum or None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one decode for `chunk`, which is a whole chunk or a part of one."""

    chunk: AudioChunk
    text: str = ""
    language: str | None = None
    spectrum: "Tensor | None" = None  # (mel bands, frames) float, from the recogniser
    fault: str | None = None
    echo: str = ""  # letters of its prompt that the text begins with
    reasons: tuple[str, ...] = ()  # faults of the answers that were discarded for this one

    def result(self, words: tuple[Word, ...] = (), warning: str | None = None) -> ChunkResult:
        """The same without the samples."""
        return ChunkResult(
            self.chunk.start, self.chunk.end, self.chunk.speech_seconds, self.text, self.language, words,
            tuple(dict.fromkeys(self.reasons)), bool(self.fault), self.fault if self.fault in NO_ANSWER else None, warning,
        )  # fmt: skip


Decode = Callable[
    ..., Awaitable[Answer]
]  # chunk, context="", temperature=0.0, vocabulary=that of the request


class RetryBudget:
    """Seconds of audio that the retries of one chunk may still decode."""

    def __init__(self, seconds: float):
        self._left = seconds

    def spend(self, seconds: float) -> bool:
        """Take so many seconds, if there are so many left. Returns whether there were."""
        if seconds > self._left:
            return False
        self._left -= seconds
        return True


async def best_results(
    chunk: AudioChunk,
    language: str | None,
    context: str,
    vocabulary: Vocabulary,
    recognise: Recognise,
    align: Align,
) -> list[ChunkResult]:
    """The results of one chunk, in order: one, or several that tile it where its parts gave more than the whole.

    `language`: the one to recognise in, or None to detect it. `recognise` raises RecognitionError or TimeoutError where there is no
    answer, and EngineDead, which passes through. `align` returns the words with their times, and a warning or None.
    """
    budget = RetryBudget(RETRY_BUDGET * chunk.duration)
    decode = _decoder(recognise, language, vocabulary)
    answers = await _best_answers(decode, chunk, context, budget)
    aligned = await gather(*(_with_tail(decode, align, answer, budget) for answer in answers))
    return [result for results in aligned for result in results]


def _decoder(recognise: Recognise, language: str | None, vocabulary: Vocabulary) -> Decode:
    """A function that decodes once and names the fault of the answer."""

    async def decode(
        chunk: AudioChunk,
        context: str = "",
        temperature: float = 0.0,
        vocabulary: Vocabulary = vocabulary,
    ) -> Answer:
        try:
            hypothesis = await recognise(chunk, language, context, temperature, vocabulary)
        except RecognitionError:
            return Answer(chunk, fault="engine_error")
        except TimeoutError:
            return Answer(chunk, fault="timeout")
        echo = echoed(context, vocabulary.terms, hypothesis.text)
        fault = fault_in(hypothesis, echo, chunk.duration)
        text = collapsed(hypothesis.text) if fault == "loop" else hypothesis.text
        return Answer(chunk, text, hypothesis.language, hypothesis.spectrum, fault, echo)

    return decode


async def _best_answers(
    decode: Decode, chunk: AudioChunk, context: str, budget: RetryBudget
) -> tuple[Answer, ...]:
    """Answers that tile the chunk: the first one, or its retry where that is better."""
    first = await decode(chunk, context)
    if first.fault in (None, "timeout") or not budget.spend(chunk.duration):
        return (first,)
    retry = await _retried(decode, first, budget)
    if first.fault == "context_echo" and same_words(
        first.echo, normalised(retry[0].text)[: len(first.echo)]
    ):
        return (replace(first, fault=None),)
    best = min((first,), retry, key=badness)
    return tuple(replace(answer, reasons=(first.fault, *answer.reasons)) for answer in best)


async def _retried(decode: Decode, first: Answer, budget: RetryBudget) -> tuple[Answer, ...]:
    """The retry of a faulty answer: the best answers for its halves, or one more answer for its chunk."""
    if first.echo or first.fault == "engine_error":
        decode = partial(decode, vocabulary=EMPTY_VOCABULARY)
    if first.fault in RETRIED_IN_HALVES and first.chunk.duration >= LONG_SECONDS:
        halves = await gather(
            *(_best_answers(decode, half, "", budget) for half in first.chunk.halves())
        )
        return tuple(answer for answers in halves for answer in answers)
    return (
        await decode(
            first.chunk,
            temperature=RETRY_TEMPERATURE if first.fault in RETRIED_WITH_SAMPLING else 0.0,
        ),
    )


def badness(candidate: Sequence[Answer]) -> tuple[float, bool, float]:
    """A key to compare candidates for one chunk: seconds without an answer, whether there is no text at all, seconds with a fault."""
    unanswered = sum(answer.chunk.duration for answer in candidate if answer.fault in NO_ANSWER)
    faulty = sum(answer.chunk.duration for answer in candidate if answer.fault)
    return unanswered, not any(answer.text for answer in candidate), faulty


async def _with_tail(
    decode: Decode, align: Align, answer: Answer, budget: RetryBudget
) -> list[ChunkResult]:
    """The result of an answer with word times; a second result where speech after its last word was missing from it."""
    result = await _with_times(align, answer)
    parts = None if answer.fault else split_at_tail(answer.chunk, result.words)
    if parts is None or not budget.spend(parts[1].duration):
        return [result]
    front, tail = parts
    missing = await decode(tail, vocabulary=EMPTY_VOCABULARY)
    if not missing.text and not missing.fault:  # no speech, but music
        return [result]
    if missing.fault or letters_in(missing.text) < TAIL_LETTERS_PER_SECOND * tail.duration:
        return [replace(result, retries=(*result.retries, "tail_missing"), doubtful=True)]
    if repeated := words_repeated(result.words, missing.text):
        answer = replace(answer, text=answer.text[: result.words[-repeated].offset].rstrip())
    both = replace(answer, chunk=front, spectrum=None), replace(missing, reasons=("tail_missing",))
    return [await _with_times(align, part) for part in both]


async def _with_times(align: Align, answer: Answer) -> ChunkResult:
    if not answer.text:
        return answer.result()
    return answer.result(*await align(answer.chunk, answer.text, answer.language, answer.spectrum))


def words_repeated(words: Sequence[Word], tail: str) -> int:
    """How many of the last words the text of the tail repeats, because their times were too early and the tail contains them.

    Words that the aligner cannot place pile up at one time, so at least one of them has an estimated time. Words whose times are all
    measured were said twice.
    """
    start, last = normalised(tail), ""
    found = 0
    for count, word in enumerate(reversed(words), 1):
        last = normalised(word.text) + last
        if last and start.startswith(last) and any(w.estimated for w in words[-count:]):
            found = count
    return found


def split_at_tail(chunk: AudioChunk, words: Sequence[Word]) -> tuple[AudioChunk, AudioChunk] | None:
    """(chunk up to its last word, chunk after it), or None where the speech ends within TAIL_SECONDS of that word."""
    measured, end = words_end(words)
    if end is None or speech_end(chunk) - end <= TAIL_SECONDS:
        return None
    return chunk.split(tail_start(chunk, measured, end))


def words_end(words: Sequence[Word]) -> tuple[float, float] | tuple[None, None]:
    """(end of the last word with a measured time, end of the last word), in seconds of the recording. None without such a word.

    The words after it are taken to be as long, by their characters, as those with measured times.
    """
    measured = [word for word in words if not word.estimated]
    if not measured:
        return None, None
    pace = sum(word.end - word.start for word in measured) / sum(
        len(word.text) for word in measured
    )
    characters_after = sum(len(word.text) for word in words if word.start >= measured[-1].end)
    return measured[-1].end, measured[-1].end + pace * characters_after


def speech_end(chunk: AudioChunk) -> float:
    """Where the speech of the chunk ends, in seconds of the recording."""
    return chunk.start + (chunk.speech[-1][1] / SAMPLE_RATE if chunk.speech else 0)


def tail_start(chunk: AudioChunk, measured: float, end: float) -> int:
    """The sample of the chunk at which its tail begins: in the pause nearest to the end of the last word, or else at that end.

    `measured`, `end`: of words_end. The cut is not before `measured`.
    """
    first, at = (round((seconds - chunk.start) * SAMPLE_RATE) for seconds in (measured, end))
    latest = at + round(PAUSE_NEAR_SECONDS * SAMPLE_RATE)
    pauses = [
        (a, b)
        for (_, a), (b, _) in zip(chunk.speech, chunk.speech[1:])
        if a <= latest and b > first
    ]
    if not pauses:
        return at
    return max(first, sum(min(pauses, key=lambda pause: max(pause[0] - at, at - pause[1]))) // 2)


def fault_in(hypothesis: Hypothesis, echo: str, seconds: float) -> str | None:
    """The fault of an answer for a chunk of so many seconds, or None. `echo`: the result of `echoed`.

    An answer without text is no fault: the chunk holds no speech, but silence, music, laughter or noise.
    """
    if not hypothesis.text:
        return None
    letters = letters_in(hypothesis.text)
    at_limit = hypothesis.finish_reason == "length"
    too_fast = letters > MAX_LETTERS_PER_SECOND * max(seconds, MIN_RATED_SECONDS)
    if (at_limit or too_fast) and REPEATED.search(
        hypothesis.text
    ):  # repetition alone is no fault: laughter and chants repeat
        return "loop"
    if at_limit:
        return "cut_off"
    if too_fast:
        return "too_much"
    if echo:
        return "context_echo"
    if seconds >= LONG_SECONDS and letters < MIN_LETTERS_PER_SECOND * seconds:
        return "too_little"
    return None


def letters_in(text: str) -> int:
    """The amount of text, in letters of an alphabet."""
    return sum(WIDE_LETTERS if ord(c) >= FIRST_WIDE else 1 for c in text if c.isalnum())


def collapsed(text: str) -> str:
    """`text` with every repeated phrase once. A part of the phrase at the end, where the answer was cut off, is left out."""
    kept, end, phrase = [], 0, ""
    for repeats in REPEATED.finditer(text):
        phrase = repeats[1] or repeats[2]
        kept += [text[end : repeats.start()], phrase]
        end = repeats.end()
    rest = text[end:]
    is_part = phrase.startswith(rest) and any(map(str.isalnum, rest))
    return "".join([*kept, "" if is_part else rest]).strip()


def normalised(text: str) -> str:
    """The letters and numbers of a text, in lower case."""
    return "".join(c for c in text.lower() if c.isalnum())


def echoed(context: str, terms: Sequence[str], text: str) -> str:
    """The letters of its prompt that `text` begins with, or "" where they may be chance."""
    answer = normalised(text)
    echoes = [
        *_echoes_of_context(normalised(context)),
        *_echoes_of_terms([*filter(None, map(normalised, terms))]),
    ]
    return next(
        (
            echo
            for echo in echoes
            if answer.startswith(echo) and letters_in(echo) >= MIN_ECHO_LETTERS
        ),
        "",
    )


def _echoes_of_context(letters: str) -> Iterator[str]:
    """Its start of ECHO_LETTERS, and every end of it that has at least so many; all of a shorter context."""
    if len(letters) >= MIN_ECHO_LETTERS:
        yield letters[:ECHO_LETTERS]
        yield from (letters[i:] for i in range(max(0, len(letters) - ECHO_LETTERS) + 1))


def _echoes_of_terms(terms: Sequence[str]) -> Iterator[str]:
    """From each term on, two or more in the order of the list until they have ECHO_LETTERS. A single term may well be said."""
    for i, run in enumerate(terms[:-1]):
        for term in terms[i + 1 :]:
            run += term
            if letters_in(run) >= ECHO_LETTERS:
                break
        yield run


def same_words(first: str, second: str) -> bool:
    """Whether two normalised texts are two spellings of the same words."""
    return SequenceMatcher(None, first, second).ratio() >= SAME_WORDS_RATIO
