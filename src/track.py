"""Packets of an audio track → int16 mono, one after another; what is damaged or missing becomes silence or an error.

Part of the child process of audio.py: imports neither numpy nor asyncio.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from math import inf

import av

MAX_DAMAGED_SHARE = 0.02  # of packets that cannot be decoded; their time becomes silence
JUNK_RATIO = 4  # a damaged packet so many times the usual size is several, and junk, that the MP3 parser took for one
GAP_SECONDS, LONGEST_GAP_SECONDS = 0.05, 3600  # jumps in the timestamps that become silence; a longer one is a broken clock
OVERHEAD_BYTES = 4096  # of a container between two packets, at most
RESAMPLE_SECONDS = 0.25  # at a time: the resampler's price is by the call, and for larger blocks malloc asks the kernel
MATROSKA, MP4 = "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"  # names of FFmpeg's demuxers


class Undecodable(Exception):
    """(kind, sentence) for the parent."""


class Packets:
    """The packets of a track, once; counts them, and what the demuxer skipped between them as damaged."""

    def __init__(self, container, stream):
        self._container, self._stream = container, stream
        # Matroska declares one length for all tracks: only the others tell a sound that ends early from a file cut short
        watched = container.streams if container.format.name == MATROSKA else [stream]
        self._ticks = {each.index: float(each.time_base or 0) for each in watched}
        self._ends = dict.fromkeys(self._ticks, 0.0)  # latest timestamps, in seconds
        self.count = self.bytes = 0
        self._skipped_time, self._skipped_bytes = 0.0, 0  # time in packets

    @property
    def end(self) -> float:
        """The latest timestamp of the track so far, in seconds."""
        return self._ends[self._stream.index]

    @property
    def others_end(self) -> float:
        """That of the file's other tracks, 0 where they are not looked at."""
        return max((end for index, end in self._ends.items() if index != self._stream.index), default=0.0)

    @property
    def skipped(self) -> int:
        """How many packets the demuxer skipped, as far as it can be told.

        Gaps in time alone are silence that was never sent; bytes alone are tags, or another track's.
        """
        if len(self._container.streams) > 1:
            return 0
        return round(min(self._skipped_time, self._skipped_bytes * self.count / max(1, self.bytes)))

    def __iter__(self) -> Iterator:
        """Raises Undecodable where the container is damaged so that no more of it can be read."""
        position, held, end = 0, None, None  # held: bytes of the packets at `position`; those of an Ogg page share one
        try:
            for packet in self._container.demux(*(self._container.streams[index] for index in self._ticks)):
                size, pos, pts = packet.size, packet.pos, packet.pts
                index = packet.stream.index
                if pts is not None:
                    self._ends[index] = max(self._ends[index], (pts + (packet.duration or 0)) * self._ticks[index])
                if index != self._stream.index:
                    continue
                if size:
                    self.count += 1
                    self.bytes += size
                if pos is not None:
                    if held is not None and pos - position - held > OVERHEAD_BYTES:
                        self._skipped_bytes += pos - position - held
                    held = size + held if held and pos == position else size
                    position = pos
                if pts is not None:
                    duration = packet.duration
                    if end is not None and pts > end and duration:
                        self._skipped_time += (pts - end) / duration
                    end = pts + (duration or 0)
                else:
                    end = None
                yield packet
        except av.error.EOFError:
            pass  # a file cut short: what came before the cut is good
        except av.error.InvalidDataError as error:
            raise Undecodable("undecodable", "The file at audio_url is damaged and cannot be read to its end.") from error


