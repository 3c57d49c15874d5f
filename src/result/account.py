"""The account of a recording: every second is transcribed, silent, or failed with a reason.

Knows nothing of text. Times are floats in seconds from the start of the recording.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from contract.errors import TranscriptIncomplete
from speech.words import ChunkResult


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the recording. Its state is "transcribed", "silent" or "failed"."""

    start: float
    end: float
    state: str
    reason: str | None = None  # why a failed span has no text

    def to_output(self) -> dict[str, Any]:
        """A failed span as plain JSON values; seconds to the millisecond."""
        return {"start": round(self.start, 3), "end": round(self.end, 3), "reason": self.reason}


class LostResults(Exception):
    """The results do not tile the chunks that were admitted: some text would be missing."""


def check_account(results: Sequence[ChunkResult], admitted: Sequence[tuple[float, float]]) -> None:
    """Raise LostResults unless the results tile each admitted chunk, and nothing else.

    `admitted`: (start, end) of the chunks in seconds, in order. Times are compared exactly, because
    the chunk and its results compute them from the same samples.
    """
    spans = [(result.start, result.end) for result in results]
    left = sorted(spans, reverse=True)
    for start, end in admitted:
        covered = start
        while covered < end and left and left[-1][0] == covered:
            _, covered = left.pop()
        if covered != end:
            raise LostResults(f"no result from {covered:.3f} s in the chunk to {end:.3f} s")
    if left:
        raise LostResults(f"a result from {left[-1][0]:.3f} s is in no chunk")


def raise_if_incomplete(results: Sequence[ChunkResult]) -> None:
    """Raise TranscriptIncomplete where some of the results are failures."""
    failed = [result for result in results if result.failure]
    if failed:
        spans = [Span(result.start, result.end, "failed", result.failure) for result in failed]
        raise TranscriptIncomplete.in_spans([span.to_output() for span in spans])


def coverage(chunks: Sequence[ChunkResult], end: float, start: float = 0.0) -> Iterator[Span]:
    """Spans that tile [start, end]: the chunks, and the silence between them."""
    at = start
    for chunk in chunks:
        if chunk.start > at:
            yield Span(at, chunk.start, "silent")
        state = "failed" if chunk.failure else "transcribed"
        yield Span(chunk.start, chunk.end, state, chunk.failure)
        at = chunk.end
    if end > at:
        yield Span(at, end, "silent")
