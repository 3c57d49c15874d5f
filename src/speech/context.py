"""The context of each chunk: the end of the text before it, in its own channel.

Knows no models and no samples.
"""

import asyncio

from recording.chunk import AudioChunk
from speech.text_units import join
from speech.words import ChunkResult

CONTEXT_CHARACTERS = 200  # with use_previous_context a chunk gets the end of the text before it

Answer = asyncio.Task[list[ChunkResult]]


class Contexts:
    """The contexts of one recording, of which every channel has a chain of its own."""

    def __init__(self, initial: str, use_previous: bool):
        """`initial`: the context of the first chunk of every channel."""
        self._initial = initial
        self._use_previous = use_previous
        # The last chunk of each channel: its context and its answer.
        self._last: dict[int | None, tuple[str, Answer]] = {}

    async def of_next(self, chunk: AudioChunk) -> str:
        """The context of a chunk: the end of the text before it, or that text's own context.

        It waits for that text. Raises what the task of that text raises.
        """
        if chunk.channel not in self._last:
            return self._initial
        if not self._use_previous:
            return ""
        context, answer = self._last[chunk.channel]
        text, _ = join([result.text for result in await answer])
        return text[-CONTEXT_CHARACTERS:] or context

    def keep(self, chunk: AudioChunk, context: str, answer: Answer) -> None:
        """`answer` is to a chunk with this context, the last one of its channel so far."""
        self._last[chunk.channel] = context, answer
