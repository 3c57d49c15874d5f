"""Frames → int16, in which a very quiet recording is louder than in the file.

The detector hears no speech far below full scale, and 16 bits hold little of it. A recording is
very quiet where its samples stay below QUIET_PEAK until its end, or for HOLD_SECONDS. Until one of
its samples is louder, its audio is held back. All other recordings keep their samples.
"""

from array import array
from math import inf, isfinite, log10

import av
from resampler import Resampler

HOLD_SECONDS = 300  # at most 30 MB
# Relative to full scale, as are all peaks here.
QUIET_PEAK = 10 ** (-40 / 20)  # the detector misses a third of the speech that peaks here
TARGET_PEAK = 10 ** (-20 / 20)
MAX_PEAK = 0.9  # what is louder later lowers the gain
MAX_GAIN = 10 ** (60 / 20)  # a higher one would make the rounding of 16 bits loud
MIN_PEAK = QUIET_PEAK / MAX_GAIN  # below it is no sound: amplified, it would still be very quiet
INT16 = 32768
MAX_SAMPLE = (INT16 - 1) / INT16


class Levels:
    """Frames → int16 at `rate`. The gain of a very quiet recording falls, and never rises.

    With EACH all channels have the same gain: a silent one beside a voice is not amplified.
    """

    def __init__(
        self, rate: int, channel: int | str | None, max_samples: int, no_films: bool = False
    ):
        """At most `max_samples`, and HOLD_SECONDS of mono, are held back.

        `channel`, `no_films`: as in Resampler.
        """
        self.rate = rate
        self._plain = Resampler(rate, channel, "s16", no_films)
        # None where the recording is not very quiet
        self._fine: Resampler | None = Resampler(rate, channel, "flt", no_films)
        self._held: list[bytes] = []  # int16
        self._held_fine = array("f")
        self._max_samples = max_samples
        self._low, self._high = inf, -inf  # of the samples so far
        self._gain = 0.0  # 0 until the recording is known to be very quiet
        self.gain = 1.0  # the highest that was applied

    @property
    def peak(self) -> float | None:
        """Of the samples so far, without a constant offset, which is no sound.

        None where the recording is not very quiet, or has none.
        """
        return None if self._fine is None or self._low > self._high else self._swing

    @property
    def _swing(self) -> float:
        return (self._high - self._low) / 2

    @property
    def channels(self) -> int:
        """Number of channels of the last frame."""
        return (self._fine or self._plain).channels

    @property
    def width(self) -> int:
        """Number of interleaved channels; 0 before the first frame."""
        return (self._fine or self._plain).width

    @property
    def left_out(self) -> int:
        """The most channels that a frame had beyond `width`, where EACH is by itself."""
        return (self._fine or self._plain).left_out

    @property
    def instead_of_mix(self) -> set[int]:
        """The channels that were taken where the mix cancels."""
        return (self._fine or self._plain).instead_of_mix

    def push(self, frame: av.AudioFrame) -> bytes:
        """Take a frame; returns the samples that are ready. Raises what Resampler.push does."""
        if self._fine is None:
            return self._plain.push(frame)
        fine = self._fine.push(frame)
        plain = b"" if self._gain else self._plain.push(frame)
        return self._levelled(fine, plain)

    def finish(self) -> bytes:
        """The rest."""
        if self._fine is None:
            return self._plain.finish()
        fine, plain = self._fine.finish(), self._plain.finish()
        return self._levelled(fine, plain) + self._amplified()

    def _levelled(self, fine: bytes, plain: bytes) -> bytes:
        """The samples that need not be held back; both arguments hold the same new ones."""
        if not fine:
            return b""
        samples = array("f", fine)
        self._held_fine += samples
        self._held.append(plain)
        low, high = _range(samples)
        self._low, self._high = min(low, self._low), max(high, self._high)
        if not self._gain and self._swing >= QUIET_PEAK:
            self._fine = None
            return self._taken()
        if not (self._low or self._high):  # Digital silence says nothing of the level.
            return self._taken()
        max_held = min(self._max_samples * self.width, HOLD_SECONDS * self.rate)
        if self._gain or len(self._held_fine) >= max_held:
            return self._amplified()
        return b""

    def _taken(self) -> bytes:
        """What was held, as it is."""
        taken = b"".join(self._held)
        self._held, self._held_fine = [], array("f")
        return taken

    def _amplified(self) -> bytes:
        """What was held, amplified; the recording is very quiet."""
        samples, plain = self._held_fine, self._taken()
        if not samples or self._swing < MIN_PEAK:
            return plain
        low, high = _range(samples)
        peak = max(high, -low)
        wanted = self._gain or min(MAX_GAIN, TARGET_PEAK / self._swing)
        self._gain = max(1.0, min(wanted, MAX_PEAK / (peak or MAX_PEAK)))
        self.gain = max(self.gain, self._gain)
        if peak > MAX_PEAK:  # In this order, what is not a number becomes the lowest sample.
            samples = array("f", (max(-1.0, min(x, MAX_SAMPLE)) for x in samples))
        scale = self._gain * INT16
        return array("h", (round(scale * x) for x in samples)).tobytes()


def decibels(ratio: float) -> float:
    """A ratio of levels; of a peak, dBFS."""
    return 20 * log10(ratio)


def _range(samples: "array[float]") -> tuple[float, float]:
    """(lowest, highest); infinite where a sample is not a number."""
    return (min(samples), max(samples)) if isfinite(sum(samples)) else (-inf, inf)
