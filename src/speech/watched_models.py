"""Both models as one job uses them: in limited time, watched for failures, counted in its usage.

Knows no retries, no gate and nothing of how the models work.
"""

import asyncio
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from contract.errors import AlignError, RecognitionError
from contract.languages import ALIGNED_LANGUAGES
from recording.chunk import AudioChunk
from runpod import RunPodLogger
from speech.faults import is_broken, letters_in
from speech.health import Health
from speech.models.aligner import Aligner
from speech.models.recogniser import Hypothesis, Recogniser, Vocabulary
from speech.word_times import estimated_words
from speech.words import Word

if TYPE_CHECKING:
    from torch import Tensor

log = RunPodLogger()


class Meter(Protocol):
    """What counts the cost of a job, as `result.usage.Usage` does."""

    def time(self, stage: str) -> AbstractContextManager[None]:
        """Add the seconds within the context to the stage "recognition" or "alignment"."""

    def count_recognition(self, hypothesis: Hypothesis | None) -> None:
        """Count one call of the recogniser, whose answer is None where it gave none."""


@dataclass(frozen=True, slots=True)
class WatchedModels:
    """The recogniser and the aligner for the chunks of one job."""

    asr: Recogniser
    aligner: Aligner
    health: Health
    timeout_seconds: float  # a call of a model takes at most this
    usage: Meter
    with_tokens: bool = False  # the answers tell the probabilities of their tokens
    with_words: bool = True  # the aligner is asked for the times of the words

    async def recognise(
        self,
        chunk: AudioChunk,
        language: str | None,
        context: str,
        temperature: float,
        vocabulary: Vocabulary,
    ) -> Hypothesis:
        """One answer of the recogniser, as by `Recogniser.transcribe`.

        An answer without letters and numbers is silence: it has no text and no language.
        Raises EngineDead, TimeoutError, or RecognitionError where the engine refuses the chunk or
        its answer is that of a broken GPU.
        """
        hypothesis = None
        try:
            async with asyncio.timeout(self.timeout_seconds):
                with self.usage.time("recognition"):
                    hypothesis = await self.asr.transcribe(
                        chunk, language, context, temperature, vocabulary, self.with_tokens
                    )
            if is_broken(hypothesis):
                raise RecognitionError(
                    f"The answer for {chunk.start:.3f}-{chunk.end:.3f} s is exclamation marks "
                    "up to its token limit."
                )
        except (RecognitionError, TimeoutError) as error:
            await self.health.failed("engine", hung=isinstance(error, TimeoutError))
            raise
        finally:
            self.usage.count_recognition(hypothesis)
        self.health.worked("engine")
        if not letters_in(hypothesis.text):
            return replace(hypothesis, text="", language=None, tokens=())
        return hypothesis

    async def align(
        self, chunk: AudioChunk, text: str, language: str | None, spectrum: "Tensor | None"
    ) -> tuple[tuple[Word, ...], str | None]:
        """(words, warning): the words of `text` with their times.

        Where the aligner fails or does not know the language, the times are estimated and the
        warning says why. `spectrum`: (mel bands, frames) float of the chunk, where the recogniser
        has computed it. Raises EngineDead.
        """
        if language and language not in ALIGNED_LANGUAGES:
            warning = f"Times of {language} are estimated: there is no aligner for it."
            return await asyncio.to_thread(estimated_words, chunk, text), warning
        try:
            async with asyncio.timeout(self.timeout_seconds):
                with self.usage.time("alignment"):
                    words = await self.aligner.align(chunk, text, language, spectrum)
        except (AlignError, TimeoutError) as error:
            if isinstance(error, TimeoutError) or error.unexplained:
                await self.health.failed("aligner")
            reason = str(error) or "The aligner did not answer in time."
            log.warn(f"times of the chunk at {chunk.start:.3f} s are estimated: {reason}")
            words = await asyncio.to_thread(estimated_words, chunk, text)
            return words, f"Times are estimated. {reason}"
        self.health.worked("aligner")
        return words, None
