"""Chunk, text, language → `Word`s with times, by Qwen3-ForcedAligner. Hides its batching; knows nothing of vLLM or jobs.

One thread serves every job, in batches of like length and bounded audio.
"""

import asyncio
import queue
import threading
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from audio import SAMPLE_RATE, AudioChunk, waveform
from errors import AlignError
from transcript import Word, units_in

LANGUAGES = frozenset(
    ("Chinese", "English", "Cantonese", "French", "German", "Italian", "Japanese", "Korean", "Portuguese", "Russian", "Spanish")
)
SHORTEST_SECONDS = 0.5  # shorter chunks are zero-padded
SHORTEST_WORD_MS = 20  # of a word whose time is estimated
MAX_BATCH = 16  # clips; more are slower (962x real time at 8, 649x at 128)


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    chunk: AudioChunk
    text: str
    language: str
    result: Future


class Aligner:
    """qwen-asr's Qwen3ForcedAligner behind a queue."""

    def __init__(self, model: str, device: str, batch_seconds: float):
        """Load the checkpoint in the local folder `model` into memory, for `device` ("cuda" or "cpu")."""
        import torch
        from qwen_asr import Qwen3ForcedAligner

        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._model = Qwen3ForcedAligner.from_pretrained(model, dtype=dtype, device_map="cpu")
        self._device = torch.device(device)
        self._batch_seconds = batch_seconds
        self._waiting: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="aligner", daemon=True)

    def start(self) -> None:
        """Take the device, and tasks. Not before vLLM has measured what the GPU has free: it takes a share of that."""
        self._model.model.to(self._device)
        self._model.device = self._device
        self._thread.start()

    def close(self) -> None:
        """Finish what is waiting and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    async def align(self, chunk: AudioChunk, text: str, language: str | None) -> tuple[Word, ...]:
        """The words of `text` with their times, in seconds from the start of the recording.

        Raises AlignError where the aligner does not know the language, fails, or does not give back the text's words.
        """
        if language not in LANGUAGES:
            raise AlignError(f"There is no aligner for {language or 'an unknown language'}.")
        task = _Task(chunk, text, language, Future())
        self._waiting.put(task)
        return await asyncio.wrap_future(task.result)

    def _serve(self) -> None:
        waiting: list[_Task] = []
        closing = False
        while waiting or not closing:
            while not closing and (not waiting or not self._waiting.empty()):
                if task := self._waiting.get():
                    waiting.append(task)
                else:
                    closing = True
            if waiting:
                batch = next_batch(waiting, self._batch_seconds)
                self._align_batch([t for t in batch if t.result.set_running_or_notify_cancel()])

    def _align_batch(self, batch: Sequence[_Task]) -> None:
        import torch

        if not batch:
            return
        try:
            for task, (units, marks) in zip(batch, self._marks(batch)):
                try:
                    task.result.set_result(words(task.chunk, task.text, units, marks))
                except AlignError as error:
                    task.result.set_exception(error)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                return _fail(batch, "The aligner ran out of memory.")
        except Exception as error:  # whatever torch raises, the texts must live on
            return _fail(batch, f"The aligner failed: {type(error).__name__}.")
        if left := [task for task in batch if not task.result.done()]:
            half = (len(left) + 1) // 2
            self._align_batch(left[:half])
            self._align_batch(left[half:])

    def _marks(self, batch: Sequence[_Task]) -> Iterator[tuple[list[str], list[int]]]:
        """For each clip its units of text and two marks a unit, start and end in ms, as the model gives them.

        The steps of Qwen3ForcedAligner.align on one clip, without its repair, which is quadratic and tells nobody what
        it changed.
        """
        import torch

        model = self._model
        texts = [model.aligner_processor.encode_timestamp(t.text, t.language) for t in batch]
        # a clip's features on its own: the last frames of one padded before its spectrum would depend on its neighbours
        inputs = [
            model.processor(text=[prompt], audio=[waveform(t.chunk, at_least=SHORTEST_SECONDS)], return_tensors="pt")
            for t, (_, prompt) in zip(batch, texts)
        ]
        together = {name: _stacked([i[name][0] for i in inputs]).to(model.model.device) for name in inputs[0]}
        together["input_features"] = together["input_features"].to(model.model.dtype)
        is_mark = together["input_ids"] == model.timestamp_token_id
        # scores of 5000 classes for the marks only, not for every token of audio and text
        hook = model.model.thinker.lm_head.register_forward_pre_hook(lambda _, args: (args[0][is_mark],))
        try:
            with torch.inference_mode():
                classes = model.model.thinker(**together, use_cache=False).logits.argmax(dim=-1)
        finally:
            hook.remove()
        times = (classes.cpu() * model.timestamp_segment_time).split(is_mark.sum(dim=1).tolist())
        for (units, _), marks in zip(texts, times):
            yield units, [round(m) for m in marks.tolist()]


def _stacked(tensors: Sequence):
    """Tensors of one batch, padded with zeros (which their masks leave out) behind their last dimension."""
    import torch

    longest = max(t.shape[-1] for t in tensors)
    return torch.stack([torch.nn.functional.pad(t, (0, longest - t.shape[-1])) for t in tensors])


def next_batch(waiting: list[_Task], seconds: float) -> list[_Task]:
    """Take from `waiting` the earliest chunk of any recording and those of most like length.

    At most MAX_BATCH, and at most `seconds` of audio with the padding, but always one. So a short recording does not wait
    for the rest of a long one.
    """
    first = min(waiting, key=lambda t: t.chunk.index)
    batch, longest = [], 0.0
    for task in sorted(waiting, key=lambda t: (t is not first, abs(len(t.chunk.pcm) - len(first.chunk.pcm)))):
        longest = max(longest, task.chunk.duration)
        if batch and (len(batch) == MAX_BATCH or (len(batch) + 1) * longest > seconds):
            break
        batch.append(task)
    for task in batch:
        waiting.remove(task)
    return batch


def _fail(batch: Sequence[_Task], sentence: str) -> None:
    for task in batch:
        if not task.result.done():
            task.result.set_exception(AlignError(sentence))


def words(chunk: AudioChunk, text: str, units: Sequence[str], marks: Sequence[int]) -> tuple[Word, ...]:
    """The aligner's units as slices of `text`, its marks (ms from the chunk's start, two a unit) as times.

    Raises AlignError where units and text, or units and marks, don't match.
    """
    if len(marks) != 2 * len(units):
        raise AlignError(f"The aligner gave {len(marks)} times for {len(units)} words.")
    return _timed(chunk, text, locate(text, units), marks)


def estimated_words(chunk: AudioChunk, text: str) -> tuple[Word, ...]:
    """The units of `text` spread over the chunk's speech by their characters, for want of an aligner."""
    spans = units_in(text)
    speech = [(a * 1000 // SAMPLE_RATE, b * 1000 // SAMPLE_RATE) for a, b in chunk.speech]
    total = sum(b - a for a, b in speech)
    if total < len(spans) * SHORTEST_WORD_MS:  # the detector has missed it
        return _timed(chunk, text, spans, [-1] * (2 * len(spans)))
    lengths = [b - a for a, b in spans]
    heard = [t for start, end, _ in repair([-1] * (2 * len(spans)), total, lengths) for t in (start, end)]
    starts, ends = (_on_the_clock(speech, heard[i::2], at_end=bool(i)) for i in (0, 1))
    return tuple(
        Word(text[a:b], chunk.start + start / 1000, chunk.start + end / 1000, a, estimated=True)
        for (a, b), start, end in zip(spans, starts, ends)
    )


def _on_the_clock(speech: Sequence[tuple[int, int]], heard: Sequence[int], at_end: bool) -> Iterator[int]:
    """Where in the chunk so many ms of speech have passed; at a pause, its end, or `at_end` its beginning."""
    spans, passed = iter(speech), 0
    start, end = next(spans)
    for ms in heard:
        while ms - passed > end - start or (not at_end and ms - passed == end - start):
            passed += end - start
            start, end = next(spans)
        yield start + ms - passed


def _timed(chunk: AudioChunk, text: str, spans: Sequence[tuple[int, int]], marks: Sequence[int]) -> tuple[Word, ...]:
    duration = len(chunk.pcm) * 1000 // SAMPLE_RATE
    if len(spans) > duration:  # a word a millisecond is no speech; its text must not be lost all the same
        spans, marks = [(spans[0][0], spans[-1][1])], [-1, -1]
    offset = chunk.offset * 1000 / SAMPLE_RATE
    return tuple(
        Word(text[a:b], (offset + start) / 1000, (offset + end) / 1000, a, estimated)
        for (a, b), (start, end, estimated) in zip(spans, repair(marks, duration, [b - a for a, b in spans]))
    )


def locate(text: str, units: Sequence[str]) -> list[tuple[int, int]]:
    """Where each of the aligner's units stands in `text`, as (start, end), combining marks behind it included.

    Units hold letters, numbers and apostrophes only, and Japanese ones are normalised (NFKC), so base letters are compared.
    Raises AlignError where units and text don't have the same letters in the same order.
    """
    letters = [(letter, i) for i, character in enumerate(text) for letter in _letters(character)]
    spans, position = [], 0
    for unit in units:
        wanted = [letter for character in unit for letter in _letters(character)]
        found = letters[position : position + len(wanted)]
        if not wanted or [letter for letter, _ in found] != wanted:
            raise AlignError("The aligner's words are not those of the text.")
        position += len(wanted)
        spans.append((found[0][1], _behind_marks(text, found[-1][1] + 1)))
    if position < len(letters):
        raise AlignError("The aligner's words end before the text does.")
    return spans


def _letters(character: str) -> list[str]:
    """The base letters of a character the aligner keeps; none for one that it drops."""
    if character == "'" or unicodedata.category(character)[0] in "LN":
        return [c for c in unicodedata.normalize("NFKD", character) if not unicodedata.category(c).startswith("M")]
    return []


def _behind_marks(text: str, position: int) -> int:
    while position < len(text) and unicodedata.category(text[position]).startswith("M"):
        position += 1
    return position


def repair(marks: Sequence[int], duration: int, lengths: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(start, end, estimated) of each word in ms, from raw marks (start and end of each word in ms, any values).

    0 <= start < end <= duration and no overlap, whatever the marks are; `duration` must be at least a ms a word. The
    marks of the longest non-decreasing run that leave every word its time are kept as they are; the others are spread
    over the gap between those by `lengths` (characters of each word, at least 1).
    """
    least = min(SHORTEST_WORD_MS, duration // max(1, len(lengths)))
    anchors = [(-1, 0)]  # (index of a mark, its time); any two leave the words between them enough time
    for i in longest_non_decreasing(marks):
        if marks[i] - anchors[-1][1] >= _time_needed(anchors[-1][0], i, least):
            anchors.append((i, marks[i]))
    while duration - anchors[-1][1] < _time_needed(anchors[-1][0], len(marks), least):
        anchors.pop()
    true = {i for i, _ in anchors}
    times = _spread([*anchors, (len(marks), duration)], lengths, least)
    return [(times[2 * w], times[2 * w + 1], not {2 * w, 2 * w + 1} <= true) for w in range(len(lengths))]


def _words_between(left: int, right: int) -> range:
    """The words that begin at mark `left` or later and end at mark `right` or before."""
    return range((left + 1) // 2, (right + 1) // 2)


def _time_needed(left: int, right: int, least: int) -> int:
    between = len(_words_between(left, right))
    return min(1, between) if right - left == 1 else between * least


def _spread(anchors: Sequence[tuple[int, int]], lengths: Sequence[int], least: int) -> list[int]:
    """A time for every mark: the anchors' own, and between two anchors `least` a word and the rest by length."""
    times = []
    for (left, begin), (right, end) in zip(anchors, anchors[1:]):
        between = _words_between(left, right)
        spare, total = end - begin - least * len(between), sum(lengths[w] for w in between)
        times += [begin] if left >= 0 else []
        passed = characters = 0
        for mark in range(left + 1, right):
            if mark % 2 and mark // 2 in between:
                passed, characters = passed + 1, characters + lengths[mark // 2]
            times.append(begin + least * passed + (spare * characters // total if total else 0))
    return times


def longest_non_decreasing(values: Sequence[int]) -> list[int]:
    """Indices of the longest non-decreasing subsequence, the one that qwen-asr's quadratic search finds.

    Patience sorting, O(n log n). The values of a pile strictly decrease, so the first of the previous pile that is no
    larger, which the quadratic search takes as parent, is found by bisection.
    """
    tails: list[int] = []  # the last, smallest value of each pile
    piles: list[tuple[list[int], list[int]]] = []  # (negated values, indices) of each pile
    parents = []
    for i, value in enumerate(values):
        pile = bisect_right(tails, value)
        if pile == len(piles):
            tails.append(value)
            piles.append(([], []))
        tails[pile] = value
        parents.append(piles[pile - 1][1][bisect_left(piles[pile - 1][0], -value)] if pile else -1)
        piles[pile][0].append(-value)
        piles[pile][1].append(i)
    found, i = [], piles[-1][1][0] if piles else -1
    while i >= 0:
        found.append(i)
        i = parents[i]
    return found[::-1]
