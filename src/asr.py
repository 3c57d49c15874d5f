"""`AudioChunk` → `Hypothesis` through one vLLM engine. Knows nothing of other chunks, jobs or times.

The engine lives in a thread with an event loop of its own: RunPod's SDK serves from one loop and checks from another,
and an AsyncLLM moved between loops dies. Callers await across the bridge; cancelling them aborts the engine's request.
"""

import asyncio
import itertools
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from admission import Gate, chunk_priority
from audio import SAMPLE_RATE, AudioChunk, waveform
from engine import (
    BAKED_CACHE, CONTEXT_TOKENS, ENVIRONMENT, RENDERERS, VOCABULARY_TOKENS, EngineOptions, answer_tokens, bring_model_info,
)  # fmt: skip
from errors import EngineDead, InvalidRequest, RecognitionError

SEED = 0  # of sampling
CONTEXT_SPEECH_SECONDS = 1.0  # with less speech there is little to hear, and what the prompt holds is printed in its stead
TEXT_TAG = "<asr_text>"  # between the language and the text of an answer


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What the recogniser made of one chunk."""

    text: str  # "" where it heard nothing
    language: str | None  # as it names it; None where it heard nothing
    finish_reason: str  # vLLM's: "stop", or "length" where it was cut off
    num_tokens: int
    spectrum: np.ndarray | None = None  # (mel bands, frames) float32 of the chunk; the aligner takes the same
    prompt_tokens: int = 0  # those of the audio included


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Names and terms that may come up in any chunk of a recording."""

    terms: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()  # of all of them, as they stand in a prompt


NO_VOCABULARY = Vocabulary()


