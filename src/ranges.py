"""Time ranges of one track decoded side by side on several cores: sample by sample what one pass gives.

Part of the child process of audio.py. One process reads packets; helpers forked from it decode a range each, beginning LEAD
packets early, so that decoder and resampler have forgotten where they began. From the first packet on that is not what was
promised, and for the end of the file, it goes on alone and with care, as track.py does for every other codec.
"""

import os
import signal
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from math import gcd
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING

import av

from track import Resampler, Track

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

LEAD = {"mp3float": 24, "flac": 0}  # packets after which a decoder's state is that of one which began at the start
# not here: AAC, whose noise comes from one generator for the whole file, and Opus, whose filters forget but by and by
RANGE_SECONDS = 20
FRINGE = 512  # samples on either side of a range that its resampling depends on, generously
PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass(frozen=True, slots=True)
class _Range:
    packets: Iterable  # those of the last are read on and on
    number: int  # of its first packet in the file
    lead: int  # of its packets are for the decoder's state alone
    sample: int  # of the track, at which the sound behind the lead begins
    drop: int  # samples of that sound that are not for the resampler
    skip: int  # samples that the resampler then gives too early
    lengths: list[int]  # samples of each packet
    last: bool


def side_by_side(track: Track, packets: Iterable, helpers: int) -> Iterator[bytes]:
    """What `track.decode(packets)` gives, but for the sizes of its blocks, by so many helpers."""
    coming, first, given = iter(packets), [], 0
    for packet in coming:
        first.append((packet, track.seconds))
        for block in track.decode((packet,)):
            given += len(block) // 2
            yield block
        if track.seconds >= RANGE_SECONDS:
            break
    if track.seconds < RANGE_SECONDS or track.mended or _is_cut(packet):
        return (yield from track.decode(coming))
    try:
        pool = _helpers(track, helpers)
    except OSError:  # no more processes, or no semaphores, are to be had
        return (yield from track.decode(coming))
    with pool:
        ranges = _in_thread(_ranges(track, first, coming, given), pool, Queue(helpers + 1))
        for range_, future in ranges:
            if sound := _result(future):
                yield sound
            else:
                pool.shutdown(cancel_futures=True)
                yield from track.resume(_from(range_, ranges), range_.lead, range_.sample, range_.drop, range_.skip)


def _ranges(track: Track, first: list[tuple], coming: Iterator, given: int) -> Iterator[_Range]:
    """Ranges of RANGE_SECONDS from the sample `given` of the output on; the last is the rest.

    `first`: the packets that have been decoded, each with the seconds of sound before it.
    """
    source, rate = track.last.sample_rate, track.rate
    step, wanted = source // gcd(source, rate), RANGE_SECONDS * rate  # `step` samples in are a whole number out
    held, starts = [packet for packet, _ in first], [round(seconds * source) for _, seconds in first]
    end, promised, number = round(track.seconds * source), None, 0

    def cut(packets: Iterable = (), last: bool = False) -> _Range:
        nonlocal number
        sample = (given * source // rate - FRINGE) // step * step
        begin = bisect_right(starts, sample) - 1
        before = max(0, begin - LEAD[track.codec.name])
        del held[:before], starts[:before]
        number += before
        begin -= before
        return _Range(
            chain(held, packets) if last else list(held),
            number, begin, starts[begin], sample - starts[begin], given - sample * rate // source,
            [b - a for a, b in zip(starts, [*starts[1:], end])], last,
        )  # fmt: skip

    ticks = length = None  # of a packet
    for packet in coming:
        pts, duration = packet.pts, packet.duration
        if duration != ticks:
            ticks, length = duration, round((duration or 0) * track.tick * source)
        if not length or pts is None or promised not in (None, pts) or _is_cut(packet):
            yield cut(chain((packet,), coming), last=True)
            return
        promised = pts + duration
        held.append(packet)
        starts.append(end)
        end += length
        if end * rate >= (given + wanted) * source + FRINGE * rate:
            yield cut()
            given += wanted
    yield cut(last=True)


def _is_cut(packet) -> bool:
    """Whether it gives less sound than others, as at the end of a file."""
    return not packet.size or packet.has_sidedata("skip_samples")


def _in_thread(ranges: Iterator[_Range], pool: "ProcessPoolExecutor", queue: Queue) -> Iterator[tuple[_Range, "Future | None"]]:
    """Each range with its future; they are read ahead, so that a file which arrives slowly holds up no result."""

    def feed() -> None:
        try:
            for range_ in ranges:
                queue.put((range_, None if range_.last else _submitted(pool, range_)))
        except BaseException as error:
            queue.put(error)

    Thread(target=feed, name="packets", daemon=True).start()
    while not isinstance(item := queue.get(), BaseException):
        yield item
        if item[0].last:
            return
    raise item


def _from(range_: _Range, later: Iterator[tuple[_Range, "Future | None"]]) -> Iterator:
    """Its packets, and those behind it."""
    following = range_.number
    for each in chain((range_,), (r for r, _ in later)) if not range_.last else (range_,):
        for packet in islice(each.packets, following - each.number, None):
            following += 1
            yield packet


def _helpers(track: Track, count: int) -> "ProcessPoolExecutor":
    """Forked at once, before this process has a second thread; each inherits the track's decoder."""
    from concurrent.futures import ProcessPoolExecutor  # as long to import as some seconds of sound to decode
    from multiprocessing import get_context

    global _track
    _track = track
    pool = ProcessPoolExecutor(count, get_context("fork"), _die_with, (os.getpid(),))
    pool.submit(int).result()
    return pool


def _die_with(parent: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _submitted(pool: "ProcessPoolExecutor", range_: _Range) -> "Future | None":
    sizes = [packet.size for packet in range_.packets]
    data = b"".join(map(bytes, range_.packets))
    try:
        return pool.submit(_decoded, data, sizes, range_.lengths, range_.lead, range_.drop, range_.skip)
    except RuntimeError:  # a helper has died, or one before this has already failed
        return None


def _result(future: "Future | None") -> bytes | None:
    try:
        return future and future.result()
    except RuntimeError:
        return None


def _decoded(data: bytes, sizes: list[int], lengths: list[int], lead: int, drop: int, skip: int) -> bytes | None:
    """In a helper: RANGE_SECONDS of sound, or None where anything is out of the ordinary."""
    codec, shape, resampler = _track.codec, _track.resampler.shape, Resampler(_track.rate, drop, skip)
    codec.flush_buffers()
    sound, begin = [], 0
    for i, (size, length) in enumerate(zip(sizes, lengths)):
        packet, begin = av.Packet(data[begin : begin + size]), begin + size
        try:
            frames = codec.decode(packet)
        except av.error.FFmpegError:
            frames = ()
        if i < lead:
            continue
        if len(frames) != 1 or frames[0].samples != length:
            return None
        sound.append(resampler.push(frames[0]))
        if resampler.shape != shape:
            return None
    whole = b"".join([*sound, resampler.ready()])
    wanted = 2 * RANGE_SECONDS * _track.rate
    return whole[:wanted] if len(whole) >= wanted else None
