"""The account of a recording: every second is transcribed, silent, or failed with a reason.

Knows nothing of text. Times are floats in seconds from the start of the recording.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from contract.errors import TranscriptIncomplete
from speech.words import ChunkResult, by_channel


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the recording, or of one channel.

    Its state is "transcribed", "silent" or "failed".
    """

    start: float
    end: float
    state: str
    reason: str | None = None  # why a failed span has no text
    channel: int | None = None

    def to_output(self) -> dict[str, Any]:
        """A failed span as plain JSON values; seconds to the millisecond."""
        output = {"start": round(self.start, 3), "end": round(self.end, 3), "reason": self.reason}
        return output if self.channel is None else output | {"channel": self.channel}


class Admitted(NamedTuple):
    """A chunk that was sent to be transcribed: its channel, its start and its end in seconds."""

    channel: int | None
    start: float
    end: float


class LostResults(Exception):
    """The results do not tile the chunks that were admitted: some text would be missing."""


def check_account(results: Sequence[ChunkResult], admitted: Sequence[Admitted]) -> None:
    """Raise LostResults unless the results tile each admitted chunk, and nothing else.

    `admitted`: the chunks, those of each channel in order. Times are compared exactly, because the
    chunk and its results compute them from the same samples.
    """
    left = {
        channel: sorted(((chunk.start, chunk.end) for chunk in chunks), reverse=True)
        for channel, chunks in by_channel(results).items()
    }
    for channel, start, end in admitted:
        of_channel, covered = left.get(channel, []), start
        while covered < end and of_channel and of_channel[-1][0] == covered:
            _, covered = of_channel.pop()
        if covered != end:
            raise LostResults(f"no result from {covered:.3f} s in the chunk to {end:.3f} s")
    for of_channel in left.values():
        if of_channel:
            raise LostResults(f"a result from {of_channel[-1][0]:.3f} s is in no chunk")


def raise_if_incomplete(results: Sequence[ChunkResult]) -> None:
    """Raise TranscriptIncomplete where some of the results are failures."""
    failed = [result for result in results if result.failure]
    if failed:
        spans = [_span_of(result) for result in failed]
        raise TranscriptIncomplete.in_spans([span.to_output() for span in spans])


def coverage(
    chunks: Sequence[ChunkResult], end: float, start: float = 0.0, channel: int | None = None
) -> Iterator[Span]:
    """Spans that tile [start, end]: the chunks, which are of `channel`, and the silence between."""
    at = start
    for chunk in chunks:
        if chunk.start > at:
            yield Span(at, chunk.start, "silent", channel=channel)
        yield _span_of(chunk)
        at = chunk.end
    if end > at:
        yield Span(at, end, "silent", channel=channel)


def _span_of(chunk: ChunkResult) -> Span:
    state = "failed" if chunk.failure else "transcribed"
    return Span(chunk.start, chunk.end, state, chunk.failure, chunk.channel)