class Recogniser:
    """One vLLM engine; every chunk of every job is in flight in it at once."""

    def __init__(self, options: EngineOptions):
        """Start the engine's process, which then boots by itself. Only in the main process: it spawns a child."""
        self.capacity = options.max_num_seqs  # chunks in one step
        self._ids = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        self._sockets = tempfile.TemporaryDirectory(prefix="engine-")
        os.environ |= ENVIRONMENT | {"VLLM_RPC_BASE_PATH": self._sockets.name}  # vLLM leaves its sockets where it made them
        bring_model_info(Path(os.environ.get("VLLM_CACHE_ROOT", BAKED_CACHE)))
        with main_module_kept_from_children():
            self._starting = self._submit(_start_engine(options.engine_args()))
            while not (multiprocessing.active_children() or self._starting.done()):
                time.sleep(0.01)  # until then this process imports what vLLM needs, and must not import anything beside that
            self._processes = multiprocessing.active_children()
        from transformers import AutoTokenizer

        self._turns = Gate(RENDERERS)
        self._tokenizer = AutoTokenizer.from_pretrained(options.model, fix_mistral_regex=True)
        self._special = special_tokens(self._tokenizer)

    def wait_until_ready(self) -> None:
        """Block until the engine has loaded its model, which takes from seconds to minutes. Raises what kept it from that."""
        self._engine = self._starting.result()

    def close(self) -> None:
        """End the engine and its child process."""
        self._submit(self._shut_down()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._sockets.cleanup()

    @property
    def dead(self) -> bool:
        """Whether the engine has died; nothing brings it back."""
        return self._engine.errored

    def kill(self) -> None:
        """End the engine's process at once; vLLM sees its death and fails every request with EngineDead."""
        for process in self._processes:
            process.kill()

    async def _shut_down(self) -> None:
        self._engine.shutdown()
        del self._engine  # now: at the interpreter's end its destructor finds its modules gone

    def vocabulary(self, terms: Sequence[str]) -> Vocabulary:
        """`terms` as they go into prompts: without special tokens, and with commas between, so that a term may have spaces.

        Raises InvalidRequest where they are more than VOCABULARY_TOKENS.
        """
        kept, token_ids = [], []
        for i, term in enumerate(terms):
            if not (term := without(self._special, term).strip()):
                continue
            token_ids += self._tokenizer.encode(f", {term}" if kept else term, add_special_tokens=False)
            if len(token_ids) > VOCABULARY_TOKENS:
                raise InvalidRequest(
                    f"vocabulary is longer than the {VOCABULARY_TOKENS} tokens allowed: vocabulary[{i}], {term!r}, is the first of its "
                    f"{len(terms)} terms that does not fit; it must be cut to those that matter most."
                )
            kept.append(term)
        return Vocabulary(tuple(kept), tuple(token_ids))

    async def transcribe(
        self, chunk: AudioChunk, language: str | None, context: str, temperature: float = 0.0, vocabulary: Vocabulary = NO_VOCABULARY
    ) -> Hypothesis:
        """What is said in `chunk`: in `language` (one of the model's names) or in the one it detects.

        The same call gives the same answer: greedy at `temperature` 0, and sampled with a fixed seed over that.
        Raises EngineDead when the engine is gone, RecognitionError when it refuses the chunk.
        """
        return await asyncio.wrap_future(self._submit(self._transcribe(chunk, language, context, temperature, vocabulary)))

    def _submit(self, coroutine: Coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _transcribe(
        self, chunk: AudioChunk, language: str | None, context: str, temperature: float, vocabulary: Vocabulary
    ) -> Hypothesis:
        if chunk.speech_seconds < CONTEXT_SPEECH_SECONDS:
            context, vocabulary = "", NO_VOCABULARY
        result, spectrum = await self._generate(chunk, self._prompt(context, language, vocabulary), temperature)
        (output,) = result.outputs
        heard, text = parsed(output.text, language)
        return Hypothesis(text, heard, output.finish_reason, len(output.token_ids), spectrum, len(result.prompt_token_ids))

    def _prompt(self, context: str, language: str | None, vocabulary: Vocabulary) -> list[int]:
        """The vocabulary, whole; then, on a line of its own, the end of the context: as much as CONTEXT_TOKENS leave for it."""
        texts = (*prompt_around(language), "\n", without(self._special, context))
        before, after, line_end, rest = (self._tokenizer.encode(text, add_special_tokens=False) for text in texts)
        first = [*vocabulary.token_ids, *(line_end if vocabulary.terms and rest else [])]
        return before + first + rest[-(CONTEXT_TOKENS - len(first)) :] + after

    async def _generate(self, chunk: AudioChunk, prompt_ids: list[int], temperature: float):
        """(vLLM's RequestOutput, the chunk's spectrum) of one decode.

        No penalty: vLLM would make two tensors of batch x vocabulary for it, 0.5 GB that its memory profile does not count.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling = SamplingParams(
            temperature=temperature,
            seed=SEED if temperature else None,
            max_tokens=answer_tokens(chunk.duration),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        try:
            rendered, spectrum = await self._rendered(chunk, prompt_ids)
            async for result in self._engine.generate(rendered, sampling, request_id=str(next(self._ids)), priority=chunk_priority(chunk.index)):
                pass
            return result, spectrum
        except EngineDeadError as error:
            raise EngineDead("The speech engine has died; this worker is being replaced. Please send the job again.") from error
        except Exception as error:
            raise RecognitionError(f"The speech engine could not transcribe {chunk.start:.3f}-{chunk.end:.3f} s.") from error

    async def _rendered(self, chunk: AudioChunk, prompt_ids: list[int]):
        """(vLLM's own input for its engine, the spectrum in it), which takes 25 ms a minute of sound, in the renderer's threads."""
        async with self._turns.place(chunk_priority(chunk.index)):
            audio = [(await self._loop.run_in_executor(None, waveform, chunk), SAMPLE_RATE)]
            prompt = {"prompt_token_ids": prompt_ids, "multi_modal_data": {"audio": audio}}
            (rendered,) = await self._engine.renderer.render_cmpl_async([prompt])
        return rendered, rendered["mm_kwargs"]["audio"][0]["input_audio_features"].data.numpy()


@contextmanager
def main_module_kept_from_children() -> Iterator[None]:
    """multiprocessing has a child import its parent's main module, if it is a file: the whole worker, for nothing."""
    main = vars(sys.modules["__main__"])
    file = main.pop("__file__", None)
    try:
        yield
    finally:
        if file:
            main["__file__"] = file


async def _start_engine(engine_args: dict[str, Any]):
    """In the loop that will serve it."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args))


def parsed(raw: str, forced: str | None) -> tuple[str | None, str]:
    """(language, text) of an answer; without text, or where the model names none, the language is None.

    `forced`: the language that the prompt asked for, after which only text comes. The language is read by qwen-asr's parser.
    The text is not: that parser collapses everything that is said over 20 times in a row, real laughter and chants too.
    """
    from qwen_asr.inference.utils import parse_asr_output

    head, tag, text = raw.partition(TEXT_TAG)
    if not tag:
        head, text = "", raw
    if not text.strip():
        return None, ""
    return forced or parse_asr_output(f"{head}{tag}.")[0] or None, text.strip()


def prompt_around(language: str | None) -> tuple[str, str]:
    """What stands before and after the context in Qwen3-ASR's prompt: its chat template, and the forced language."""
    forced = f"language {language}{TEXT_TAG}" if language else ""
    return (
        "<|im_start|>system\n",
        f"<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n<|im_start|>assistant\n{forced}",
    )


def special_tokens(tokenizer) -> tuple[str, ...]:
    """Every token that means something to the model beyond its letters."""
    return tuple(sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}, key=len, reverse=True))


def without(tokens: tuple[str, ...], text: str) -> str:
    """`text` without any of `tokens`, also where taking one out would put another together."""
    before = None
    while before != text:
        before = text
        for token in tokens:
            text = text.replace(token, "")
    return text
