"""Chunk, text, language → `Word`s with times, by Qwen3-ForcedAligner. Hides its batching.

One thread aligns the chunks of all jobs, in batches of similar length. Knows nothing of vLLM or
jobs.
"""

import asyncio
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from contract.errors import AlignError, SettingsError
from contract.languages import ALIGNED_LANGUAGES
from recording.chunk import SAMPLE_RATE, AudioChunk, waveform
from runpod import RunPodLogger
from speech.admission import Gate, Holder, chunk_priority
from speech.models.aligner_network import predicted_classes, use_windows
from speech.models.gpu_memory import MAX_UNITS_PER_SECOND
from speech.models.tokenizer import load_tokenizer
from speech.text_units import with_spaces
from speech.word_times import aligned_words
from speech.words import Word

if TYPE_CHECKING:
    from torch import Tensor

# One thread prepares 1500 x real time. More would share qwen-asr's word splitters for Japanese and
# Korean, which keep state.
PREPARERS = 1
MAX_CLOSE_SECONDS = 10  # batches that wait when the worker ends get this time
MAX_BATCH = 16  # larger batches of chunks are slower (962 x real time at 8, 649 x at 128)
# These signs are in the messages of CUDA ("CUDA error: out of memory"), cuBLAS
# (CUBLAS_STATUS_ALLOC_FAILED) and cuDNN (…_ALLOC_FAILED, …_DEVICE_ALLOCATION_FAILED, or no plan
# whose working memory fits).
OUT_OF_MEMORY = (
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "unable to find an engine to execute",
)

log = RunPodLogger()


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    chunk: AudioChunk
    text: str
    units: list[str]  # words or characters, as the aligner splits the text
    token_ids: "Tensor"  # (tokens,) int64
    spectrum: "Tensor"  # (mel bands, frames) float
    result: "Future[list[int]]"  # two marks per unit