class Track:
    """Decodes packets to little-endian int16 mono at `rate`, so that what follows damage or a gap keeps its time.

    `channel`: the only one to be heard, from 0; None mixes all.
    """

    def __init__(self, container, stream, packets: Packets, rate: int, channel: int | None):
        self._behind_are_tags = container.format.name == "mp3"
        # a FLAC packet is one frame: the parser joins several around damage, and PyAV 18 hides an error that comes behind a frame
        self._is_flac = stream.codec_context.name == "flac"
        self._packets = packets
        self._tick = float(stream.time_base)  # seconds; a frame's own is a fraction, slow to make
        # FFmpeg's start of a file is that of its earliest track, pictures included: players show it as 0
        self._file_start = container.start_time / av.time_base if container.start_time is not None and len(container.streams) > 1 else inf
        self._start: float | None = None  # timestamp, in seconds, that is time 0
        self._damaged = self._never_seen = 0  # packets; those of them that the demuxer took for one with another
        self._failed = self._missing = 0  # packets since the last frame that cannot be decoded; packets that these were once
        self._last = None  # frame
        self.seconds = 0.0  # of sound, silence included, handed to the resampler
        self._resampler = Resampler(rate, channel)

    def decode(self, packets: Iterable) -> Iterator[bytes]:
        """The sound of these packets, but for what the resampler still holds."""
        for packet in packets:
            ratio = packet.size * (self._packets.count - 1) // max(1, self._packets.bytes - packet.size)
            try:
                frames = packet.decode()
                is_damaged = self._is_flac and (len(frames) > 1 or packet.pts is None and ratio >= JUNK_RATIO)
            except av.error.FFmpegError:  # not always InvalidDataError: damaged AAC may give EPERM
                is_damaged = True
            if is_damaged:
                self._failed, self._missing = self._failed + 1, self._missing + (ratio if ratio >= JUNK_RATIO else 1)
                continue
            if frames and self._failed:
                yield from self._silence_for_damage()
            for frame in frames:
                if frame.pts is not None:
                    time = frame.pts * self._tick
                    if self._start is None:
                        self._start = time - self.seconds
                        if GAP_SECONDS < self._start - self._file_start < LONGEST_GAP_SECONDS:
                            self._start = self._file_start
                    gap = time - self._start - self.seconds
                    if GAP_SECONDS < gap < LONGEST_GAP_SECONDS:
                        yield from self._silence(frame, round(gap * frame.sample_rate))
                self._last = frame
                self.seconds += frame.samples / frame.sample_rate
                if block := self._resampler.push(frame):
                    yield block

    def finish(self) -> Iterator[bytes]:
        """The rest, once all packets are decoded. Raises Undecodable where there was no sound."""
        if self._last is None:
            kind = "undecodable" if self._failed else "empty"
            raise Undecodable(kind, "The audio track of the file at audio_url holds no sound that can be decoded.")
        yield self._resampler.finish()

    def check(self) -> None:
        """Raises Undecodable where too much of what has been read so far is damaged."""
        damaged = self._damaged + self._packets.skipped + (0 if self._behind_are_tags else self._failed)
        packets = self._packets.count + self._never_seen
        if damaged > max(1, MAX_DAMAGED_SHARE * packets):
            raise Undecodable("undecodable", f"The file at audio_url is damaged: {damaged} of {packets} audio packets cannot be decoded.")

    def _silence_for_damage(self) -> Iterator[bytes]:
        if self._last is None:
            self._missing = self._failed  # what is before the first frame may be a tag
        else:
            yield from self._silence(self._last, self._missing * self._last.samples)
        self._damaged += self._missing
        self._never_seen += self._missing - self._failed
        self._failed = self._missing = 0

    def _silence(self, like, samples: int) -> Iterator[bytes]:
        self.seconds += samples / like.sample_rate
        for start in range(0, samples, like.sample_rate):
            silent = av.AudioFrame(like.format.name, like.layout.name, min(like.sample_rate, samples - start))
            silent.sample_rate = like.sample_rate
            # from 8 channels on PyAV 18.1 lists more planes than there are, and to fill those overwrites the heap
            for plane in silent.planes[: silent.layout.nb_channels if silent.format.is_planar else 1]:
                plane.update(bytes(plane.buffer_size))
            yield self._resampler.push(silent)


class Resampler:
    """Frames → int16 mono at `rate`, all channels mixed or one of them alone. How the samples come in frames changes nothing."""

    def __init__(self, rate: int, channel: int | None = None):
        self._rate, self._channel = rate, channel
        self._shape: tuple[str, str, int] | None = None  # of the frames: format, layout, rate
        self._graph = self._fifo = None

    def push(self, frame) -> bytes:
        """Take a frame; what is ready, often nothing. Raises Undecodable where it does not have the channel."""
        before = b""
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if shape != self._shape:  # may change within a file
            if self._channel is not None and self._channel >= frame.layout.nb_channels:
                raise Undecodable("no channel", _no_channel(self._channel, frame.layout.nb_channels))
            before = self.finish()
            self._shape, self._graph, self._fifo = shape, _resampling(*shape, self._rate, self._channel), av.AudioFifo()
        frame.pts = None  # samples follow one another; timestamps of damaged files do not
        self._fifo.write(frame)
        if self._fifo.samples < RESAMPLE_SECONDS * frame.sample_rate:
            return before
        return before + self._pass_through(self._fifo.read())

    def finish(self) -> bytes:
        """The rest; afterwards it begins anew."""
        if self._graph is None:
            return b""
        rest = (self._pass_through(self._fifo.read()) if self._fifo.samples else b"") + self._pass_through(None)
        self._graph = self._shape = None
        return rest

    def _pass_through(self, frame) -> bytes:
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


def _resampling(sample_format: str, layout: str, source: int, rate: int, channel: int | None) -> av.filter.Graph:
    """Channels are mixed, or one is picked, before the rate changes: FFmpeg by itself resamples every one of them."""
    graph = av.filter.Graph()
    graph.threads = 1  # more are no faster, and confine.py allows none
    graph.link_nodes(
        graph.add("abuffer", sample_fmt=sample_format, channel_layout=layout, sample_rate=str(source), time_base=f"1/{source}"),
        *([graph.add("pan", f"mono|c0=c{channel}")] if channel is not None else []),
        graph.add("aresample", "osf=fltp:ochl=mono:rematrix_maxval=1"),
        graph.add("aformat", f"sample_fmts=s16:sample_rates={rate}"),
        graph.add("abuffersink"),
    ).configure()
    return graph
