"""`AudioChunk` → `Hypothesis` through one vLLM engine.

The engine runs in a thread with its own event loop: RunPod's SDK uses one loop for fitness checks
and another for jobs, and an AsyncLLM that is used from a second loop dies. Callers await its
results from any loop. Cancelling a caller aborts its request. Knows nothing of jobs, word times or
other chunks.
"""

import asyncio
import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from contract.errors import EngineDead, InvalidRequest, RecognitionError
from recording.chunk import SAMPLE_RATE, AudioChunk, waveform
from speech.admission import Gate, Holder, chunk_priority
from speech.models.answer_tokens import answer_tokens
from speech.models.engine_args import (
    ENVIRONMENT,
    IMAGE_CACHE,
    RENDERERS,
    EngineOptions,
    copy_model_info,
)
from speech.models.engine_process import main_module_of_children
from speech.models.prompt import parsed, prompt_template
from speech.models.token_limits import CONTEXT_TOKENS, VOCABULARY_TOKENS, max_answer_tokens
from speech.models.tokenizer import load_tokenizer, special_tokens, without_tokens
from speech.tokens import Token

if TYPE_CHECKING:
    from torch import Tensor
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

SEED = 0  # one seed for all samplings, so that a retry gives the same answer every time
# A chunk with less speech gets no context: the model may answer with the context instead.
MIN_CONTEXT_SPEECH_SECONDS = 1.0
MAX_CLOSE_SECONDS = 15  # vLLM waits 5 s for its process before it kills it
START_POLL_SECONDS = 0.01  # between two looks whether the engine's process has been started
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """The recogniser's answer for one chunk."""

    text: str  # "" where nothing was recognised
    language: str | None  # the model's name for it; None without text
    finish_reason: str  # "stop", or "length" where the answer was cut off at its token limit
    num_tokens: int  # the length of the answer
    # (mel bands, frames) of the chunk, in the engine's dtype: the aligner needs the same
    spectrum: "Tensor | None" = None
    prompt_tokens: int = 0  # the length of the prompt, with the tokens of the audio
    tokens: tuple[Token, ...] = ()  # those of the text, where they were asked for


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Names and terms that may be said in any chunk of a recording."""

    terms: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()  # all terms as they stand in the prompt


EMPTY_VOCABULARY = Vocabulary()


class Recogniser:
    """One vLLM engine for the chunks of all jobs. vLLM batches them."""

    def __init__(self, options: EngineOptions):
        """Start the engine's process and return while it loads the model.

        Only for the main process, because it spawns a child.
        """
        self.capacity = options.max_num_seqs  # chunks in one engine step
        self._ids = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        self._sockets = tempfile.TemporaryDirectory(prefix="engine-")
        os.environ |= ENVIRONMENT
        os.environ["VLLM_RPC_BASE_PATH"] = self._sockets.name  # vLLM does not remove its sockets
        copy_model_info(Path(os.environ.get("VLLM_CACHE_ROOT", IMAGE_CACHE)))
        with main_module_of_children():
            self._starting = self._submit(_start_engine(options.engine_args()))
            # The other thread still imports vLLM; this one must not import at the same time.
            while not (multiprocessing.active_children() or self._starting.done()):
                time.sleep(START_POLL_SECONDS)
            self._processes = multiprocessing.active_children()
        self._render_gate = Gate(RENDERERS)
        self._tokenizer = load_tokenizer(options.model)
        self._special_tokens = special_tokens(self._tokenizer)

    def wait_until_ready(self) -> None:
        """Block until the engine has loaded its model, seconds to minutes.

        Raises the error that stopped it.
        """
        self._engine: AsyncLLM = self._starting.result()
        del self._starting  # it holds the engine too, and _shut_down must free the engine

    def close(self) -> None:
        """End the engine and its child process, which is killed where it does not end by itself."""
        try:
            self._submit(self._shut_down()).result(MAX_CLOSE_SECONDS)
        except TimeoutError:
            self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(MAX_CLOSE_SECONDS)
        self._sockets.cleanup()

    @property
    def dead(self) -> bool:
        """Whether the engine has died. It cannot be restarted in this process."""
        return bool(self._engine.errored)

    def kill(self) -> None:
        """Kill the engine's process. vLLM notices it, and every request fails with EngineDead."""
        for process in self._processes:
            process.kill()

    async def _shut_down(self) -> None:
        self._engine.shutdown()
        del self._engine  # at the end of the interpreter its destructor would find its modules gone

    def vocabulary(self, terms: Sequence[str]) -> Vocabulary:
        """The terms as they go into a prompt: without special tokens, separated by commas.

        A space would not separate them, because a term may contain spaces. Raises InvalidRequest
        where they need more than VOCABULARY_TOKENS.
        """
        kept: list[str] = []
        token_ids: list[int] = []
        for i, given in enumerate(terms):
            term = without_tokens(self._special_tokens, given).strip()
            if not term:
                continue
            token_ids += self._token_ids(f", {term}" if kept else term)
            if len(token_ids) > VOCABULARY_TOKENS:
                raise InvalidRequest(
                    f"vocabulary is longer than the {VOCABULARY_TOKENS} tokens allowed: "
                    f"vocabulary[{i}], {term!r}, is the first of its {len(terms)} terms that does "
                    "not fit; it must be cut to those that matter most."
                )
            kept.append(term)
        return Vocabulary(tuple(kept), tuple(token_ids))

    async def transcribe(
        self,
        chunk: AudioChunk,
        language: str | None,
        context: str,
        temperature: float = 0.0,
        vocabulary: Vocabulary = EMPTY_VOCABULARY,
        with_tokens: bool = False,
    ) -> Hypothesis:
        """The text of `chunk`.

        `language`: one of the model's names, or None to detect it. Greedy at `temperature` 0,
        otherwise sampled with a fixed seed: the same call gives the same answer.
        `with_tokens`: with the tokens of the text and their probabilities.
        Raises EngineDead where the engine has died, RecognitionError where it refuses the chunk.
        """
        return await asyncio.wrap_future(
            self._submit(
                self._transcribe(chunk, language, context, temperature, vocabulary, with_tokens)
            )
        )

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine in the engine's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _transcribe(
        self,
        chunk: AudioChunk,
        language: str | None,
        context: str,
        temperature: float,
        vocabulary: Vocabulary,
        with_tokens: bool,
    ) -> Hypothesis:
        if chunk.speech_seconds < MIN_CONTEXT_SPEECH_SECONDS:
            context, vocabulary = "", EMPTY_VOCABULARY
        prompt_ids = self._prompt(context, language, vocabulary)
        result, spectrum = await self._generate(chunk, prompt_ids, temperature, with_tokens)
        (output,) = result.outputs
        spoken, text = parsed(output.text, language)
        # Some of the tokenizer's own tokens, such as <non_speech>, are none that vLLM leaves out.
        text = without_tokens(self._special_tokens, text).strip()
        return Hypothesis(
            text=text,
            language=spoken if text else None,
            finish_reason=output.finish_reason,
            num_tokens=len(output.token_ids),
            spectrum=spectrum,
            prompt_tokens=len(result.prompt_token_ids),
            tokens=self._tokens_of(output, text) if with_tokens else (),
        )

    def _tokens_of(self, output: "CompletionOutput", text: str) -> tuple[Token, ...]:
        logprobs = output.logprobs.logprobs  # flat: one for each token of the answer
        return answer_tokens(self._tokenizer, output.token_ids, logprobs, text)

    def _prompt(self, context: str, language: str | None, vocabulary: Vocabulary) -> list[int]:
        """The prompt's token ids: all of the vocabulary, and on a new line the end of the context.

        Together these two have at most CONTEXT_TOKENS.
        """
        before, after = map(self._token_ids, prompt_template(language))
        context_ids = self._token_ids(without_tokens(self._special_tokens, context))
        terms = list(vocabulary.token_ids)
        if terms and context_ids:
            terms += self._token_ids("\n")
        context_end = context_ids[-(CONTEXT_TOKENS - len(terms)) :]
        return before + terms + context_end + after

    def _token_ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    async def _generate(
        self, chunk: AudioChunk, prompt_ids: list[int], temperature: float, with_logprobs: bool
    ) -> "tuple[RequestOutput, Tensor]":
        """(vLLM's answer, the chunk's spectrum).

        No repetition penalty: vLLM would need two tensors of batch x vocabulary for it, 0.5 GB
        outside its memory profile. Log-probabilities need one, which is within the profile: the
        sampler's warm-up takes more.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling = SamplingParams(
            temperature=temperature,
            seed=SEED if temperature else None,
            max_tokens=max_answer_tokens(chunk.duration),
            output_kind=RequestOutputKind.FINAL_ONLY,
            logprobs=0 if with_logprobs else None,  # 0: of the chosen token alone
            flat_logprobs=with_logprobs,  # one list instead of an object for each token
        )
        try:
            rendered, spectrum = await self._rendered(chunk, prompt_ids)
            request_id = str(next(self._ids))
            answers = self._engine.generate(
                rendered, sampling, request_id=request_id, priority=chunk_priority(chunk.index)
            )
            (result,) = [answer async for answer in answers]
            return result, spectrum
        except EngineDeadError as error:
            raise EngineDead(
                "The speech engine has died; this worker is being replaced. Please send the job "
                "again."
            ) from error
        except Exception as error:
            raise RecognitionError(
                f"The speech engine could not transcribe {chunk.start:.3f}-{chunk.end:.3f} s."
            ) from error

    async def _rendered(
        self, chunk: AudioChunk, prompt_ids: list[int]
    ) -> "tuple[dict[str, Any], Tensor]":
        """(vLLM's input for its engine, the spectrum in it).

        It takes 25 ms for a minute of audio, in the renderer's threads.
        """
        async with self._render_gate.place(Holder(), chunk_priority(chunk.index)):
            wave = await self._loop.run_in_executor(None, waveform, chunk)
            audio = {"audio": [(wave, SAMPLE_RATE)]}
            prompt = {"prompt_token_ids": prompt_ids, "multi_modal_data": audio}
            (rendered,) = await self._engine.renderer.render_cmpl_async([prompt])
        (features,) = rendered["mm_kwargs"]["audio"]
        return rendered, features["input_audio_features"].data


async def _start_engine(engine_args: dict[str, Any]) -> "AsyncLLM":
    """Must run in the loop that will use the engine."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args))
