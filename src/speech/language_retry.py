"""Short chunks in a language of their own: recognised again in the main language.

The detection may be wrong in a short chunk. This is the retry with the reason `language`. It
compares the chunks of a recording, so it comes after all of them. Knows no models.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from recording.chunk import AudioChunk
from speech.admission import Gate, Holder, chunk_priority
from speech.models.recogniser import Vocabulary
from speech.retries import transcribe_chunk
from speech.together import together
from speech.watched_models import WatchedModels
from speech.words import ChunkResult, by_channel, dominant_language, speech_seconds

SHORT_SPEECH_SECONDS = 3.0  # in less speech than this the detected language may be wrong
MAX_CHUNKS_KEPT = 32  # a bound for the memory that the samples of one recording take


class LanguageOutliers:
    """The short chunks of one recording, kept until its main language is known."""

    def __init__(self) -> None:
        # By their channel and their start in seconds.
        self._short: dict[tuple[int | None, float], AudioChunk] = {}

    def keep_if_short(self, chunk: AudioChunk) -> None:
        """Keep a chunk that may have to be recognised again."""
        if chunk.speech_seconds < SHORT_SPEECH_SECONDS and len(self._short) < MAX_CHUNKS_KEPT:
            self._short[chunk.channel, chunk.start] = chunk

    async def retried(
        self,
        results: Sequence[ChunkResult],
        vocabulary: Vocabulary,
        models: WatchedModels,
        gate: Gate,
    ) -> list[ChunkResult]:
        """All results of a recording, each outlier replaced by its retry where that is healthy.

        Every channel has a main language of its own. A retry waits at the gate as every chunk does.
        Raises EngineDead.
        """
        language_of: dict[ChunkResult, str | None] = {}  # the one to retry each outlier in
        for of_channel in by_channel(results).values():
            for outlier in outliers_in(of_channel):
                if (outlier.channel, outlier.start) in self._short:
                    language_of[outlier] = dominant_language(of_channel)
        holder = Holder()

        async def retry(outlier: ChunkResult) -> ChunkResult:
            chunk = self._short[outlier.channel, outlier.start]
            language = language_of[outlier]
            async with gate.place(holder, chunk_priority(chunk.index)):
                again = await transcribe_chunk(chunk, language, "", vocabulary, models)
            is_better = len(again) == 1 and again[0].healthy
            return replace(again[0], retries=("language",)) if is_better else outlier

        retries = await together(*(retry(outlier) for outlier in language_of))
        retry_of = dict(zip(language_of, retries))
        return [retry_of.get(result, result) for result in results]


def outliers_in(results: Sequence[ChunkResult]) -> list[ChunkResult]:
    """Results of short chunks that are each the only one of their language and have had no retry.

    There are none unless the main language has at least SHORT_SPEECH_SECONDS of speech.
    """
    main = dominant_language(results)
    if main is None or speech_seconds(results)[main] < SHORT_SPEECH_SECONDS:
        return []
    with_text = [result for result in results if result.text and result.language]
    chunks_in = Counter(result.language for result in with_text)
    return [
        result
        for result in with_text
        if result.language != main
        and chunks_in[result.language] == 1
        and not result.retries
        and result.speech_seconds < SHORT_SPEECH_SECONDS
    ]
