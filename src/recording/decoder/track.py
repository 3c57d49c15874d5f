"""Packets of an audio track → mono, one after another.

Damaged or missing audio becomes silence. Part of the child process of pcm_stream.py: imports
neither numpy nor asyncio.
"""

from collections.abc import Iterable, Iterator
from math import inf

import av
from damage import DamagedSpans
from length import MAX_GAP_SECONDS, is_longer, start_of_file
from levels import Levels
from packets import Packets
from report import FileRefused
from resampler import Resampler
from steady import SteadyDecoder

# A FLAC packet over 4× the mean size is really several, joined by the parser.
JUNK_RATIO = 4
MIN_GAP_SECONDS = 0.05  # a jump of the timestamps over this becomes silence
MIN_DAMAGED_SECONDS = 0.005  # the same behind packets that could not be decoded
MIN_START_SECONDS = 0.1  # a file that was cut from a stream begins within a packet
TRUSTED_GAP_SECONDS = 1.0  # a longer jump must not lead behind the end that the file declares
# Formats in which a frame follows a frame. FFmpeg counts their frames to give them timestamps.
WITHOUT_CLOCK = ("mp3", "aac", "ac3", "eac3", "loas", "amr", "amrnb", "amrwb", "dts", "wav", "w64")
# In these every gap is loss: their audio goes on without a pause (RFC 7845, section 4.1, for Opus).
WITHOUT_PAUSES = ("mpegts", "mpeg", "flac", "ogg", "asf")
# In these, damage before the first frame is time, if it is not more than these bytes can be.
START_AT_ZERO = ("flac", "ogg")
MIN_BYTES_PER_SECOND = 500


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
        damage: DamagedSpans,
    ):
        """`damage`: what is lost is added to it."""
        self._may_end_in_tags = container.format.name == "mp3"
        self._packets = packets
        self._resampler = resampler
        self.damage = damage
        self._declared = 0.0
        self._last_frame: av.AudioFrame | None = None
        self.seconds = 0.0  # audio given to the resampler, silence included
        self._lost = 0  # estimated packets lost since the last frame
        self._is_hole = False  # whether the demuxer has skipped bytes since the last frame
        # A frame behind a long gap and the gap, until the next frame confirms its timestamp.
        self._waiting: tuple[av.AudioFrame, float] | None = None
        # Packets that could be decoded.
        self._count = self._bytes = self._largest = 0
        self._begin(stream, start_of_file(container))

    def declare(self, seconds: float) -> None:
        """The length of the file by what it declares; 0 where it does not."""
        self._declared = seconds

    @property
    def decoded_share(self) -> float:
        """The share of the audio so far, or of its part, that could be decoded: 0 to 1."""
        return self.damage.spared_share(self.seconds)

    def decode(self, packets: Iterable[av.Packet]) -> Iterator[bytes]:
        """The audio of these packets, except for what the resampler still holds."""
        for packet in packets:
            if packet.stream is not self._stream:
                yield from self._waiting_sound()
                self.declare(0.0)
                self._begin(packet.stream, inf)
            for frame in self._frames(packet):
                if self._waiting:
                    yield from self._waiting_sound(frame.pts)
                gap = self._gap_before(frame)
                if gap > TRUSTED_GAP_SECONDS:
                    self._waiting = frame, gap
                    continue
                if gap:
                    yield from self._gap_sound(frame, gap)
                if block := self._sound(frame):
                    yield block

    def finish(self) -> Iterator[bytes]:
        """The rest, once all packets are decoded. Raises FileRefused where there was no audio."""
        yield from self._waiting_sound()
        last = self._last_frame
        if last is None:
            kind = "undecodable" if self._lost else "empty"
            raise FileRefused(
                kind, "The audio track of the file at audio_url holds no sound that can be decoded."
            )
        if self._lost > 1 and not self._may_end_in_tags:  # One is a packet that was cut.
            yield from self._lost_sound(last, self._lost * last.samples / last.sample_rate)
        yield self._resampler.finish()

    def _begin(self, stream: av.AudioStream, file_start: float) -> None:
        """Packets of this track come next. `file_start`: the timestamp of time 0, or infinite."""
        self._stream = stream
        # More are no faster, and sandbox.py allows none: WavPack and DSD would lose a packet.
        stream.codec_context.thread_count = 1
        codec: str = stream.codec_context.name
        self._decoder = SteadyDecoder(stream) if codec == "aac" else None
        # A FLAC packet is one frame. Around damage the parser joins several, and PyAV 18 hides an
        # error that follows a decoded frame.
        self._is_flac = codec == "flac"
        name: str = stream.container.format.name
        self._has_clock = name not in WITHOUT_CLOCK
        self._has_pauses = name not in WITHOUT_PAUSES
        self._starts_at_zero = name in START_AT_ZERO
        self._skips_pages = name == "ogg"  # FFmpeg does so with damaged ones.
        # Seconds. The time base of each frame is a Fraction, which is slow to make.
        self._tick = float(stream.time_base)
        self._file_start = file_start
        self._start: float | None = None  # the timestamp, in seconds, that is time 0
        # Before the first frame: the timestamp of the first lost packet, and the bytes lost.
        self._first_lost: float | None = None
        self._lost_bytes = 0

    def _frames(self, packet: av.Packet) -> list[av.AudioFrame]:
        """The frames of a packet. A damaged one is counted, and has none."""
        if self._packets.behind_holes and self._packets.is_behind_hole(packet):
            self._is_hole = True
        if self._skips_pages and not self._lost_bytes:
            self._lost_bytes = packet.pos or 0
        try:
            frames = self._decoder.frames_of(packet) if self._decoder else packet.decode()
            is_damaged = self._is_flac and self._is_joined_flac(packet, frames)
        except av.error.FFmpegError:  # Not always InvalidDataError: damaged AAC may give EPERM.
            is_damaged = True
        if is_damaged:
            self._note_loss(packet)
            return []
        size: int = packet.size
        self._count += 1
        self._bytes += size
        if size > self._largest:
            self._largest = size
        return frames

    def _is_joined_flac(self, packet: av.Packet, frames: list[av.AudioFrame]) -> bool:
        is_junk = packet.size * self._count >= JUNK_RATIO * self._bytes > 0
        return len(frames) > 1 or (packet.pts is None and is_junk)

    def _note_loss(self, packet: av.Packet) -> None:
        if self._start is None:
            self._lost_bytes += packet.size
            if self._first_lost is None and packet.pts is not None:
                self._first_lost = packet.pts * self._tick
        # Around damage a parser joins packets.
        is_joined = self._last_frame is not None and packet.size > self._largest
        self._lost += self._packets_in(packet.size) if is_joined else 1

    def _packets_in(self, size: int) -> int:
        """How many packets so many bytes would be."""
        return max(1, round(size * self._count / self._bytes)) if self._bytes else 1

    def _waiting_sound(self, next_pts: int | None = None) -> Iterator[bytes]:
        """The frame that waits, if one does. `next_pts`: the timestamp of the frame behind it.

        Where that is earlier, the jump was a broken clock.
        """
        if self._waiting is None:
            return
        frame, gap = self._waiting
        self._waiting = None
        is_broken = next_pts is not None and frame.pts is not None and next_pts < frame.pts
        if gap and not is_broken:
            yield from self._gap_sound(frame, gap)
        yield self._sound(frame)

    def _gap_sound(self, frame: av.AudioFrame, gap: float) -> Iterator[bytes]:
        """Silence for a gap in seconds before this frame."""
        if self._lost or self._is_hole or not self._has_pauses:
            yield from self._lost_sound(frame, gap)
        else:
            yield from self._silence(frame, round(gap * frame.sample_rate))

    def _sound(self, frame: av.AudioFrame) -> bytes:
        """The samples that are ready after this frame, often none."""
        self._lost, self._is_hole = 0, False
        self._last_frame = frame
        self.seconds += frame.samples / frame.sample_rate
        return self._resampler.push(frame)

    def _gap_before(self, frame: av.AudioFrame) -> float:
        """Seconds without audio before this frame, 0 for none. The first frame sets time 0."""
        if self._has_clock and frame.pts is not None:
            time = frame.pts * self._tick
            if self._start is None:
                self._start = self._first_time(time) - self.seconds
            return self._gap_by_clock(time)
        lost_seconds = self._lost * frame.samples / frame.sample_rate
        if self._last_frame is not None:
            return lost_seconds
        self.damage.unplaced += lost_seconds  # It may be a tag.
        return 0.0

    def _first_time(self, time: float) -> float:
        """The timestamp of time 0, where the first frame has the timestamp `time`."""
        if self._starts_at_zero and self._lost_bytes > time * MIN_BYTES_PER_SECOND:
            first = 0.0
        else:
            first = time if self._first_lost is None else self._first_lost
        if time - first > MIN_START_SECONDS:
            return first
        late = time - self._file_start
        if late > MAX_GAP_SECONDS:
            is_real = not is_longer(time, self._packets.other_tracks_end)
        else:
            is_real = late > MIN_GAP_SECONDS
        return self._file_start if is_real else time

    def _gap_by_clock(self, time: float) -> float:
        """Seconds between the audio so far and the timestamp `time`, 0 for none."""
        gap = time - self._start - self.seconds
        least = MIN_DAMAGED_SECONDS if self._lost else MIN_GAP_SECONDS
        return gap if gap > least and self._is_real(gap) else 0.0

    def _is_real(self, gap: float) -> bool:
        """Whether a gap is no broken clock."""
        if gap <= TRUSTED_GAP_SECONDS:
            return True
        if self._declared:
            return not is_longer(self.seconds + gap, self._declared)
        return gap < MAX_GAP_SECONDS

    def _lost_sound(self, like: av.AudioFrame, seconds: float) -> Iterator[bytes]:
        """Silence for damage, in the format of the frame `like`."""
        self.damage.add(self.seconds, self.seconds + seconds)
        yield from self._silence(like, round(seconds * like.sample_rate))

    def _silence(self, like: av.AudioFrame, samples: int) -> Iterator[bytes]:
        """`samples` at the rate of the frame `like`, in its format and layout."""
        self.seconds += samples / like.sample_rate
        for start in range(0, samples, like.sample_rate):
            count = min(like.sample_rate, samples - start)
            yield self._resampler.push(_silent_frame(like, count))


def _silent_frame(like: av.AudioFrame, samples: int) -> av.AudioFrame:
    frame = av.AudioFrame(like.format.name, like.layout.name, samples)
    frame.sample_rate = like.sample_rate
    # From 8 channels on PyAV 18.1 lists more planes than there are, and writing to those
    # overwrites the heap.
    planes = frame.layout.nb_channels if frame.format.is_planar else 1
    for plane in frame.planes[:planes]:
        plane.update(bytes(plane.buffer_size))
    return frame
