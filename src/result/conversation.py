"""Transcripts of the channels of one recording → one transcript, sentence by sentence.

A sentence comes before all that start later in any channel. So the text reads as the conversation
went, and each word and sentence is still a slice of it. Knows nothing of samples, models or RunPod.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from contract.languages import LANGUAGES
from recording.pcm_stream import PcmStream
from result.script import in_script
from result.transcript import Output, Segment, Transcript, merge
from speech.text_units import join
from speech.tokens import Token
from speech.words import ChunkResult, by_channel


@dataclass(frozen=True, slots=True)
class Turn:
    """A sentence of one channel, or a chunk's text where there are no word times.

    The marks and the white space behind it belong to it.
    """

    start: float
    channel: int
    begin: int  # the slice of the text of the channel
    end: int


@dataclass(frozen=True, slots=True)
class Conversation(Transcript):
    """A transcript whose `text` has the turns of all channels in the order of their starts."""

    transcripts: tuple[tuple[int, Transcript], ...] = ()  # (number of the channel, its transcript)
    turns: tuple[Turn, ...] = ()  # their offsets in `text` are `offsets`

    @property
    def parts(self) -> tuple[Transcript, ...]:
        """The transcripts of the channels."""
        return tuple(transcript for _, transcript in self.transcripts)

    @property
    def duration(self) -> float:
        """Seconds of audio in the recording or its part, which is that of every channel."""
        return self.parts[0].duration

    def words(self, punctuation: bool) -> Iterator[Segment]:
        """Every word, sentence by sentence; otherwise as in a Transcript."""
        return self._in_turns([list(part.words(punctuation)) for part in self.parts])

    def sentences(self) -> list[Segment]:
        """The sentences of all channels in the order of their starts."""
        return list(self._in_turns([part.sentences() for part in self.parts]))

    def chunk_segments(self) -> Iterator[Segment]:
        """The text of each chunk as one segment, for channels without word times."""
        return self._in_turns([list(part.chunk_segments()) for part in self.parts])

    def _in_turns(self, of_channels: Sequence[Sequence[Segment]]) -> Iterator[Segment]:
        """The segments of every channel, in the order of the turns that they are in."""
        numbers = [number for number, _ in self.transcripts]
        unread = {number: iter(segments) for number, segments in zip(numbers, of_channels)}
        following = {number: next(segments, None) for number, segments in unread.items()}
        for turn, offset in zip(self.turns, self.offsets):
            segment = following[turn.channel]
            while segment and segment.offset < turn.end:
                moved = segment.offset - turn.begin + offset
                yield replace(segment, offset=moved, channel=turn.channel)
                segment = next(unread[turn.channel], None)
            following[turn.channel] = segment

    def tokens_in(self, start: int, end: int) -> list[Token]:
        """The tokens of a slice of the text within one turn."""
        part, moved = self._place(start)
        return part.tokens_in(start - moved, end - moved)

    def chunk_of(self, segment: Segment) -> ChunkResult:
        """The chunk with the first character of a segment."""
        part, moved = self._place(segment.offset)
        return part.chunk_of(replace(segment, offset=segment.offset - moved))

    def _place(self, position: int) -> tuple[Transcript, int]:
        """(the transcript of the channel, how far its text is moved) at a position of `text`."""
        index = bisect_right(self.offsets, position) - 1
        turn = self.turns[index]
        return dict(self.transcripts)[turn.channel], self.offsets[index] - turn.begin

    def common_fields(self) -> Output:
        """Those of a Transcript, and the text and the language of each channel."""
        channels = [
            {
                "channel": number,
                "language_detected": transcript.language,
                "language_code": LANGUAGES.get(transcript.language or ""),
                "text": transcript.text,
            }
            for number, transcript in self.transcripts
        ]
        # Explicit: a dataclass with slots is not the class that super() without arguments means.
        return Transcript.common_fields(self) | {"channels": channels}


def merge_channels(
    results: Sequence[ChunkResult], pcm: PcmStream, script: str | None = None
) -> Transcript:
    """The transcript of a recording, of which all samples are decoded.

    Chinese text is written in `script`. For ten hours of two channels it takes seconds.
    """
    results = [in_script(result, script) for result in results]
    if not pcm.channels:
        return merge(results, pcm.end, pcm.warnings, pcm.start, pcm.damaged_spans)
    chunks_of = by_channel(results)
    transcripts = tuple(
        (number, merge(chunks_of.get(number, ()), pcm.end, start=pcm.start, channel=number))
        for number in pcm.channels
    )
    turns = sorted(
        (turn for number, transcript in transcripts for turn in _turns_of(number, transcript)),
        key=lambda turn: (turn.start, turn.channel, turn.begin),
    )
    spans = [span for _, transcript in transcripts for span in transcript.spans]
    text, offsets = _joined(turns, dict(transcripts))
    return Conversation(
        text,
        tuple(sorted(results, key=lambda chunk: chunk.start)),
        tuple(offsets),
        tuple(sorted(spans, key=lambda span: span.start)),
        tuple(pcm.warnings),
        tuple(pcm.damaged_spans),
        transcripts,
        tuple(turns),
    )


def _turns_of(channel: int, transcript: Transcript) -> list[Turn]:
    """Turns that tile the text of a channel."""
    if not transcript.text:
        return []
    segments = transcript.sentences() or list(transcript.chunk_segments())
    edges = [0, *(segment.offset for segment in segments[1:]), len(transcript.text)]
    return [
        Turn(segment.start, channel, begin, end)
        for segment, begin, end in zip(segments, edges, edges[1:])
    ]


def _joined(turns: Sequence[Turn], transcripts: dict[int, Transcript]) -> tuple[str, list[int]]:
    """(text of the turns, offset of each in it).

    Turns of one channel that follow each other stand as in its text.
    """
    runs: list[str] = []
    begins: list[tuple[int, int]] = []  # of each turn: (its run, its offset in the run)
    last: Turn | None = None
    for turn in turns:
        if last is None or turn.channel != last.channel:
            runs.append("")
        begins.append((len(runs) - 1, len(runs[-1])))
        runs[-1] += transcripts[turn.channel].text[turn.begin : turn.end]
        last = turn
    text, offsets = join([run.rstrip() for run in runs])
    return text, [offsets[run] + offset for run, offset in begins]
