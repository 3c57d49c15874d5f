"""The channels of a frame: how FFmpeg mixes them, and whether they cancel each other in the mix."""

from collections.abc import Sequence
from itertools import accumulate
from operator import add, mul

import av

MAX_CHANNELS = 64  # FFmpeg's filters take no more
EACH = "each"  # instead of a channel's number: every channel by itself
MAX_EACH = 16  # channels or tracks that are decoded by themselves
# FFmpeg mixes these by weights that were made for films. It uses every channel but the one of low
# frequencies. Of other layouts it leaves channels out, or it cannot mix them.
# fmt: off
FILM_LAYOUTS = frozenset((
    "2.1", "3.0", "3.0(back)", "3.1", "3.1.2", "4.0", "4.1", "quad", "quad(side)", "5.0",
    "5.0(side)", "5.1", "5.1(side)", "5.1.2", "5.1.2(back)", "6.0", "6.0(front)", "6.1",
    "6.1(back)", "6.1(front)", "hexagonal", "7.0", "7.0(front)", "7.1", "7.1(wide)",
    "7.1(wide-side)", "7.1.2", "octagonal",
))
# fmt: on
PLAIN_LAYOUTS = frozenset(("mono", "1 channels", "stereo", "downmix", "2 channels"))
# The type of a sample for memoryview, by the start of FFmpeg's name.
ITEMS = {"u8": "B", "s16": "h", "s32": "i", "flt": "f", "dbl": "d"}
U8_ZERO = 128
# The power of the mix, relative to the power that channels without any likeness would have.
CANCELLED = 0.06  # -12 dB: the channels cancel each other
RESTORED = 0.25  # -6 dB: they no longer do
SAME_LEVEL = 0.5  # -3 dB
LOOK, CLOSE_LOOK = 24, 2048  # instants of a block that are compared
BLOCKS_BETWEEN_LOOKS = 4  # of an ordinary recording, whose blocks are of a quarter of a second

Filter = tuple[str, str]


def mono_filters(
    layout: str, channels: int, channel: int | None, no_films: bool = False
) -> list[Filter]:
    """FFmpeg's filters that make mono of a layout: one channel, or all mixed.

    Other than mono, stereo and FILM_LAYOUTS, layouts are mixed in equal parts. `no_films`: a layout
    says nothing of the channels, so FILM_LAYOUTS are mixed in equal parts as well.
    """
    if channel is not None:
        return [("pan", f"mono|c0=c{channel}")]
    is_film = layout in FILM_LAYOUTS and not no_films
    if is_film or layout in PLAIN_LAYOUTS:
        return []
    parts = "+".join(f"{1 / channels}*c{each}" for each in range(channels))
    return [("aformat", "sample_fmts=fltp"), ("pan", f"mono|c0={parts}")]


def each_filter(held: int, wanted: int) -> Filter:
    """FFmpeg's filter that makes `wanted` channels of the `held` ones of a frame.

    What a frame does not have is silent; what it has beyond them is left out.
    """
    picked = "|".join(f"c{number}=c{number}" for number in range(min(held, wanted)))
    return "pan", f"{wanted}C|{picked}"


class Phase:
    """Finds the blocks whose channels cancel each other, as a voice in opposite phase does."""

    def __init__(self, like: av.AudioFrame):
        """For blocks of the format and layout of this frame."""
        self._count: int = like.layout.nb_channels
        self._is_planar: bool = like.format.is_planar
        self._item = _item(like)
        self._channel: int | None = None
        self._blocks_to_next_look = 1

    def channel_for(self, block: av.AudioFrame) -> int | None:
        """The louder channel where the mix would be far below the channels; None for the mix."""
        if self._count < 2 or self._item is None:
            return None
        if self._channel is None and self._seems_ordinary(block):
            return None
        likeness, powers = _likeness(self._samples(block, CLOSE_LOOK))
        if not any(powers):
            return self._channel
        if likeness >= (CANCELLED if self._channel is None else RESTORED):
            self._channel = None
        elif self._channel is None:
            # Of channels that are about as loud, always the first: the others have another sign.
            enough = SAME_LEVEL * max(powers)
            self._channel = next(i for i, power in enumerate(powers) if power >= enough)
        return self._channel

    def _seems_ordinary(self, block: av.AudioFrame) -> bool:
        """Whether a look at few samples shows no cancellation, or none is due."""
        self._blocks_to_next_look -= 1
        if self._blocks_to_next_look > 0:
            return True
        if _likeness(self._samples(block, LOOK))[0] < RESTORED:
            self._blocks_to_next_look = 1
            return False
        self._blocks_to_next_look = BLOCKS_BETWEEN_LOOKS
        return True

    def _samples(self, block: av.AudioFrame, instants: int) -> list[list[float]]:
        """The samples of each channel at about so many instants of the block."""
        count, step = self._count, max(1, block.samples // instants)
        planes = block.planes
        if self._is_planar:
            end = block.samples
            views = [memoryview(plane).cast(self._item)[:end:step] for plane in planes[:count]]
        else:
            packed = memoryview(planes[0]).cast(self._item)[: block.samples * count]
            views = [packed[channel :: count * step] for channel in range(count)]
        if self._item == "B":
            return [[sample - U8_ZERO for sample in view] for view in views]
        return [view.tolist() for view in views]


def _likeness(channels: list[list[float]]) -> tuple[float, list[float]]:
    """(power of the sum of the channels / sum of their powers, powers).

    1 where they have nothing in common. Without any sound it is 1 as well.
    """
    powers = [_product(channel, channel) for channel in channels]
    total = sum(powers)
    sums_before = accumulate(channels, _added)
    mix = total + 2 * sum(map(_product, channels[1:], sums_before))
    return mix / total if total else 1.0, powers


def _product(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(map(mul, a, b))


def _added(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return list(map(add, a, b))


def _item(frame: av.AudioFrame) -> str | None:
    """The type of its samples for memoryview."""
    return ITEMS.get(frame.format.name.removesuffix("p"))


def as_one_channel(frame: av.AudioFrame, channel: int | None) -> av.AudioFrame:
    """A packed frame of more channels than FFmpeg's filters take, as mono.

    `channel`: the only one; None mixes all in equal parts. For that its samples are taken for
    those of one channel at a rate as many times higher: resampling takes their mean.
    """
    count = frame.layout.nb_channels
    size = frame.samples * count * frame.format.bytes
    packed = memoryview(frame.planes[0])[:size]
    if channel is not None:
        packed = memoryview(packed.cast(_item(frame))[channel::count].tobytes())
    mono = av.AudioFrame(frame.format.name, "mono", packed.nbytes // frame.format.bytes)
    mono.sample_rate = frame.sample_rate * (count if channel is None else 1)
    mono.planes[0].update(packed.tobytes().ljust(mono.planes[0].buffer_size, b"\0"))
    return mono
