"""Packets of an audio track → mono, one after another.

Damaged or missing audio becomes silence or an error. Part of the child process of pcm_stream.py:
imports neither numpy nor asyncio.
"""

from collections.abc import Iterable, Iterator
from math import inf

import av
from levels import Levels
from packets import Packets
from report import FileRefused
from resampler import Resampler

MAX_DAMAGED_SHARE = 0.02  # up to this share of all packets, damage becomes silence
# A damaged packet over 4× the mean size is really several, joined by the MP3 parser.
JUNK_RATIO = 4
# Jumps of the timestamps between these two become silence. A longer one is a broken clock.
MIN_GAP_SECONDS = 0.05
MAX_GAP_SECONDS = 3600


class Track:
    """Decodes packets to what `resampler` makes of their audio.

    Silence fills damage and gaps, so that later audio keeps its time.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.AudioStream,
        packets: Packets,
        resampler: Levels | Resampler,
    ):
        self._may_end_in_tags = container.format.name == "mp3"
        # A FLAC packet is one frame. Around damage the parser joins several, and PyAV 18 hides an
        # error that follows a decoded frame.
        self._is_flac = stream.codec_context.name == "flac"
        self._packets = packets
        # Seconds. The time base of each frame is a Fraction, which is slow to make.
        self._tick = float(stream.time_base)
        self._file_start = _start_of_file(container)
        self._start: float | None = None  # the timestamp, in seconds, that is time 0
        self._failed = 0  # packets since the last frame that could not be decoded
        self._lost = 0  # estimated packets that these were before the parser joined some
        self._total_lost = 0  # all lost packets so far
        self._total_joined = 0  # those of them that are not in `packets.count`
        self._last_frame: av.AudioFrame | None = None
        self.seconds = 0.0  # audio given to the resampler, silence included
        self._resampler = resampler

    def decode(self, packets: Iterable[av.Packet]) -> Iterator[bytes]:
        """The audio of these packets, except for what the resampler still holds."""
        for packet in packets:
            frames = self._frames(packet)
            if frames and self._failed:
                yield from self._silence_for_damage()
            for frame in frames:
                yield from self._sound(frame)

    def finish(self) -> Iterator[bytes]:
        """The rest, once all packets are decoded. Raises FileRefused where there was no audio."""
        if self._last_frame is None:
            kind = "undecodable" if self._failed else "empty"
            raise FileRefused(
                kind, "The audio track of the file at audio_url holds no sound that can be decoded."
            )
        yield self._resampler.finish()

    def check_damage(self) -> None:
        """Raises FileRefused where more than MAX_DAMAGED_SHARE of the packets so far is damaged."""
        damaged = self._total_lost + self._packets.skipped
        if not self._may_end_in_tags:
            damaged += self._failed
        packets = self._packets.count + self._total_joined
        if damaged > max(1, MAX_DAMAGED_SHARE * packets):
            raise FileRefused(
                "undecodable",
                f"The file at audio_url is damaged: {damaged} of {packets} audio packets "
                "cannot be decoded.",
            )

    def _frames(self, packet: av.Packet) -> list[av.AudioFrame]:
        """The frames of a packet. A damaged one is counted, and has none."""
        other_bytes = self._packets.bytes - packet.size
        size_ratio = packet.size * (self._packets.count - 1) // max(1, other_bytes)
        is_junk = size_ratio >= JUNK_RATIO
        try:
            frames = packet.decode()
            is_damaged = self._is_flac and (len(frames) > 1 or (packet.pts is None and is_junk))
        except av.error.FFmpegError:  # Not always InvalidDataError: damaged AAC may give EPERM.
            is_damaged = True
        if not is_damaged:
            return frames
        self._failed += 1
        self._lost += size_ratio if is_junk else 1
        return []

    def _sound(self, frame: av.AudioFrame) -> Iterator[bytes]:
        """The samples that are ready after this frame, with silence for a gap before it."""
        gap = 0.0 if frame.pts is None else self._gap_before(frame.pts * self._tick)
        if gap:
            yield from self._silence(frame, round(gap * frame.sample_rate))
        self._last_frame = frame
        self.seconds += frame.samples / frame.sample_rate
        if block := self._resampler.push(frame):
            yield block

    def _gap_before(self, time: float) -> float:
        """Seconds without audio before the frame with this timestamp, 0 for none.

        The first frame sets time 0.
        """
        if self._start is None:
            self._start = time - self.seconds
            if MIN_GAP_SECONDS < self._start - self._file_start < MAX_GAP_SECONDS:
                self._start = self._file_start
        gap = time - self._start - self.seconds
        return gap if MIN_GAP_SECONDS < gap < MAX_GAP_SECONDS else 0.0

    def _silence_for_damage(self) -> Iterator[bytes]:
        if self._last_frame is None:
            # Damage before the first frame may be a tag, so its size tells nothing.
            self._lost = self._failed
        else:
            yield from self._silence(self._last_frame, self._lost * self._last_frame.samples)
        self._total_lost += self._lost
        self._total_joined += self._lost - self._failed
        self._failed = self._lost = 0

    def _silence(self, like: av.AudioFrame, samples: int) -> Iterator[bytes]:
        """`samples` at the rate of the frame `like`, in its format and layout."""
        self.seconds += samples / like.sample_rate
        for start in range(0, samples, like.sample_rate):
            count = min(like.sample_rate, samples - start)
            yield self._resampler.push(_silent_frame(like, count))


def _start_of_file(container: av.container.InputContainer) -> float:
    """Seconds; for FFmpeg a file starts with its earliest track, video included.

    Players show that moment as 0. Infinite where only the audio can say it.
    """
    if container.start_time is None or len(container.streams) == 1:
        return inf
    microseconds: int = container.start_time
    return microseconds / av.time_base


def _silent_frame(like: av.AudioFrame, samples: int) -> av.AudioFrame:
    frame = av.AudioFrame(like.format.name, like.layout.name, samples)
    frame.sample_rate = like.sample_rate
    # From 8 channels on PyAV 18.1 lists more planes than there are, and writing to those
    # overwrites the heap.
    planes = frame.layout.nb_channels if frame.format.is_planar else 1
    for plane in frame.planes[:planes]:
        plane.update(bytes(plane.buffer_size))
    return frame
