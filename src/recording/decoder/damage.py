"""Where audio was lost: spans of seconds, few enough for one report."""

MAX_SPANS = 2000  # sandbox.py limits the report to 64 KiB
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

    def in_milliseconds(self) -> list[tuple[int, int]]:
        """(start, end) of each span."""
        return [(round(start * 1000), round(end * 1000)) for start, end in self._spans]

    def _append(self, start: float, end: float) -> None:
        if self._spans and start - self._spans[-1][1] < self._distance:
            self._spans[-1][1] = end
        else:
            self._spans.append([start, end])
