"""The audio tracks of a file, decoded at the same time and mixed to one, or kept as channels."""

from array import array
from collections.abc import Iterable, Iterator

import av
from damage import DamagedSpans
from length import LENGTH_OF_ALL_TRACKS
from levels import Levels
from packets import Packets
from report import FileRefused, report
from resampler import Resampler
from track import Track

# A track that is this far behind the others is silent in the mix. Containers interleave more
# closely than that, and its samples at the other tracks' times must be held.
MAX_LAG_SECONDS = 60
MIXED_SECONDS = 0.25  # are mixed at once
FLOAT_BYTES = 4


class MixedTracks:
    """Decodes the packets of several tracks, which are mono, to what `levels` makes of them.

    It mixes them in equal parts, or with EACH gives every track as a channel.
    Has the methods and `seconds` of a Track, and iterates as Packets do. Tracks are aligned by
    their time stamps.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        streams: list[av.AudioStream],
        levels: Levels,
        part: tuple[float, float],
    ):
        """`part`: start and end of the wanted part, in seconds."""
        # Others declare a length for each track.
        self._declares_for_all = container.format.name in LENGTH_OF_ALL_TRACKS
        self._rate = rate = levels.rate
        self._part = part
        self._levels = levels
        self._packets = {stream.index: Packets(container, stream) for stream in streams}
        self._tracks = {
            stream.index: Track(
                container,
                stream,
                self._packets[stream.index],
                Resampler(rate, None, "flt"),
                DamagedSpans(*part),
            )
            for stream in streams
        }
        self._lanes = {stream.index: _Lane() for stream in streams}

    @property
    def seconds(self) -> float:
        """The audio of the longest track so far."""
        return max(track.seconds for track in self._tracks.values())

    @property
    def end(self) -> float:
        """The latest timestamp of these tracks so far, in seconds."""
        return max(packets.end for packets in self._packets.values())

    @property
    def other_tracks_end(self) -> float:
        """The latest timestamp of the tracks beside each of them."""
        return max(packets.other_tracks_end for packets in self._packets.values())

    @property
    def is_broken(self) -> bool:
        """Whether the demuxer gave up before the end of the file."""
        return any(packets.is_broken for packets in self._packets.values())

    @property
    def damage(self) -> DamagedSpans:
        """What was lost of any of the tracks."""
        return DamagedSpans.of_all([track.damage for track in self._tracks.values()], *self._part)

    @property
    def decoded_share(self) -> float:
        """That of the track of which most could be decoded: 0 to 1."""
        return max(track.decoded_share for track in self._tracks.values())

    def declare(self, seconds: float) -> None:
        """The length of the file, by what it declares for the first of the tracks."""
        for track in self._tracks.values() if self._declares_for_all else ():
            track.declare(seconds)

    def __iter__(self) -> Iterator[av.Packet]:
        """The packets of all tracks."""
        watched = {each for packets in self._packets.values() for each in packets.watched}
        first = next(iter(self._packets.values()))
        for packet in first.demuxed(list(watched)):
            for packets in self._packets.values():
                packets.take(packet)
            if packet.stream.index in self._tracks:
                yield packet

    def decode(self, packets: Iterable[av.Packet]) -> Iterator[bytes]:
        """The mix of what these packets complete, as int16."""
        for packet in packets:
            index = packet.stream.index
            for block in self._tracks[index].decode((packet,)):
                self._lanes[index].add(block)
                yield from self._mixed()

    def finish(self) -> Iterator[bytes]:
        """The rest. Raises FileRefused where no track had audio."""
        failures = []
        for index, track in self._tracks.items():
            try:
                for block in track.finish():
                    self._lanes[index].add(block)
            except FileRefused as failure:
                failures.append(failure)
        if len(failures) == len(self._tracks):
            raise failures[0]
        longest = max(len(lane.held) for lane in self._lanes.values())
        yield from self._mix(longest)
        yield self._levels.finish()
        self._warn_of_late_audio()

    def _warn_of_late_audio(self) -> None:
        dropped = max(lane.dropped for lane in self._lanes.values())
        if dropped:
            report(
                "warning",
                f"Of an audio track, {dropped / FLOAT_BYTES / self._rate:.1f} seconds are missing: "
                f"they lie over {MAX_LAG_SECONDS} seconds behind the others in the file. track can "
                "be its number.",
            )

    def _mixed(self) -> Iterator[bytes]:
        """The mix of what has come of every track, unless it is little."""
        lengths = [len(lane.held) for lane in self._lanes.values()]
        lag = MAX_LAG_SECONDS * self._rate * FLOAT_BYTES
        ready = max(min(lengths), max(lengths) - lag)
        if ready >= MIXED_SECONDS * self._rate * FLOAT_BYTES:
            yield from self._mix(ready)

    def _mix(self, size: int) -> Iterator[bytes]:
        """The mix of the next `size` bytes of every track."""
        block = round(MIXED_SECONDS * self._rate) * FLOAT_BYTES
        for start in range(0, size, block):
            count = min(block, size - start)
            frame = _as_channels([lane.take(count) for lane in self._lanes.values()])
            frame.sample_rate = self._rate
            yield self._levels.push(frame)


class _Lane:
    """The decoded samples of one track that are not mixed yet, as bytes of float32."""

    def __init__(self) -> None:
        self.held = bytearray()
        self._missed = 0  # bytes that were taken before they came
        self.dropped = 0  # bytes that came too late

    def add(self, block: bytes) -> None:
        """What comes after its time has been mixed is dropped."""
        late = min(self._missed, len(block))
        self._missed -= late
        self.dropped += late
        self.held += block[late:]

    def take(self, count: int) -> bytes:
        """The next `count` bytes; silence where they have not come."""
        taken = bytes(self.held[:count])
        del self.held[:count]
        self._missed += count - len(taken)
        return taken.ljust(count, b"\0")


def _as_channels(tracks: list[bytes]) -> av.AudioFrame:
    """A packed frame with a channel for each of these, which are as long as one another."""
    samples = len(tracks[0]) // FLOAT_BYTES
    packed = array("f", bytes(len(tracks) * len(tracks[0])))
    for number, track in enumerate(tracks):
        packed[number :: len(tracks)] = array("f", track)
    frame = av.AudioFrame("flt", f"{len(tracks)} channels", samples)
    plane = frame.planes[0]
    plane.update(packed.tobytes().ljust(plane.buffer_size, b"\0"))
    return frame
