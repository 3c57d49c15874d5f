"""Chunk, text, language → `Word`s with times, by Qwen3-ForcedAligner. Hides its batching. Knows nothing of vLLM or jobs.

One thread aligns the chunks of all jobs, in batches of similar length and at most `batch_seconds` of audio.
"""

import asyncio
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from admission import Gate, chunk_priority
from audio import SAMPLE_RATE, AudioChunk, waveform
from errors import AlignError
from timing import words
from transcript import Word

LANGUAGES = frozenset(
    ("Chinese", "English", "Cantonese", "French", "German", "Italian", "Japanese", "Korean", "Portuguese", "Russian", "Spanish")
)
TOKENS_PER_BLOCK = 13  # of the audio encoder, for a block of 2 * n_window mel frames (one second)
PREPARERS = 1  # threads; qwen-asr's word splitters for Japanese and Korean keep state, and one thread prepares 1500 x real time
MAX_CLOSE_SECONDS = 10  # for the batches that wait when the worker ends
MAX_BATCH = 16  # chunks; larger batches are slower (962 x real time at 8, 649 x at 128)


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    chunk: AudioChunk
    text: str
    units: list[str]  # words or characters, as the aligner splits the text
    inputs: dict  # tensors of this chunk alone, without a batch dimension
    result: Future


class Aligner:
    """qwen-asr's Qwen3ForcedAligner behind a queue."""

    def __init__(self, model: str, device: str, batch_seconds: float, gpu_share: float = 1.0):
        """Load the checkpoint in the local folder `model` into main memory, for `device` ("cuda" or "cpu").

        `gpu_share`: the share of the GPU's memory that weights and activations may take.
        """
        import torch
        from qwen_asr import Qwen3ForcedAligner
        from transformers import AttentionInterface

        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._model = Qwen3ForcedAligner.from_pretrained(model, dtype=dtype, device_map="cpu")
        AttentionInterface.register("windowed", windowed_attention)
        self._model.model.thinker.audio_tower.set_attn_implementation("windowed")
        self._device = torch.device(device)
        self._gpu_share = gpu_share
        self._batch_seconds = batch_seconds
        self._preparers = ThreadPoolExecutor(PREPARERS, "aligner-input", torch.set_num_threads, (1,))
        self._prepare_gate = Gate(PREPARERS)
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="aligner", daemon=True)

    def start(self) -> None:
        """Move the model to the device and accept chunks. Only after vLLM's start, which measures how much of the GPU is free."""
        import torch

        if self._device.type == "cuda":  # beyond its share the aligner runs out of memory, and never vLLM
            torch.cuda.set_per_process_memory_fraction(self._gpu_share)
        self._model.model.to(self._device)
        self._model.device = self._device
        self._thread.start()

    def close(self) -> None:
        """Align what is queued and end the thread, within MAX_CLOSE_SECONDS.

        A thread that is stuck is left behind. It is a daemon, so the process ends without it.
        """
        self._preparers.shutdown(wait=False, cancel_futures=True)
        self._queue.put(None)
        self._thread.join(MAX_CLOSE_SECONDS)

    async def align(self, chunk: AudioChunk, text: str, language: str | None, spectrum: np.ndarray | None = None) -> tuple[Word, ...]:
        """The words of `text` with their times, in seconds from the start of the recording.

        `spectrum`: (mel bands, frames) float32 of the chunk, where the recogniser has computed it already.
        Raises AlignError where the aligner does not support the language, fails, or returns other words than those of the text.
        """
        if language not in LANGUAGES:
            raise AlignError(f"There is no aligner for {language or 'an unknown language'}.")
        async with self._prepare_gate.place(chunk_priority(chunk.index)):
            task = await asyncio.get_running_loop().run_in_executor(self._preparers, self._prepared, chunk, text, language, spectrum)
        self._queue.put(task)
        return await asyncio.wrap_future(task.result)

    def _prepared(self, chunk: AudioChunk, text: str, language: str, spectrum: np.ndarray | None) -> _Task:
        """The model's inputs for one chunk, as its processor makes them. Runs while the device works on the previous batch.

        Each chunk's spectrum is computed by itself: with padding, its last frames would depend on the length of the others.
        """
        import torch
        from qwen_asr.core.transformers_backend.processing_qwen3_asr import _get_feat_extract_output_lengths

        processor = self._model.processor
        try:
            units, prompt = self._model.aligner_processor.encode_timestamp(text, language)
            if spectrum is None:
                extract = processor.feature_extractor
                spectrum = extract(waveform(chunk), sampling_rate=SAMPLE_RATE, padding=True, truncation=False)["input_features"][0]
            audio_tokens = _get_feat_extract_output_lengths(spectrum.shape[1])
            (prompt,) = processor.replace_multimodal_special_tokens([prompt], iter([audio_tokens]))
            tokens = torch.tensor(processor.tokenizer(prompt)["input_ids"])
        except Exception as error:  # some texts break the word splitters; their times are estimated instead
            raise AlignError(f"The aligner could not read the text: {type(error).__name__}.") from error
        inputs = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "input_features": torch.from_numpy(spectrum),
            "feature_attention_mask": torch.ones(spectrum.shape[1], dtype=torch.long),
        }
        return _Task(chunk, text, units, inputs, Future())

    def _serve(self) -> None:
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
        import torch

        if not batch:
            return
        try:
            for task, marks in zip(batch, self._marks(batch)):
                try:
                    task.result.set_result(words(task.chunk, task.text, task.units, marks))
                except AlignError as error:
                    task.result.set_exception(error)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                return _fail(batch, "The aligner ran out of memory.")
        except Exception as error:  # whatever torch raises, the worker goes on with estimated times
            return _fail(batch, f"The aligner failed: {type(error).__name__}.", unexplained=True)
        if left := [task for task in batch if not task.result.done()]:  # after running out of memory
            half = (len(left) + 1) // 2
            self._align_batch(left[:half])
            self._align_batch(left[half:])

    def _marks(self, batch: Sequence[_Task]) -> Iterator[list[int]]:
        """For each chunk two marks per unit: its start and end in ms from the chunk's start, as the model predicts them.

        The steps of Qwen3ForcedAligner.align without its repair, which is quadratic and does not tell which times it changed.
        """
        import torch

        model = self._model
        together = {name: _stacked([task.inputs[name] for task in batch]).to(model.model.device) for name in batch[0].inputs}
        together["input_features"] = together["input_features"].to(model.model.dtype)
        is_mark = together["input_ids"] == model.timestamp_token_id
        # the head computes 5000 scores per token; only those of the marks are needed
        hook = model.model.thinker.lm_head.register_forward_pre_hook(lambda _, args: (args[0][is_mark],))
        try:
            with torch.inference_mode():
                classes = model.model.thinker(**together, use_cache=False).logits.argmax(dim=-1)
        finally:
            hook.remove()
        times = (classes.cpu() * model.timestamp_segment_time).split(is_mark.sum(dim=1).tolist())
        return ([round(mark) for mark in marks.tolist()] for marks in times)


