"""Packets of an audio track → int16 mono, one after another. Damaged or missing audio becomes silence or an error.

Part of the child process of pcm_stream.py: imports neither numpy nor asyncio.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from math import inf

import av

MAX_DAMAGED_SHARE = 0.02  # of all packets; up to this the time of damaged ones becomes silence
JUNK_RATIO = 4  # a damaged packet of this many times the mean size is several that the MP3 parser joined, with junk between them
GAP_SECONDS, MAX_GAP_SECONDS = (
    0.05,
    3600,
)  # jumps of the timestamps that become silence; a longer one is a broken clock
OVERHEAD_BYTES = 4096  # of a container between two packets, at most
RESAMPLE_SECONDS = (
    0.25  # of audio per call: each call has a cost, and for larger blocks malloc calls the kernel
)
MATROSKA, MP4 = "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"  # names of FFmpeg's demuxers


class FileRefused(Exception):
    """(kind, sentence) for the parent process."""


class Packets:
    """The packets of one track, to iterate once. Counts them, and estimates how many the demuxer skipped."""

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream):
        self._container, self._stream = container, stream
        # Matroska declares one length for all tracks: the others show whether the file is cut short or only its audio ends early
        watched = container.streams if container.format.name == MATROSKA else [stream]
        self._ticks = {each.index: float(each.time_base or 0) for each in watched}  # seconds
        self._ends = dict.fromkeys(self._ticks, 0.0)  # latest timestamps, in seconds
        self.count = self.bytes = 0
        self._skipped_time, self._skipped_bytes = 0.0, 0  # the time in durations of a packet

    @property
    def end(self) -> float:
        """The latest timestamp of the track so far, in seconds."""
        return self._ends[self._stream.index]

    @property
    def other_tracks_end(self) -> float:
        """The latest timestamp of the other tracks so far, in seconds; 0 where they are not watched."""
        return max(
            (end for index, end in self._ends.items() if index != self._stream.index), default=0.0
        )

    @property
    def skipped(self) -> int:
        """Estimated number of packets that the demuxer skipped; 0 in files with several tracks.

        Only what is missing both in time and in bytes counts: a gap in time alone is silence that was never sent, bytes alone are tags.
        """
        if len(self._container.streams) > 1:
            return 0
        return round(min(self._skipped_time, self._skipped_bytes * self.count / max(1, self.bytes)))

    def __iter__(self) -> Iterator[av.Packet]:
        """Raises FileRefused where damage of the container makes the rest unreadable."""
        place, place_bytes, expected_pts = (
            0,
            None,
            None,
        )  # place_bytes: of the packets at `place`; those of an Ogg page share one
        try:
            for packet in self._container.demux(
                *(self._container.streams[index] for index in self._ticks)
            ):
                size, pos, pts = packet.size, packet.pos, packet.pts
                index = packet.stream.index
                if pts is not None:
                    self._ends[index] = max(
                        self._ends[index], (pts + (packet.duration or 0)) * self._ticks[index]
                    )
                if index != self._stream.index:
                    continue
                if size:
                    self.count += 1
                    self.bytes += size
                if pos is not None:
                    if place_bytes is not None and pos - place - place_bytes > OVERHEAD_BYTES:
                        self._skipped_bytes += pos - place - place_bytes
                    place_bytes = size + place_bytes if place_bytes and pos == place else size
                    place = pos
                if pts is not None:
                    duration = packet.duration
                    if expected_pts is not None and pts > expected_pts and duration:
                        self._skipped_time += (pts - expected_pts) / duration
                    expected_pts = pts + (duration or 0)
                else:
                    expected_pts = None
                yield packet
        except av.error.EOFError:
            pass  # a file cut short: what came before the cut is good
        except av.error.InvalidDataError as error:
            raise FileRefused(
                "undecodable", "The file at audio_url is damaged and cannot be read to its end."
            ) from error


class Track:
    """Decodes packets to little-endian int16 mono at `rate`. Silence fills damage and gaps, so that later audio keeps its time.

    `channel`: the only one to decode, from 0; None mixes all.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.AudioStream,
        packets: Packets,
        rate: int,
        channel: int | None,
    ):
        self._may_end_in_tags = container.format.name == "mp3"
        # a FLAC packet is one frame: around damage the parser joins several, and PyAV 18 hides an error that follows a decoded frame
        self._is_flac = stream.codec_context.name == "flac"
        self._packets = packets
        self._tick = float(
            stream.time_base
        )  # seconds; the time base of each frame is a Fraction, which is slow to make
        # for FFmpeg a file starts with its earliest track, video included: players show it as 0
        self._file_start = (
            container.start_time / av.time_base
            if container.start_time is not None and len(container.streams) > 1
            else inf
        )
        self._start: float | None = None  # timestamp, in seconds, that is time 0
        self._failed = 0  # packets since the last frame that could not be decoded
        self._lost = 0  # packets that these were before the parser joined some; estimated
        self._total_lost = self._total_joined = (
            0  # of all damage so far; joined: lost, but not in `packets.count`
        )
        self._last_frame = None
        self.seconds = 0.0  # of audio, silence included, given to the resampler
        self._resampler = Resampler(rate, channel)

    def decode(self, packets: Iterable[av.Packet]) -> Iterator[bytes]:
        """The audio of these packets, except for what the resampler still holds."""
        for packet in packets:
            ratio = (
                packet.size * (self._packets.count - 1) // max(1, self._packets.bytes - packet.size)
            )
            try:
                frames = packet.decode()
                is_damaged = self._is_flac and (
                    len(frames) > 1 or packet.pts is None and ratio >= JUNK_RATIO
                )
            except av.error.FFmpegError:  # not always InvalidDataError: damaged AAC may give EPERM
                is_damaged = True
            if is_damaged:
                self._failed, self._lost = (
                    self._failed + 1,
                    self._lost + (ratio if ratio >= JUNK_RATIO else 1),
                )
                continue
            if frames and self._failed:
                yield from self._silence_for_damage()
            for frame in frames:
                if frame.pts is not None and (gap := self._gap_before(frame.pts * self._tick)):
                    yield from self._silence(frame, round(gap * frame.sample_rate))
                self._last_frame = frame
                self.seconds += frame.samples / frame.sample_rate
                if block := self._resampler.push(frame):
                    yield block

    def finish(self) -> Iterator[bytes]:
        """The rest, once all packets are decoded. Raises FileRefused where there was no audio."""
        if self._last_frame is None:
            kind = "undecodable" if self._failed else "empty"
            raise FileRefused(
                kind, "The audio track of the file at audio_url holds no sound that can be decoded."
            )
        yield self._resampler.finish()

    def check_damage(self) -> None:
        """Raises FileRefused where more than MAX_DAMAGED_SHARE of the packets read so far is damaged."""
        damaged = (
            self._total_lost
            + self._packets.skipped
            + (0 if self._may_end_in_tags else self._failed)
        )
        packets = self._packets.count + self._total_joined
        if damaged > max(1, MAX_DAMAGED_SHARE * packets):
            raise FileRefused(
                "undecodable",
                f"The file at audio_url is damaged: {damaged} of {packets} audio packets cannot be decoded.",
            )

    def _gap_before(self, time: float) -> float:
        """Seconds without audio before the frame with this timestamp, 0 for none; the first frame sets time 0."""
        if self._start is None:
            self._start = time - self.seconds
            if GAP_SECONDS < self._start - self._file_start < MAX_GAP_SECONDS:
                self._start = self._file_start
        gap = time - self._start - self.seconds
        return gap if GAP_SECONDS < gap < MAX_GAP_SECONDS else 0.0

    def _silence_for_damage(self) -> Iterator[bytes]:
        if self._last_frame is None:
            self._lost = (
                self._failed
            )  # damage before the first frame may be a tag, so its size tells nothing
        else:
            yield from self._silence(self._last_frame, self._lost * self._last_frame.samples)
        self._total_lost += self._lost
        self._total_joined += self._lost - self._failed
        self._failed = self._lost = 0

    def _silence(self, like: av.AudioFrame, samples: int) -> Iterator[bytes]:
        """`samples` at the rate of the frame `like`, in its format and layout."""
        self.seconds += samples / like.sample_rate
        for start in range(0, samples, like.sample_rate):
            silent = av.AudioFrame(
                like.format.name, like.layout.name, min(like.sample_rate, samples - start)
            )
            silent.sample_rate = like.sample_rate
            # from 8 channels on PyAV 18.1 lists more planes than there are, and writing to those overwrites the heap
            for plane in silent.planes[
                : silent.layout.nb_channels if silent.format.is_planar else 1
            ]:
                plane.update(bytes(plane.buffer_size))
            yield self._resampler.push(silent)


