"""One chunk → the best of its candidate answers. Knows no jobs, no RunPod and no vLLM.

A candidate is a row of answers that tile the chunk, each with its fault, if it has one. The fault of the first answer says
which further decode is worth a try, and the better of the two candidates is kept:

    context_echo             the same samples without context and vocabulary; where they begin alike, the first answer stands
    engine_error             the same samples once more, without context and vocabulary
    loop, cut_off, too_much  the two halves, each judged and mended in the same way; of a chunk under 20 s another sampling
    too_little               another sampling
    tail_missing             only the stretch behind the last word, added where it is healthy and as much as speech would be

A context goes with the first answer only. The vocabulary goes with every decode, but for those two and that of a tail, which is
music more often than speech; nor with the others where the first answer echoes it.
The text of an answer that stays faulty is delivered all the same, and marked. A chunk fails only where no answer came.
"""

import re
from asyncio import gather
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial

import numpy as np

from asr import EMPTY_VOCABULARY, Hypothesis, Vocabulary
from audio import SAMPLE_RATE, AudioChunk
from errors import EngineDead, RecognitionError
from transcript import ChunkResult, Word

EXTRA_SHARE = 2.0  # of a chunk's seconds: what all further decodes of it may cost in audio
HALVED_FROM_SECONDS = 20.0  # shorter chunks are not halved: a fault has been narrowed down to about 10 s
OTHER_TEMPERATURE = 0.4  # of another sampling; Whisper's fallback goes from 0.2 to 1.0 in steps of 0.2
TAIL_SECONDS = 2.0  # of speech behind the last word, and something may be missing
PAUSE_NEAR_SECONDS = 0.3  # from the last word to a pause that belongs to it
MOST_LETTERS_PER_SECOND = 40  # of a chunk; the fastest speech in any language has about 30
LEAST_LETTERS_PER_SECOND = 0.25  # of a chunk of at least HALVED_FROM_SECONDS; three words in a minute
TAIL_LETTERS_PER_SECOND = 1.0  # with fewer, what is heard in the tail may be made up: behind most last words is music
RATED_SECONDS = 2.0  # a shorter chunk may say as much as one of this length
FIRST_WIDE, WIDE_LETTERS = 0x1100, 3  # from this code point on a character is a syllable or more, and counts as 3 letters
REPEATED = re.compile(r"(.{1,60}?)\1{9,}|(.{20,120}?)\2{3,}", re.DOTALL)  # 10 times in a row; 4 times, where it is long
ECHO_LETTERS = 16  # of a context's beginning or end that make an echo, or all of one that has at least SHORTEST_ECHO
SHORTEST_ECHO = 8
ALIKE = 0.7  # of 1, by difflib: names, and what they sound like; of pairs of other words 95 in 100 are under 0.65
NO_ANSWER = ("engine_error", "timeout")
MENDED_BY_HALVES = ("loop", "cut_off", "too_much")
MENDED_BY_SAMPLING = (*MENDED_BY_HALVES, "too_little")

Recognise = Callable[[AudioChunk, str | None, str, float, Vocabulary], Awaitable[Hypothesis]]  # language, context, temperature
Align = Callable[..., Awaitable[tuple[tuple[Word, ...], str | None]]]  # chunk, text, language, spectrum or None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one decode gave for `chunk`, a whole chunk or a piece of one."""

    chunk: AudioChunk
    text: str = ""
    language: str | None = None
    spectrum: np.ndarray | None = None  # as the recogniser was given it
    fault: str | None = None
    echo: str = ""  # the letters of its prompt that the text begins with
    reasons: tuple[str, ...] = ()  # the faults of the answers that were discarded for it

    def result(self, words: tuple[Word, ...] = (), warning: str | None = None) -> ChunkResult:
        """As a plain value, without the samples."""
        return ChunkResult(
            self.chunk.start, self.chunk.end, self.chunk.speech_seconds, self.text, self.language, words,
            tuple(dict.fromkeys(self.reasons)), bool(self.fault), self.fault if self.fault in NO_ANSWER else None, warning,
        )  # fmt: skip


class Allowance:
    """Seconds of audio that the further decodes of one chunk may still cost."""

    def __init__(self, seconds: float):
        self._left = seconds

    def covers(self, seconds: float) -> bool:
        """Take so many seconds, if there are so many left."""
        if seconds > self._left:
            return False
        self._left -= seconds
        return True