def _stacked(tensors: Sequence):
    """Stack tensors, padded with zeros at the end of their last dimension. The attention masks exclude the padding."""
    import torch

    longest = max(t.shape[-1] for t in tensors)
    return torch.stack([torch.nn.functional.pad(t, (0, longest - t.shape[-1])) for t in tensors])


def next_batch(waiting: list[_Task], seconds: float) -> list[_Task]:
    """Remove the next batch from `waiting`: the chunk of the highest priority and those of the most similar length.

    At least one chunk, at most MAX_BATCH, and at most `seconds` of audio including the padding.
    """
    first = min(waiting, key=lambda t: chunk_priority(t.chunk.index))
    batch, longest = [], 0.0
    for task in sorted(waiting, key=lambda t: (t is not first, abs(len(t.chunk.pcm) - len(first.chunk.pcm)))):
        longest = max(longest, task.chunk.duration)
        if batch and (len(batch) == MAX_BATCH or (len(batch) + 1) * longest > seconds):
            break
        batch.append(task)
    for task in batch:
        waiting.remove(task)
    return batch


def _fail(batch: Sequence[_Task], sentence: str, unexplained: bool = False) -> None:
    for task in batch:
        if not task.result.done():
            task.result.set_exception(AlignError(sentence, unexplained))


def windowed_attention(module, query, key, value, attention_mask, scaling: float, **_):
    """Attention of the aligner's audio encoder, for transformers' AttentionInterface: windows of 8 s, as in the model's training.

    qwen-asr passes the windows as `cu_seq_lens_q`, which only FlashAttention reads (QwenLM/Qwen3-ASR#213).
    `query`, `key`, `value`: (1, heads, tokens, head size) of one chunk. Returns (1, tokens, heads, head size), and None for the
    attention weights.
    """
    from torch import cat
    from torch.nn.functional import scaled_dot_product_attention

    window = TOKENS_PER_BLOCK * (module.config.n_window_infer // (2 * module.config.n_window))
    tokens = query.shape[2]
    in_whole_windows = tokens // window * window

    def attended(start: int, end: int, length: int):
        windows = (x[0, :, start:end].unflatten(1, (-1, length)).transpose(0, 1) for x in (query, key, value))
        return scaled_dot_product_attention(*windows, scale=scaling).transpose(1, 2).flatten(0, 1)

    parts = [attended(0, in_whole_windows, window)] if in_whole_windows else []
    parts += [attended(in_whole_windows, tokens, tokens - in_whole_windows)] if in_whole_windows < tokens else []
    return cat(parts)[None], None
