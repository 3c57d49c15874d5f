"""Frames of any format, layout and rate → mono, or every channel by itself, at one rate."""

from contextlib import suppress

import av
from channels import (
    EACH,
    MAX_CHANNELS,
    MAX_EACH,
    Filter,
    Phase,
    as_one_channel,
    each_filter,
    mono_filters,
)
from report import FileRefused

# Each call of the graph has a cost, and for larger blocks than this malloc calls the kernel. A
# frame that is longer than a second is taken in parts.
RESAMPLE_SECONDS = 0.25


class Resampler:
    """Frames → samples at `rate`: one channel, all mixed, or EACH by itself, interleaved.

    With EACH there are as many channels as the first frame has, whatever later ones have.
    Where the channels cancel each other in the mix, the louder one is taken. The samples do not
    depend on the sizes of the frames. `no_films`: as for `mono_filters`.
    """

    def __init__(
        self,
        rate: int,
        channel: int | str | None = None,
        sample_format: str = "s16",
        no_films: bool = False,
    ):
        self._rate = rate
        self._channel = channel
        self._no_films = no_films
        self._sample_format = sample_format
        self._source: tuple[str, str, int] | None = None  # format, layout and rate of the frames
        self._fifo: av.AudioFifo | None = None
        self._graph: av.filter.Graph | None = None
        self._heard: int | str | None = None  # the channel that the graph picks
        self._phase: Phase | None = None
        self._has_mixed = False  # Behind good audio, what cannot be mixed is damage.
        self.channels = 0  # of the last frame
        self.width = 0 if channel == EACH else 1  # interleaved channels; 0 before the first frame
        self.instead_of_mix: set[int] = set()  # channels that were taken because the mix cancels
        self.left_out = 0  # with EACH, the most channels that a frame had beyond `width`

    def push(self, frame: av.AudioFrame) -> bytes:
        """Take a frame; returns the samples that are ready, often none.

        Raises FileRefused where the frame does not have the channel, or cannot be mixed.
        """
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        # It may change within a file.
        before = b"" if source == self._source else self._begin(frame, source)
        if self.channels > MAX_CHANNELS and not frame.format.is_planar:
            frame = as_one_channel(frame, self._channel)
        frame.pts = None  # Samples follow one another; timestamps of damaged files do not.
        self._fifo.write(frame)
        min_samples = RESAMPLE_SECONDS * frame.sample_rate
        if self._fifo.samples < min_samples:
            return before
        ready = [before]
        while self._fifo.samples >= min_samples:
            block = self._fifo.read(min(self._fifo.samples, frame.sample_rate))
            ready.append(self._resample(block))
        return b"".join(ready)

    def _begin(self, frame: av.AudioFrame, source: tuple[str, str, int]) -> bytes:
        """Frames like this one come next; returns the rest of those before it."""
        self._check_channel(frame.layout.nb_channels)
        rest = self.finish()
        self._source = source
        self.channels = frame.layout.nb_channels
        self.width = self.width or self.channels
        if self._channel == EACH:
            self.left_out = max(self.left_out, self.channels - self.width)
        self._fifo = av.AudioFifo()
        self._phase = Phase(frame)
        return rest

    def finish(self) -> bytes:
        """The rest; the next frame begins a new stream."""
        if self._source is None:
            return b""
        rest = self._resample(self._fifo.read()) if self._fifo.samples else b""
        self._source = None
        return rest + self._drain()

    def _resample(self, block: av.AudioFrame) -> bytes:
        """The samples that are ready after this block."""
        heard, before = self._heard_in(block), b""
        if self._graph is None or heard != self._heard:
            before = self._drain()
            self._graph = self._graph_for(block, heard)
            self._heard = heard
        if self._graph is None:
            return before + self._silence(block)
        self._has_mixed = True
        self._graph.push(block)
        return before + self._pull()

    def _silence(self, block: av.AudioFrame) -> bytes:
        """As many samples as this block would become."""
        samples = round(block.samples * self._rate / block.sample_rate)
        return bytes(samples * self.width * av.AudioFormat(self._sample_format).bytes)

    def _heard_in(self, block: av.AudioFrame) -> int | str | None:
        """The channel to take of this block; None for the mix, or EACH."""
        if self.channels > MAX_CHANNELS:
            return None
        if self._channel is not None or self._phase is None:
            return self._channel
        heard = self._phase.channel_for(block)
        if heard is not None:
            self.instead_of_mix.add(heard)
        return heard

    def _graph_for(self, block: av.AudioFrame, heard: int | str | None) -> av.filter.Graph | None:
        """None where damage gave the block channels in a form that cannot be mixed."""
        layout = block.layout
        to_mono = "" if heard == EACH else ":ochl=mono:rematrix_maxval=1"
        if isinstance(heard, str):
            filters = [each_filter(layout.nb_channels, self.width)]
        else:
            filters = mono_filters(layout.name, layout.nb_channels, heard, self._no_films)
        filters.append(("aresample", f"osf=fltp{to_mono}"))
        try:
            return _resampling_graph(block, filters, self._rate, self._sample_format)
        except (av.error.FFmpegError, ValueError) as error:
            if self._has_mixed:
                return None
            raise FileRefused(
                "undecodable",
                f"The audio at audio_url has {layout.nb_channels} channels in a form that cannot "
                "be mixed.",
            ) from error

    def _drain(self) -> bytes:
        """The samples that the graph still holds."""
        if self._graph is None:
            return b""
        self._graph.push(None)
        rest = self._pull()
        self._graph = None
        return rest

    def _pull(self) -> bytes:
        blocks = []
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                out = self._graph.pull()
                size = out.samples * out.format.bytes * self.width
                blocks.append(bytes(out.planes[0])[:size])  # is padded
        return b"".join(blocks)

    def _check_channel(self, held: int) -> None:
        if self._channel == EACH and held > MAX_EACH:
            raise FileRefused(
                "no channel",
                f"channel is 'each', but the audio at audio_url has {held} channels; at most "
                f"{MAX_EACH} can be transcribed in one job, and channel can be the number of one.",
            )
        if not isinstance(self._channel, int) or self._channel < held:
            return
        channels = (
            "1 channel, number 0" if held == 1 else f"{held} channels, numbers 0 to {held - 1}"
        )
        raise FileRefused(
            "no channel",
            f"channel is {self._channel}; the audio at audio_url has only {channels}.",
        )


def _resampling_graph(
    like: av.AudioFrame, filters: list[Filter], rate: int, sample_format: str
) -> av.filter.Graph:
    """For frames like this one. `filters` come before the rate changes.

    FFmpeg by itself would resample each channel.
    """
    graph = av.filter.Graph()
    graph.threads = 1  # More are no faster, and sandbox.py allows none.
    source = graph.add(
        "abuffer",
        sample_fmt=like.format.name,
        channel_layout=like.layout.name,
        sample_rate=str(like.sample_rate),
        time_base=f"1/{like.sample_rate}",
    )
    graph.link_nodes(
        source,
        *(graph.add(name, options) for name, options in filters),
        graph.add("aformat", f"sample_fmts={sample_format}:sample_rates={rate}"),
        graph.add("abuffersink"),
    ).configure()
    return graph