async def best_results(
    chunk: AudioChunk, language: str | None, context: str, vocabulary: Vocabulary, recognise: Recognise, align: Align
) -> list[ChunkResult]:
    """The results of one chunk, in order: one, or several that tile it where its pieces gave more than the whole.

    `language`: to recognise in, or None to detect it. `recognise` raises EngineDead, which passes through, or
    RecognitionError or TimeoutError where there is no answer. `align` gives the words' times and a warning, if there is one.
    """
    allowance = Allowance(EXTRA_SHARE * chunk.duration)
    ask = _asker(recognise, language, vocabulary)
    answers = await _best_answers(ask, chunk, context, allowance)
    return [result for results in await gather(*(_timed(ask, align, a, allowance) for a in answers)) for result in results]


def _asker(recognise: Recognise, language: str | None, vocabulary: Vocabulary):
    """A function (chunk, context, temperature, vocabulary) → Answer."""

    async def ask(chunk: AudioChunk, context: str = "", temperature: float = 0.0, vocabulary: Vocabulary = vocabulary) -> Answer:
        try:
            heard = await recognise(chunk, language, context, temperature, vocabulary)
        except EngineDead:
            raise
        except RecognitionError:
            return Answer(chunk, fault="engine_error")
        except TimeoutError:
            return Answer(chunk, fault="timeout")
        echo = echoed(context, vocabulary.terms, heard.text)
        fault = fault_in(heard, echo, chunk.duration)
        return Answer(chunk, collapsed(heard.text) if fault == "loop" else heard.text, heard.language, heard.spectrum, fault, echo)

    return ask


async def _best_answers(ask, chunk: AudioChunk, context: str, allowance: Allowance) -> tuple[Answer, ...]:
    """Answers that tile the chunk: the first one, or what further decodes gave where that is better."""
    first = await ask(chunk, context)
    if first.fault in (None, "timeout") or not allowance.covers(chunk.duration):
        return (first,)
    if first.echo or first.fault == "engine_error":
        ask = partial(ask, vocabulary=EMPTY_VOCABULARY)
    if first.fault in MENDED_BY_HALVES and chunk.duration >= HALVED_FROM_SECONDS:
        pieces = await gather(*(_best_answers(ask, half, "", allowance) for half in chunk.halves()))
        further = tuple(answer for piece in pieces for answer in piece)
    else:
        further = (await ask(chunk, temperature=OTHER_TEMPERATURE if first.fault in MENDED_BY_SAMPLING else 0.0),)
    if first.fault == "context_echo" and alike(first.echo, plain(further[0].text)[: len(first.echo)]):
        return (replace(first, fault=None),)
    best = min((first,), further, key=badness)
    return tuple(replace(answer, reasons=(first.fault, *answer.reasons)) for answer in best)


def badness(candidate: Sequence[Answer]) -> tuple[float, bool, float]:
    """A key to compare candidates of one chunk: the seconds without an answer, whether there is no text, the faulty seconds."""
    unanswered = sum(answer.chunk.duration for answer in candidate if answer.fault in NO_ANSWER)
    faulty = sum(answer.chunk.duration for answer in candidate if answer.fault)
    return unanswered, not any(answer.text for answer in candidate), faulty


async def _timed(ask, align: Align, answer: Answer, allowance: Allowance) -> list[ChunkResult]:
    """The answer with its words' times, and behind it what its end has left out."""
    if not answer.text:
        return [answer.result()]
    chunk = answer.chunk
    timed = answer.result(*await align(chunk, answer.text, answer.language, answer.spectrum))
    measured, end = words_end(timed.words)
    if answer.fault or end is None or speech_end(chunk) - end <= TAIL_SECONDS:
        return [timed]
    front, tail = chunk.split(tail_start(chunk, measured, end))
    if not allowance.covers(tail.duration):
        return [timed]
    behind = await ask(tail, vocabulary=EMPTY_VOCABULARY)
    if not behind.text and not behind.fault:  # music
        return [timed]
    if behind.fault or letters_in(behind.text) < TAIL_LETTERS_PER_SECOND * tail.duration:
        return [replace(timed, retries=(*timed.retries, "tail_missing"), doubtful=True)]
    if repeated := words_repeated(timed.words, behind.text):
        answer = replace(answer, text=answer.text[: timed.words[-repeated].offset].rstrip())
    both = replace(answer, chunk=front, spectrum=None), replace(behind, reasons=("tail_missing",))
    return [a.result(*await align(a.chunk, a.text, a.language, a.spectrum)) if a.text else a.result() for a in both]


def words_repeated(words: Sequence[Word], tail: str) -> int:
    """How many of the last words the text of the tail begins with, because they were timed too early and are heard again.

    The aligner piles up what it cannot place, so the time of one of them at least is estimated. Measured words were said twice.
    """
    heard, last = plain(tail), ""
    found = 0
    for count, word in enumerate(reversed(words), 1):
        last = plain(word.text) + last
        if last and heard.startswith(last) and any(w.estimated for w in words[-count:]):
            found = count
    return found