class Resampler:
    """Frames → int16 mono at `rate`, of one channel or all mixed. The samples do not depend on the sizes of the frames."""

    def __init__(self, rate: int, channel: int | None = None):
        self._rate, self._channel = rate, channel
        self._input: tuple[str, str, int] | None = None  # format, layout and rate of the frames
        self._graph = self._fifo = None

    def push(self, frame: av.AudioFrame) -> bytes:
        """Take a frame; returns the samples that are ready, often none. Raises FileRefused where it does not have the channel."""
        before = b""
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        if source != self._input:  # may change within a file
            if self._channel is not None and self._channel >= frame.layout.nb_channels:
                raise FileRefused(
                    "no channel", _no_channel(self._channel, frame.layout.nb_channels)
                )
            before = self.finish()
            self._input, self._graph, self._fifo = (
                source,
                _resampling_graph(*source, self._rate, self._channel),
                av.AudioFifo(),
            )
        frame.pts = None  # samples follow one another; timestamps of damaged files do not
        self._fifo.write(frame)
        if self._fifo.samples < RESAMPLE_SECONDS * frame.sample_rate:
            return before
        return before + self._resample(self._fifo.read())

    def finish(self) -> bytes:
        """The rest; the next frame begins a new stream."""
        if self._graph is None:
            return b""
        rest = (self._resample(self._fifo.read()) if self._fifo.samples else b"") + self._resample(
            None
        )
        self._graph = self._input = None
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


def _no_channel(channel: int, held: int) -> str:
    numbers = "1 channel, number 0" if held == 1 else f"{held} channels, numbers 0 to {held - 1}"
    return f"channel is {channel}; the audio at audio_url has only {numbers}."


def _resampling_graph(
    sample_format: str, layout: str, source: int, rate: int, channel: int | None
) -> av.filter.Graph:
    """Channels are mixed, or one is picked, before the rate changes: FFmpeg by itself would resample each of them."""
    graph = av.filter.Graph()
    graph.threads = 1  # more are no faster, and sandbox.py allows none
    graph.link_nodes(
        graph.add(
            "abuffer",
            sample_fmt=sample_format,
            channel_layout=layout,
            sample_rate=str(source),
            time_base=f"1/{source}",
        ),
        *([graph.add("pan", f"mono|c0=c{channel}")] if channel is not None else []),
        graph.add("aresample", "osf=fltp:ochl=mono:rematrix_maxval=1"),
        graph.add("aformat", f"sample_fmts=s16:sample_rates={rate}"),
        graph.add("abuffersink"),
    ).configure()
    return graph
