"""The worker with scripted models, ready in seconds: for what must hang, break or be cancelled.

Recognition and alignment are scripted at the call of the model. The queues, threads and loops
around it are the worker's.

As a command, `python scripted_worker.py [FAULT]` is a worker of a platform. With FAULT "aligner" or
"engine" that model hangs for every recording longer than MAX_CHECK_SECONDS. With "close" the
aligner does not close. Without FAULT nothing is broken.
"""

import asyncio
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

import handler
import runpod_sdk
import shutdown
import speech.models.aligner as align
import speech.models.recogniser as asr
from recording.chunk import SAMPLE_RATE
from speech.admission import Gate

MAX_CHECK_SECONDS = 2.0  # the fitness check's recording is shorter
WORDS_PER_SECOND = 2
PHRASE_SECONDS, PAUSE_SECONDS = 5.0, 1.0
LOUD = 3000  # standard deviation of the samples; speech to the voice detector


def spoken(seconds: float) -> np.ndarray:
    """(samples,) int16 of noise with pauses, which the voice detector takes for speech."""
    rng = np.random.default_rng(1)
    pcm = rng.normal(0, LOUD, round(seconds * SAMPLE_RATE))
    period, pause = (
        round((PHRASE_SECONDS + PAUSE_SECONDS) * SAMPLE_RATE),
        round(PAUSE_SECONDS * SAMPLE_RATE),
    )
    for start in range(0, len(pcm), period):
        pcm[start : start + pause] = 0
    return pcm.clip(-32768, 32767).astype(np.int16)


class Aligner(align.Aligner):
    """The worker's aligner with even marks. Its thread calls `before_marks` for each batch."""

    def __init__(self, before_marks=lambda batch: None):
        self._before_marks = before_marks
        self._batch_seconds = 480
        self._preparers = ThreadPoolExecutor(1, "aligner-input")
        self._prepare_gate = Gate(1)
        self._queue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="aligner", daemon=True)
        self._thread.start()

    def _prepared(self, chunk, text, language, spectrum):
        return align._Task(chunk, text, text.split(), None, None, Future())

    def _marks(self, batch) -> Iterator[list[int]]:
        self._before_marks(batch)
        for task in batch:
            step = 1000 * task.chunk.duration / len(task.units)
            yield [round(step * mark) for i in range(len(task.units)) for mark in (i, i + 1)]


class Recogniser(asr.Recogniser):
    """The worker's recogniser without engine. Its loop awaits `before_answer` for each decode."""

    dead = False

    def __init__(self, before_answer, capacity: int = 4):
        self._before_answer = before_answer
        self.capacity = capacity
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        self._sockets = tempfile.TemporaryDirectory(prefix="engine-")
        self._processes = []

    async def _transcribe(
        self, chunk, language, context, temperature, vocabulary, with_tokens
    ) -> asr.Hypothesis:
        await self._before_answer(chunk)
        count = max(1, round(WORDS_PER_SECOND * chunk.speech_seconds))
        text = " ".join(f"word{chunk.index}x{i}" for i in range(count))
        return asr.Hypothesis(text, language or "English", "stop", count)

    async def _shut_down(self) -> None:
        pass


def hang_for_ever() -> None:
    while True:
        time.sleep(60)


class HangingAligner(Aligner):
    def __init__(self):
        super().__init__(self._hang)

    def _hang(self, batch) -> None:
        if any(task.chunk.duration > MAX_CHECK_SECONDS for task in batch):
            hang_for_ever()


class HangingRecogniser(Recogniser):
    """Neither answers nor shuts down."""

    def __init__(self):
        super().__init__(self._hang)

    async def _hang(self, chunk) -> None:
        if chunk.duration > MAX_CHECK_SECONDS:
            await asyncio.Event().wait()

    async def _shut_down(self) -> None:
        hang_for_ever()


class AlignerThatDoesNotClose(Aligner):
    def close(self) -> None:
        hang_for_ever()


async def answer_soon(chunk) -> None:
    await asyncio.sleep(0.05)


def models(fault: str) -> tuple[Recogniser, Aligner]:
    aligner = {"aligner": HangingAligner, "close": AlignerThatDoesNotClose}.get(fault, Aligner)()
    recogniser = HangingRecogniser() if fault == "engine" else Recogniser(answer_soon)
    return recogniser, aligner


def main(fault: str) -> None:
    asr.MAX_CLOSE_SECONDS = align.MAX_CLOSE_SECONDS = 2
    runpod_sdk.MAX_SEND_SECONDS_AT_END = 3
    if fault == "close":
        shutdown.MAX_CLOSE_SECONDS = 4
    handler.start_models = lambda settings: models(fault)
    handler.main()


if __name__ == "__main__":
    fault = sys.argv.pop(1) if sys.argv[1:2] and not sys.argv[1].startswith("-") else ""
    main(fault)  # the SDK reads the rest of the command line
