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
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from audio import SAMPLE_RATE, AudioChunk, waveform
from engine import CONTEXT_TOKENS, EngineOptions, answer_tokens
from errors import EngineDead, RecognitionError

SHORTEST_SECONDS = 0.5  # what the model was trained on; shorter chunks are zero-padded
LOOP_PENALTY = 1.1  # repetition penalty after a loop
CONTEXT_SPEECH_SECONDS = 1.0  # with less speech there is little to hear, and a context is printed in its stead
ECHO_LETTERS = 16  # of a context's beginning or end that make an echo, or all of one that has at least SHORTEST_ECHO
SHORTEST_ECHO = 8
FIRST_WIDE = 0x1100  # Hangul, kana, ideographs and all behind them
LOOP_UNITS, LOOP_REPEATS, LOOP_LETTERS = 12, 6, 24  # a phrase of up to so many words, so often in a row, so long in all
LETTERS_PER_SECOND = (0.5, 40)  # of speech; an ideograph or syllable counts as WIDE_LETTERS
WIDE_LETTERS = 3
LITTLE_SECONDS, MUCH_SECONDS = 1.5, 4.0  # of speech, for less than which too little, too much text is not judged


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What the recogniser made of one chunk."""

    text: str  # "" where it heard nothing
    language: str | None  # as it names it; None where it heard nothing
    finish_reason: str  # vLLM's: "stop", or "length" where it was cut off
    num_tokens: int
    fault: str | None = None  # what is still wrong with it: a name of `fault_in`
    retries: tuple[str, ...] = ()  # why each discarded attempt was discarded


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
        os.environ["VLLM_RPC_BASE_PATH"] = self._sockets.name  # vLLM leaves its sockets where it made them
        with main_module_kept_from_children():
            self._starting = self._submit(_start_engine(options.engine_args()))
            while not (multiprocessing.active_children() or self._starting.done()):
                time.sleep(0.01)  # until then this process imports what vLLM needs, and must not import anything beside that
        from transformers import AutoTokenizer

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

    async def _shut_down(self) -> None:
        self._engine.shutdown()
        del self._engine  # now: at the interpreter's end its destructor finds its modules gone

    async def transcribe(self, chunk: AudioChunk, language: str | None, context: str, retry: bool = True) -> Hypothesis:
        """What is said in `chunk`: in `language` (one of the model's names) or in the one it detects.

        A faulty answer is asked for once more in the one way that its fault calls for, if `retry`; where that does not
        help, or only smaller pieces would, the fault is named in what is returned.
        Raises EngineDead when the engine is gone, RecognitionError when it refuses the chunk.
        """
        return await asyncio.wrap_future(self._submit(self._transcribe(chunk, language, context, retry)))

    def _submit(self, coroutine: Coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _transcribe(self, chunk: AudioChunk, language: str | None, context: str, retry: bool) -> Hypothesis:
        if chunk.speech_seconds < CONTEXT_SPEECH_SECONDS:
            context = ""
        first = await self._attempt(chunk, language, context, penalty=1.0)
        if not retry or first.fault not in RETRY_PENALTY:
            return first
        second = await self._attempt(chunk, language, "", RETRY_PENALTY[first.fault])
        return replace(second, retries=(first.fault,))

    async def _attempt(self, chunk: AudioChunk, language: str | None, context: str, penalty: float) -> Hypothesis:
        from qwen_asr.inference.utils import parse_asr_output

        output = await self._generate(chunk, self._prompt(context, language), penalty)
        heard, text = parse_asr_output(output.text, user_language=language)
        fault = fault_in(output.text, text, output.finish_reason, context, chunk.speech_seconds)
        return Hypothesis(text, (heard or None) if text else None, output.finish_reason, len(output.token_ids), fault)

    def _prompt(self, context: str, language: str | None) -> list[int]:
        context_ids = self._tokenizer.encode(without(self._special, context), add_special_tokens=False)
        before, after = prompt_around(language)
        encode = self._tokenizer.encode
        return encode(before, add_special_tokens=False) + context_ids[-CONTEXT_TOKENS:] + encode(after, add_special_tokens=False)

    async def _generate(self, chunk: AudioChunk, prompt_ids: list[int], repetition_penalty: float):
        """vLLM's CompletionOutput for one attempt."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt = {
            "prompt_token_ids": prompt_ids,
            "multi_modal_data": {"audio": [(waveform(chunk, at_least=SHORTEST_SECONDS), SAMPLE_RATE)]},
        }
        sampling = SamplingParams(
            temperature=0,
            max_tokens=answer_tokens(chunk.duration),
            repetition_penalty=repetition_penalty,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        try:
            async for result in self._engine.generate(prompt, sampling, request_id=str(next(self._ids)), priority=chunk.index):
                pass
            return result.outputs[0]
        except EngineDeadError as error:
            raise EngineDead("The speech engine has died; this worker is being replaced. Please send the job again.") from error
        except Exception as error:
            raise RecognitionError(f"The speech engine could not transcribe {chunk.start:.3f}-{chunk.end:.3f} s.") from error


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


# The step for each fault that another attempt at the same samples may mend: without context, with this penalty.
# "cut_off" and "too_little" call for smaller pieces instead, which is the caller's step.
RETRY_PENALTY = {"loop": LOOP_PENALTY, "context_echo": 1.0, "too_much": LOOP_PENALTY}


def fault_in(raw: str, text: str, finish_reason: str, context: str, speech_seconds: float) -> str | None:
    """What makes an answer suspicious, or None.

    `raw`: the answer before loops are collapsed; `text`: what it says. "loop": a phrase many times in a row;
    "cut_off": it ended for want of tokens; "context_echo": it begins like the context; "too_much", "too_little": for
    the seconds of speech in the chunk.
    """
    if has_loop(raw):
        return "loop"
    if finish_reason == "length":
        return "cut_off"
    if echoes(context, text):
        return "context_echo"
    least, most = (rate * speech_seconds for rate in LETTERS_PER_SECOND)
    said = sum(WIDE_LETTERS if ord(c) >= FIRST_WIDE else 1 for c in text if c.isalnum())
    if said > max(most, LETTERS_PER_SECOND[1] * MUCH_SECONDS):
        return "too_much"
    if speech_seconds >= LITTLE_SECONDS and said < least:
        return "too_little"
    return None


def has_loop(text: str) -> bool:
    """Whether a phrase of up to LOOP_UNITS words (or characters, where there are no spaces) comes LOOP_REPEATS times in a row."""
    for units in (text.lower().split(), [c for c in text.lower() if not c.isspace()]):
        for size in range(1, min(LOOP_UNITS, len(units) // LOOP_REPEATS) + 1):
            needed = max(size * (LOOP_REPEATS - 1), LOOP_LETTERS - size)
            run = 0
            for a, b in zip(units, units[size:]):
                run = run + 1 if a == b else 0
                if run >= needed:
                    return True
    return False


def echoes(context: str, text: str) -> bool:
    """Whether `text` begins like `context`, or with the end of it, letter by letter."""
    given, said = ("".join(c for c in t.lower() if c.isalnum()) for t in (context, text))
    if len(given) < SHORTEST_ECHO:
        return False
    return said.startswith(given[:ECHO_LETTERS]) or any(
        said.startswith(given[i:]) for i in range(len(given) - min(len(given), ECHO_LETTERS) + 1)
    )


def prompt_around(language: str | None) -> tuple[str, str]:
    """What stands before and after the context in Qwen3-ASR's prompt: its chat template, and the forced language."""
    forced = f"language {language}<asr_text>" if language else ""
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
