"""The packets of an audio track, and how many of them the demuxer skipped."""

from collections.abc import Iterator

import av
from length import MATROSKA
from report import FileRefused

OVERHEAD_BYTES = 4096  # a container puts at most this between two packets


class Packets:
    """The packets of one track, to iterate once. Counts them, and estimates the skipped ones."""

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream):
        self._container = container
        self._index: int = stream.index
        # Matroska declares one length for all tracks. The others show whether the file is cut
        # short, or only its audio ends early.
        watched = container.streams if container.format.name == MATROSKA else [stream]
        self._ticks = {each.index: float(each.time_base or 0) for each in watched}  # seconds
        self._ends = dict.fromkeys(self._ticks, 0.0)  # latest timestamps, in seconds
        self._holes = _Holes()
        self.count = 0
        self.bytes = 0

    @property
    def end(self) -> float:
        """The latest timestamp of the track so far, in seconds."""
        return self._ends[self._index]

    @property
    def other_tracks_end(self) -> float:
        """The latest timestamp of the other tracks so far, in seconds.

        0 where they are not watched.
        """
        others = [end for index, end in self._ends.items() if index != self._index]
        return max(others, default=0.0)

    @property
    def skipped(self) -> int:
        """Estimated number of packets that the demuxer skipped; 0 in files with several tracks.

        Only what is missing both in time and in bytes counts: a gap in time alone is silence that
        was never sent, bytes alone are tags.
        """
        if len(self._container.streams) > 1:
            return 0
        by_bytes = self._holes.bytes * self.count / max(1, self.bytes)
        return round(min(self._holes.durations, by_bytes))

    @property
    def watched(self) -> list[int]:
        """The indices of the streams whose packets count here."""
        return list(self._ticks)

    def __iter__(self) -> Iterator[av.Packet]:
        """Raises FileRefused where damage of the container makes the rest unreadable."""
        for packet in demuxed(self._container, self.watched):
            if self.take(packet):
                yield packet

    def take(self, packet: av.Packet) -> bool:
        """Count a packet of the file; returns whether it is one of the track."""
        if packet.stream.index in self._ticks:
            self._note_end(packet)
        if packet.stream.index != self._index:
            return False
        self._count(packet)
        return True

    def _note_end(self, packet: av.Packet) -> None:
        if packet.pts is not None:
            index = packet.stream.index
            end = (packet.pts + (packet.duration or 0)) * self._ticks[index]
            self._ends[index] = max(self._ends[index], end)

    def _count(self, packet: av.Packet) -> None:
        if packet.size:
            self.count += 1
            self.bytes += packet.size
        if packet.pos is not None:
            self._holes.add_bytes_before(packet.pos, packet.size)
        self._holes.add_time_before(packet.pts, packet.duration or 0)


def demuxed(container: av.container.InputContainer, indices: list[int]) -> Iterator[av.Packet]:
    """The packets of these streams.

    Raises FileRefused where damage of the container makes the rest unreadable.
    """
    try:
        yield from container.demux(*(container.streams[index] for index in indices))
    except av.error.EOFError:
        pass  # In a file that was cut short, what came before the cut is good.
    except av.error.InvalidDataError as error:
        raise FileRefused(
            "undecodable", "The file at audio_url is damaged and cannot be read to its end."
        ) from error


class _Holes:
    """What lies between the packets of a track: how much time, and how many bytes of the file."""

    def __init__(self) -> None:
        self.durations = 0.0  # the missing time, in durations of a packet
        self.bytes = 0
        self._position = 0  # where the last packet lies in the file
        self._size: int | None = None  # bytes of the packets there; those of an Ogg page share it
        self._expected_pts: int | None = None

    def add_bytes_before(self, position: int, size: int) -> None:
        """The next packet lies at `position` and has `size` bytes."""
        if self._size is not None:
            between = position - self._position - self._size
            if between > OVERHEAD_BYTES:
                self.bytes += between
        is_same_page = bool(self._size) and position == self._position
        self._size = (self._size or 0) + size if is_same_page else size
        self._position = position

    def add_time_before(self, pts: int | None, duration: int) -> None:
        """The next packet starts at `pts`, both in ticks; None where it does not say so."""
        if pts is None:
            self._expected_pts = None
            return
        if self._expected_pts is not None and pts > self._expected_pts and duration:
            self.durations += (pts - self._expected_pts) / duration
        self._expected_pts = pts + duration
