"""What a job costs: measured while it runs, reported with its result.

Stages overlap, and so do chunks within recognition and alignment. The seconds of a stage are summed
over its calls, so they can be more than the job took. Knows nothing of models, RunPod or the text.
"""

import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contract.settings import Settings
from contract.version import VERSION
from recording.chunk import AudioChunk
from speech.models.recogniser import Hypothesis

STAGES = ("download", "decoding", "waiting", "recognition", "alignment")


class Usage:
    """Counts and times of one job; its start is the construction."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._speech_seconds = 0.0
        self._chunks = self._recognitions = self._input_tokens = self._output_tokens = 0

    @property
    def seconds(self) -> float:
        """Seconds since the job's start."""
        return time.monotonic() - self._began

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the seconds within the context to one of STAGES."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[stage] += time.monotonic() - began

    async def chunks(self, chunks: AsyncIterable[AudioChunk]) -> AsyncIterator[AudioChunk]:
        """The same chunks, counted; the wait for each counts as "decoding"."""
        source = aiter(chunks)
        while True:
            with self.time("decoding"):
                chunk = await anext(source, None)
            if chunk is None:
                return
            self._chunks += 1
            self._speech_seconds += chunk.speech_seconds
            yield chunk

    def count_recognition(self, hypothesis: Hypothesis | None) -> None:
        """Count one call of the recogniser. `hypothesis`: its answer, None where it gave none."""
        self._recognitions += 1
        if hypothesis:
            self._input_tokens += hypothesis.prompt_tokens
            self._output_tokens += hypothesis.num_tokens

    def to_output(self, audio_seconds: float, settings: Settings) -> dict[str, Any]:
        """Plain JSON values; seconds to the millisecond."""
        total = self.seconds
        return {
            "audio_seconds": round(audio_seconds, 3),
            "speech_seconds": round(self._speech_seconds, 3),
            "chunks": self._chunks,
            "recognitions": self._recognitions,
            "retries": self._recognitions - self._chunks,
            "input_tokens": self._input_tokens,
            "output_tokens": self._output_tokens,
            **{f"{stage}_seconds": round(seconds, 3) for stage, seconds in self._seconds.items()},
            "total_seconds": round(total, 3),
            "real_time_factor": round(total / audio_seconds, 4),
            "model": _public_name(settings.model_name),
            "model_revision": settings.model_revision,
            "aligner": _public_name(settings.aligner_name),
            "aligner_revision": settings.aligner_revision,
            "worker_version": VERSION,
        }


def _public_name(model: str) -> str:
    """The model's name, or the last part of its path: clients see no paths of the worker."""
    return Path(model).resolve().name if Path(model).is_dir() else model
