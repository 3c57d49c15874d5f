"""Where audio was lost, and whether enough is left to be worth a transcript."""

from collections.abc import Callable, Iterable, Iterator

from report import FileRefused, report

MAX_SPANS = 2000  # sandbox.py limits the report to 64 KiB
MAX_HELD_BYTES = 10 << 20  # 5 minutes at 16 kHz
MIN_DECODED_SHARE = 0.1  # a recording of which less can be decoded is refused
MIN_DISTANCE_SECONDS = 0.1  # spans closer than this become one


class DamagedSpans:
    """Lost stretches of the part between two seconds of a recording, in order of time."""

    def __init__(self, start: float, end: float):
        """`start`, `end`: the part, in seconds from the start of the recording."""
        self._part = (start, end)
        self._spans: list[list[float]] = []
        self._distance = MIN_DISTANCE_SECONDS
        self.seconds = 0.0  # lost in the part, without what lies between merged spans
        self.unplaced = 0.0  # seconds lost before the first audio, which have no place in time

    @property
    def spans(self) -> list[tuple[float, float]]:
        """(start, end) of each, in seconds."""
        return [(start, end) for start, end in self._spans]

    @classmethod
    def of_all(cls, all_damage: "list[DamagedSpans]", start: float, end: float) -> "DamagedSpans":
        """What is lost in any of these, for the part between the two seconds."""
        union = cls(start, end)
        at = start
        for first, last in sorted(span for damage in all_damage for span in damage.spans):
            union.add(max(first, at), last)
            at = max(at, last)
        return union

    def add(self, start: float, end: float) -> None:
        """Audio was lost between these two seconds; it begins behind all that was added before."""
        start, end = max(start, self._part[0]), min(end, self._part[1])
        if start >= end:
            return
        self.seconds += end - start
        self._append(start, end)
        while len(self._spans) > MAX_SPANS:
            self._distance *= 2
            fine, self._spans = self._spans, []
            for span in fine:
                self._append(*span)

    def spared_share(self, end: float) -> float:
        """The share that was not lost of the audio up to `end`, within the part: 0 to 1."""
        start, part_end = self._part
        seconds = max(0.0, min(end, part_end) - start) + self.unplaced
        return 1 - (self.seconds + self.unplaced) / seconds if seconds else 1.0

    def warn(self, end: float) -> None:
        """Report the spans, if there are any. `end`: where the audio ends, in seconds."""
        if not self._spans:
            return
        start, part_end = self._part
        report(
            "damage",
            f"The file is damaged: {self.seconds:.1f} of {min(end, part_end) - start:.1f} seconds "
            "of audio are lost and silent; damaged_spans says which.",
            spans=[(round(first * 1000), round(last * 1000)) for first, last in self.spans],
        )

    def _append(self, start: float, end: float) -> None:
        if self._spans and start - self._spans[-1][1] < self._distance:
            self._spans[-1][1] = end
        else:
            self._spans.append([start, end])


def while_decodable(blocks: Iterable[bytes], share: Callable[[], float]) -> Iterator[bytes]:
    """The blocks, held back while next to nothing of the audio so far can be decoded.

    So no model is asked for the sound of a file that is refused. `share`: what could be decoded so
    far, 0 to 1. Raises FileRefused where it is next to nothing in the end.
    """
    held: list[bytes] = []
    held_bytes = 0
    for block in blocks:
        held.append(block)
        held_bytes += len(block)
        if share() >= MIN_DECODED_SHARE or held_bytes > MAX_HELD_BYTES:
            yield from held
            held, held_bytes = [], 0
    if share() < MIN_DECODED_SHARE:
        raise FileRefused(
            "undecodable",
            f"The file at audio_url is damaged: only {share():.1%} of its audio can be decoded.",
        )
    yield from held
