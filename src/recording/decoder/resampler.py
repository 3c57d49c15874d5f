"""Frames of any format, layout and rate → int16 mono at one rate."""

from contextlib import suppress

import av
from report import FileRefused

# Each call of the graph has a cost, and for larger blocks than this malloc calls the kernel.
RESAMPLE_SECONDS = 0.25


class Resampler:
    """Frames → int16 mono at `rate`, of one channel or all mixed.

    The samples do not depend on the sizes of the frames.
    """

    def __init__(self, rate: int, channel: int | None = None):
        self._rate = rate
        self._channel = channel
        self._source: tuple[str, str, int] | None = None  # format, layout and rate of the frames
        self._graph: av.filter.Graph | None = None
        self._fifo: av.AudioFifo | None = None

    def push(self, frame: av.AudioFrame) -> bytes:
        """Take a frame; returns the samples that are ready, often none.

        Raises FileRefused where the frame does not have the channel.
        """
        before = b""
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        if source != self._source:  # It may change within a file.
            self._check_channel(frame.layout.nb_channels)
            graph = _resampling_graph(*source, self._rate, self._channel)
            before = self.finish()
            self._source, self._graph, self._fifo = source, graph, av.AudioFifo()
        frame.pts = None  # Samples follow one another; timestamps of damaged files do not.
        self._fifo.write(frame)
        if self._fifo.samples < RESAMPLE_SECONDS * frame.sample_rate:
            return before
        return before + self._resample(self._fifo.read())

    def finish(self) -> bytes:
        """The rest; the next frame begins a new stream."""
        if self._graph is None:
            return b""
        rest = self._resample(self._fifo.read()) if self._fifo.samples else b""
        rest += self._resample(None)
        self._graph = self._source = None
        return rest

    def _resample(self, frame: av.AudioFrame | None) -> bytes:
        """None: the samples that the graph still holds."""
        self._graph.push(frame)
        blocks = []
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                out = self._graph.pull()
                blocks.append(bytes(out.planes[0])[: out.samples * 2])  # a plane is padded
        return b"".join(blocks)

    def _check_channel(self, held: int) -> None:
        if self._channel is None or self._channel < held:
            return
        channels = (
            "1 channel, number 0" if held == 1 else f"{held} channels, numbers 0 to {held - 1}"
        )
        raise FileRefused(
            "no channel",
            f"channel is {self._channel}; the audio at audio_url has only {channels}.",
        )


def _resampling_graph(
    sample_format: str, layout: str, source_rate: int, rate: int, channel: int | None
) -> av.filter.Graph:
    """Channels are mixed, or one is picked, before the rate changes.

    FFmpeg by itself would resample each of them.
    """
    graph = av.filter.Graph()
    graph.threads = 1  # More are no faster, and sandbox.py allows none.
    source = graph.add(
        "abuffer",
        sample_fmt=sample_format,
        channel_layout=layout,
        sample_rate=str(source_rate),
        time_base=f"1/{source_rate}",
    )
    pick = [] if channel is None else [graph.add("pan", f"mono|c0=c{channel}")]
    graph.link_nodes(
        source,
        *pick,
        graph.add("aresample", "osf=fltp:ochl=mono:rematrix_maxval=1"),
        graph.add("aformat", f"sample_fmts=s16:sample_rates={rate}"),
        graph.add("abuffersink"),
    ).configure()
    return graph
