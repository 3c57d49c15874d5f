"""Short chunks in a language of their own: recognised again in the main language, because the detection may be wrong.

This is the retry with the reason `language`. It compares the chunks of a recording, so it comes after all of them. Knows no models.
"""

from asyncio import gather
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from recording.chunk import AudioChunk
from speech.words import ChunkResult, dominant_language, speech_seconds

SHORT_SPEECH_SECONDS = 3.0  # in less speech than this the detected language may be wrong
MAX_CHUNKS_KEPT = 32  # of a recording, at most: a bound for the memory of their samples


class LanguageOutliers:
    """The short chunks of one recording, kept until its main language is known."""

    def __init__(self) -> None:
        self._short: dict[float, AudioChunk] = {}  # by their start

    def keep_if_short(self, chunk: AudioChunk) -> None:
        """Keep a chunk that may have to be recognised again."""
        if chunk.speech_seconds < SHORT_SPEECH_SECONDS and len(self._short) < MAX_CHUNKS_KEPT:
            self._short[chunk.start] = chunk

    async def retried(
        self,
        results: Sequence[ChunkResult],
        transcribe: Callable[[AudioChunk, str], Awaitable[list[ChunkResult]]],
    ) -> list[ChunkResult]:
        """All results of a recording; that of an outlier is replaced where the retry gave one healthy result.

        `transcribe` takes a chunk and the language to recognise it in.
        """
        language = dominant_language(results)
        outliers = [result for result in outliers_in(results) if result.start in self._short]
        retries = await gather(
            *(transcribe(self._short[outlier.start], language) for outlier in outliers)
        )
        better = {
            old: replace(new[0], retries=("language",))
            for old, new in zip(outliers, retries)
            if len(new) == 1 and new[0].healthy
        }
        return [better.get(result, result) for result in results]


def outliers_in(results: Sequence[ChunkResult]) -> list[ChunkResult]:
    """Results of short chunks that are each the only one of their language and have had no retry.

    There are none unless the main language has at least SHORT_SPEECH_SECONDS of speech.
    """
    main = dominant_language(results)
    if main is None or speech_seconds(results)[main] < SHORT_SPEECH_SECONDS:
        return []
    chunks_in = Counter(result.language for result in results if result.text)
    others = [r for r in results if r.text and r.language and r.language != main]
    return [
        r
        for r in others
        if chunks_in[r.language] == 1 and not r.retries and r.speech_seconds < SHORT_SPEECH_SECONDS
    ]
