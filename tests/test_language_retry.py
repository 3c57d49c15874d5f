"""Short chunks in a language of their own are recognised again, as any chunk is: at the gate."""

import asyncio

import pytest
from contract.errors import EngineDead
from material import silence
from recording.chunk import SAMPLE_RATE, AudioChunk
from speech.admission import Gate
from speech.language_retry import LanguageOutliers
from speech.models.recogniser import EMPTY_VOCABULARY, Hypothesis
from speech.word_times import estimated_words
from speech.words import ChunkResult

OTHERS = ("German", "French", "Italian", "Spanish", "Greek", "Polish", "Dutch", "Czech", "Danish")
PLACES = 2


def result(index: int, language: str, seconds: float) -> ChunkResult:
    return ChunkResult(10.0 * index, 10.0 * index + seconds, seconds, "one", language)


class Models:
    """Answer in the language asked for. With `failing` the first call finds a dead engine."""

    with_words = True

    def __init__(self, failing: bool = False):
        self.inside = self.most = self.cancelled = self.calls = 0
        self._failing = failing

    async def recognise(self, chunk, language, context, temperature, vocabulary):
        self.calls += 1
        is_first = self.calls == 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            for _ in range(5):
                await asyncio.sleep(0)
            if self._failing and is_first:
                raise EngineDead("dead")
            if self._failing:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1
        return Hypothesis("two", language, "stop", 1)

    async def align(self, chunk, text, language, spectrum):
        return estimated_words(chunk, text), None


async def retried(models: Models, gate: Gate) -> list[ChunkResult]:
    """The results of ten chunks, after the retries of the nine short ones."""
    outliers = LanguageOutliers()
    results = [result(0, "English", 5.0)]
    for i, language in enumerate(OTHERS, 1):
        chunk = AudioChunk(i, 10 * i * SAMPLE_RATE, silence(1), ((0, SAMPLE_RATE),))
        outliers.keep_if_short(chunk)
        results.append(result(i, language, 1.0))
    async with asyncio.timeout(30):
        return await outliers.retried(results, EMPTY_VOCABULARY, models, gate)


async def test_retries_wait_at_the_gate_as_every_chunk_does():
    models, gate = Models(), Gate(PLACES)
    results = await retried(models, gate)
    assert models.calls == len(OTHERS) and models.most == PLACES
    assert [r.retries for r in results] == [(), *[("language",)] * len(OTHERS)]
    assert gate._free == PLACES


async def test_a_dead_engine_ends_the_other_retries_too():
    models, gate = Models(failing=True), Gate(PLACES)
    with pytest.raises(EngineDead):
        await retried(models, gate)
    assert models.inside == 0 and models.cancelled == models.calls - 1 > 0
    assert gate._free == PLACES