class Aligner:
    """qwen-asr's Qwen3ForcedAligner behind a queue."""

    def __init__(
        self,
        model: str,
        device: str,
        dtype: str,
        batch_seconds: float,
        max_chunk_seconds: float,
        gpu_share: float = 1.0,
    ):
        """Load the checkpoint in the local folder `model` into main memory, for `device`.

        `device`: "cuda" or "cpu". `dtype`: "bfloat16" or "float32". `batch_seconds`: audio in a
        batch at most. `max_chunk_seconds`: the longest chunk. `gpu_share`: the share of the GPU's
        memory that weights and activations may take.
        """
        import torch
        from qwen_asr import Qwen3ForcedAligner

        self._model = Qwen3ForcedAligner.from_pretrained(
            model, dtype=getattr(torch, dtype), device_map="cpu"
        )
        self._model.processor.tokenizer = load_tokenizer(model)
        use_windows(self._model.model.thinker.audio_tower)
        self._max_chunk_seconds = max_chunk_seconds
        self._device = torch.device(device)
        self._gpu_share = gpu_share
        self._batch_seconds = batch_seconds
        self._preparers = ThreadPoolExecutor(
            PREPARERS, "aligner-input", torch.set_num_threads, (1,)
        )
        self._prepare_gate = Gate(PREPARERS)
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="aligner", daemon=True)

    def start(self) -> None:
        """Move the model to the device and accept chunks.

        Only after vLLM's start, which measures how much of the GPU is free.
        """
        import torch

        if self._device.type == "cuda":
            # Beyond its share the aligner runs out of memory, and never vLLM.
            torch.cuda.set_per_process_memory_fraction(self._gpu_share)
        self._model.model.to(self._device)
        self._model.device = self._device
        if self._device.type == "cuda":
            self.take_memory()
        self._thread.start()

    def take_memory(self) -> None:
        """Run the largest batches once, so that PyTorch holds their memory before the first job.

        Where a batch does not fit, batches get smaller from here on, with a warning. Raises
        SettingsError where not even the longest chunk fits.
        """
        while True:
            try:
                for batch in self._largest_batches():
                    self._marks(batch)
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            if self._batch_seconds <= self._max_chunk_seconds:
                raise SettingsError(
                    f"The GPU has too little free memory to align {self._max_chunk_seconds:g} s of "
                    "audio; GPU_MEMORY_UTILIZATION or CHUNK_LIMIT_SECONDS must be lower."
                )
            self._batch_seconds /= 2
            log.warn(f"out of memory: the aligner's batches get {self._batch_seconds:g} s of audio")

    def _largest_batches(self) -> Iterator[list["_Task"]]:
        """The batch of the most chunks, and that of the longest: silence with a dense text."""
        longest_chunks = int(self._batch_seconds // self._max_chunk_seconds)
        longest_chunks = max(1, min(MAX_BATCH, longest_chunks))
        shapes = (
            (MAX_BATCH, self._batch_seconds / MAX_BATCH),
            (longest_chunks, self._max_chunk_seconds),
        )
        for count, seconds in shapes:
            samples = round(seconds * SAMPLE_RATE)
            chunk = AudioChunk(0, 0, np.zeros(samples, np.int16), ((0, samples),))
            text = "a " * round(seconds * MAX_UNITS_PER_SECOND)
            yield [self._prepared(chunk, text, "English", None)] * count

    def close(self) -> None:
        """Align what is queued and end the thread, within MAX_CLOSE_SECONDS.

        A thread that is stuck is left behind. It is a daemon, so the process ends without it.
        """
        self._preparers.shutdown(wait=False, cancel_futures=True)
        self._queue.put(None)
        self._thread.join(MAX_CLOSE_SECONDS)

    async def align(
        self, chunk: AudioChunk, text: str, language: str | None, spectrum: "Tensor | None" = None
    ) -> tuple[Word, ...]:
        """The words of `text` with their times, in seconds from the start of the recording.

        `spectrum`: (mel bands, frames) float of the chunk, where the recogniser has computed it.
        Raises AlignError where the aligner does not support the language, fails, or returns other
        words than those of the text.
        """
        if language not in ALIGNED_LANGUAGES:
            raise AlignError(f"There is no aligner for {language or 'an unknown language'}.")
        async with self._prepare_gate.place(Holder(), chunk_priority(chunk.index)):
            task = await asyncio.get_running_loop().run_in_executor(
                self._preparers, self._prepared, chunk, text, language, spectrum
            )
        self._queue.put(task)
        marks = await asyncio.wrap_future(task.result)
        try:
            return aligned_words(chunk, text, task.units, marks)
        except AlignError:
            raise
        except Exception as error:  # the fault is in this text, not in the aligner
            raise AlignError(f"The times have no words: {type(error).__name__}.") from error

    def _prepared(
        self, chunk: AudioChunk, text: str, language: str, spectrum: "Tensor | None"
    ) -> _Task:
        """The model's inputs for one chunk. Runs while the device works on the previous batch."""
        try:
            if spectrum is None:
                spectrum = self._spectrum(chunk)
            units, tokens = self._units_and_tokens(text, language, spectrum.shape[1])
        except Exception as error:  # some texts break the word splitters
            sentence = f"The aligner could not read the text: {type(error).__name__}."
            raise AlignError(sentence) from error
        return _Task(chunk, text, units, tokens, spectrum, Future())

    def _spectrum(self, chunk: AudioChunk) -> "Tensor":
        """(mel bands, frames) float of the chunk.

        Each chunk's is computed by itself: with padding, its last frames would depend on the
        length of the others.
        """
        features = self._model.processor.feature_extractor(
            waveform(chunk),
            sampling_rate=SAMPLE_RATE,
            padding=True,
            truncation=False,
            return_tensors="pt",
        )
        (spectrum,) = features["input_features"]
        return spectrum

    def _units_and_tokens(
        self, text: str, language: str, frames: int
    ) -> tuple[list[str], "Tensor"]:
        """The units of `text`, and the prompt for them as (tokens,) int64.

        qwen-asr divides words at spaces only.
        """
        import torch
        from qwen_asr.core.transformers_backend.processing_qwen3_asr import (
            _get_feat_extract_output_lengths,
        )

        processor = self._model.processor
        spaced = with_spaces(text)
        units, template = self._model.aligner_processor.encode_timestamp(spaced, language)
        audio_tokens = iter([_get_feat_extract_output_lengths(frames)])
        (prompt,) = processor.replace_multimodal_special_tokens([template], audio_tokens)
        return units, torch.tensor(processor.tokenizer(prompt)["input_ids"])

    def _serve(self) -> None:
        """The aligner's thread: batch after batch until `close`, and then those that wait."""
        waiting: list[_Task] = []
        closing = False
        while waiting or not closing:
            while not closing and (not waiting or not self._queue.empty()):
                if task := self._queue.get():
                    waiting.append(task)
                else:
                    closing = True
            if waiting:
                batch = next_batch(waiting, self._batch_seconds)
                self._align_batch([t for t in batch if t.result.set_running_or_notify_cancel()])

    def _align_batch(self, batch: Sequence[_Task]) -> None:
        if not batch:
            return
        try:
            for task, marks in zip(batch, self._marks(batch)):
                task.result.set_result(marks)
        except Exception as error:  # whatever torch raises, the worker goes on with estimated times
            self._recover(batch, error)

    def _recover(self, batch: Sequence[_Task], error: Exception) -> None:
        """Halve a batch that ran out of memory; fail any other, and a single chunk."""
        if not is_out_of_memory(error):
            _fail(batch, f"The aligner failed: {type(error).__name__}.")
        elif len(batch) == 1:
            _fail(batch, "The aligner ran out of memory.")
        else:
            half = (len(batch) + 1) // 2
            self._align_batch(batch[:half])
            self._align_batch(batch[half:])

    def _marks(self, batch: Sequence[_Task]) -> list[list[int]]:
        """For each chunk two marks per unit, as the model predicts them.

        They are its start and end in ms from the chunk's start, without the repair of
        Qwen3ForcedAligner.align, which is quadratic and does not tell which times it changed.
        """
        import torch

        model = self._model
        token_ids = [task.token_ids for task in batch]
        counts = [int((ids == model.timestamp_token_id).sum()) for ids in token_ids]
        spectra = [task.spectrum for task in batch]
        with torch.inference_mode():
            classes = predicted_classes(
                model.model.thinker, token_ids, spectra, model.timestamp_token_id
            )
        times = (classes.cpu() * model.timestamp_segment_time).split(counts)
        return [[round(mark) for mark in marks.tolist()] for marks in times]


def next_batch(waiting: list[_Task], seconds: float) -> list[_Task]:
    """Remove the next batch from `waiting` and return it.

    It is the chunk of the highest priority and those of the most similar length: at least one
    chunk, at most MAX_BATCH, and at most `seconds` of audio including the padding.
    """
    first = min(waiting, key=lambda task: chunk_priority(task.chunk.index))
    others = [task for task in waiting if task is not first]
    others.sort(key=lambda task: abs(len(task.chunk.pcm) - len(first.chunk.pcm)))
    batch, longest = [first], first.chunk.duration
    for task in others:
        longest = max(longest, task.chunk.duration)
        padded_seconds = (len(batch) + 1) * longest
        if len(batch) == MAX_BATCH or padded_seconds > seconds:
            break
        batch.append(task)
    for task in batch:
        waiting.remove(task)
    return batch


def _fail(batch: Sequence[_Task], sentence: str) -> None:
    for task in batch:
        task.result.set_exception(AlignError(sentence, unexplained=True))


def is_out_of_memory(error: Exception) -> bool:
    """Whether the GPU's memory is used up: CUDA, cuBLAS and cuDNN say it in a RuntimeError."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and any(sign in message for sign in OUT_OF_MEMORY)