def words_end(words: Sequence[Word]) -> tuple[float, float] | tuple[None, None]:
    """(end of the last word whose time was measured, end of the last word), in seconds of the recording; None without one.

    The words behind the measured one are taken to be as long for their letters as the measured ones.
    """
    measured = [word for word in words if not word.estimated]
    if not measured:
        return None, None
    pace = sum(word.end - word.start for word in measured) / sum(len(word.text) for word in measured)
    behind = sum(len(word.text) for word in words if word.start >= measured[-1].end)
    return measured[-1].end, measured[-1].end + pace * behind


def speech_end(chunk: AudioChunk) -> float:
    """Where the speech of the chunk ends, in seconds of the recording."""
    return chunk.start + (chunk.speech[-1][1] / SAMPLE_RATE if chunk.speech else 0)


def tail_start(chunk: AudioChunk, measured: float, end: float) -> int:
    """The sample of the chunk at which to cut behind its last word.

    That word ends at about `end` seconds, and behind `measured`: in the pause nearest to its end, if one is near.
    """
    first, at = (round((seconds - chunk.start) * SAMPLE_RATE) for seconds in (measured, end))
    latest = at + round(PAUSE_NEAR_SECONDS * SAMPLE_RATE)
    pauses = [(a, b) for (_, a), (b, _) in zip(chunk.speech, chunk.speech[1:]) if a <= latest and b > first]
    if not pauses:
        return at
    return max(first, sum(min(pauses, key=lambda pause: max(pause[0] - at, at - pause[1]))) // 2)


def fault_in(heard: Hypothesis, echo: str, seconds: float) -> str | None:
    """What is wrong with the answer for a chunk of so many seconds, or None. `echo`: what `echoed` says of it.

    "loop", "cut_off": it ran into its cap, repeating itself or not; "loop", "too_much": it says more than anyone can say in
    the time, repeating itself or not; "context_echo": it begins like its prompt; "too_little": hardly anything for its
    length. An answer without text is no fault: nothing was said, or nothing but music, laughter or noise.
    """
    if not heard.text:
        return None
    letters = letters_in(heard.text)
    cut_off = heard.finish_reason == "length"
    if cut_off or letters > MOST_LETTERS_PER_SECOND * max(seconds, RATED_SECONDS):
        return "loop" if REPEATED.search(heard.text) else "cut_off" if cut_off else "too_much"
    if echo:
        return "context_echo"
    if seconds >= HALVED_FROM_SECONDS and letters < LEAST_LETTERS_PER_SECOND * seconds:
        return "too_little"
    return None


def letters_in(text: str) -> int:
    """How much is said, in letters of an alphabet."""
    return sum(WIDE_LETTERS if ord(c) >= FIRST_WIDE else 1 for c in text if c.isalnum())


def collapsed(text: str) -> str:
    """`text` with every phrase that is repeated over and over said once, the last one of a cut off answer included."""
    kept, end, phrase = [], 0, ""
    for repeats in REPEATED.finditer(text):
        phrase = repeats[1] or repeats[2]
        kept += [text[end : repeats.start()], phrase]
        end = repeats.end()
    rest = text[end:]
    begun = phrase.startswith(rest) and any(map(str.isalnum, rest))
    return "".join([*kept, "" if begun else rest]).strip()


def plain(text: str) -> str:
    """Its letters and numbers, in lower case."""
    return "".join(c for c in text.lower() if c.isalnum())


def echoed(context: str, terms: Sequence[str], text: str) -> str:
    """The letters of its prompt that `text` begins with, if they are more than chance would have; "" if not.

    Of the context: its beginning, or its end. Of the terms: two or more, one after another as they stand in the list; a single
    one may well be said. ECHO_LETTERS in all, or what there is, at least SHORTEST_ECHO; a wide character counts as in letters_in.
    """
    said, given, names = plain(text), plain(context), [name for name in map(plain, terms) if name]
    starts = []
    if len(given) >= SHORTEST_ECHO:
        starts = [given[:ECHO_LETTERS], *(given[i:] for i in range(len(given) - min(len(given), ECHO_LETTERS) + 1))]
    for i, run in enumerate(names[:-1]):
        for name in names[i + 1 :]:
            run += name
            if letters_in(run) >= ECHO_LETTERS:
                break
        starts.append(run)
    return next((start for start in starts if letters_in(start) >= SHORTEST_ECHO and said.startswith(start)), "")


def alike(first: str, second: str) -> bool:
    """Whether two texts in plain letters are two hearings of the same words."""
    return SequenceMatcher(None, first, second).ratio() >= ALIKE
