"""The packets of an audio track, and the holes that damage has left between them."""

from collections.abc import Iterable, Iterator

import av
from length import LENGTH_OF_ALL_TRACKS, MATROSKA

OVERHEAD_BYTES = 4096  # a container puts at most this between two packets
MAX_ERRORS = 100  # of the demuxer in a row; then it will find nothing more


class Packets:
    """The packets of one track, and of the tracks that continue it, to iterate once."""

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.AudioStream,
        following: Iterable[av.AudioStream] = (),
    ):
        """`following`: the tracks of parts that were joined to the file, each once it is needed."""
        self._container = container
        self._index: int = stream.index
        self._following = following
        # Some declare one length for all tracks. The others show whether the file is cut short, or
        # only its audio ends early.
        one_length = container.format.name in LENGTH_OF_ALL_TRACKS
        self._watched = list(container.streams) if one_length else [stream]
        self._ticks = {each.index: float(each.time_base or 0) for each in self._watched}  # seconds
        self._ends = dict.fromkeys(self._ticks, 0.0)  # latest timestamps, in seconds
        self._positions = _Positions() if _are_all_known(container, self._watched) else None
        self._is_hole = False  # since the last packet of the track
        self.behind_holes: set[int | None] = set()  # timestamps, for is_behind_hole
        self.is_broken = False  # whether the demuxer gave up before the end of the file

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

    def is_behind_hole(self, packet: av.Packet) -> bool:
        """Whether the demuxer skipped bytes before this packet of the track; to ask once.

        Not known where other tracks may lie there.
        """
        if packet.pts not in self.behind_holes:
            return False
        self.behind_holes.remove(packet.pts)
        return True

    @property
    def watched(self) -> list[av.stream.Stream]:
        """The streams whose packets count here."""
        return self._watched

    def __iter__(self) -> Iterator[av.Packet]:
        yield from filter(self.take, self.demuxed(self._watched))
        for stream in self._following:
            self._continue_with(stream)
            yield from filter(self.take, self.demuxed([stream]))

    def demuxed(self, streams: list[av.stream.Stream]) -> Iterator[av.Packet]:
        """The packets of these streams; goes on behind damage where the demuxer can."""
        errors = 0
        while errors < MAX_ERRORS:
            try:
                for packet in self._container.demux(*streams):
                    errors = 0
                    yield packet
                return
            except av.error.EOFError:
                return  # In a file that was cut short, what came before the cut is good.
            except (av.error.FFmpegError, IndexError):  # IndexError: PyAV, for a track that is new.
                errors += 1
        self.is_broken = True

    def take(self, packet: av.Packet) -> bool:
        """Count a packet of the file; returns whether it is one of the track."""
        index = packet.stream.index
        if index in self._ends:
            self._note_end(packet, index)
            if self._positions:
                self._note_position(packet)
        if index != self._index:
            return False
        if self._is_hole:
            self.behind_holes.add(packet.pts)
            self._is_hole = False
        return True

    def _continue_with(self, stream: av.AudioStream) -> None:
        """Packets of the track of another part come next."""
        self._container, self._index = stream.container, stream.index
        self._watched = [stream]
        self._ticks = {stream.index: float(stream.time_base or 0)}
        self._ends.setdefault(stream.index, 0.0)
        self._positions = _Positions()

    def _note_end(self, packet: av.Packet, index: int) -> None:
        if packet.pts is not None:
            end = (packet.pts + (packet.duration or 0)) * self._ticks[index]
            self._ends[index] = max(self._ends[index], end)

    def _note_position(self, packet: av.Packet) -> None:
        if packet.pos is not None and self._positions.skips(packet.pos, packet.size):
            self._is_hole = True


class _Positions:
    """Where the packets lie in the file."""

    def __init__(self) -> None:
        self._position = 0  # of the last packet
        self._size: int | None = None  # bytes of the packets there; those of an Ogg page share it

    def skips(self, position: int, size: int) -> bool:
        """Whether a hole is between the last packet and the next one, which has `size` bytes."""
        between = 0
        if self._size is not None:
            between = position - self._position - self._size
        is_same_page = bool(self._size) and position == self._position
        self._size = (self._size or 0) + size if is_same_page else size
        self._position = position
        return between > OVERHEAD_BYTES


def _are_all_known(container: av.container.InputContainer, watched: list[av.stream.Stream]) -> bool:
    """Whether no packets of other tracks lie between those that are watched."""
    return len(watched) == len(container.streams) and (
        len(watched) == 1 or container.format.name == MATROSKA
    )
