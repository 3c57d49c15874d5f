"""The child process of pcm_stream.py: decodes one file to int16 on stdout.

    python decoder '{"rate": 16000, "descriptor": 3, …}'    the arguments of `_main`, as JSON

It reads only the file that is open as `descriptor`, which may grow until stdin is closed;
sandbox.py takes all other rights away. FFmpeg's libraries come with PyAV. Neither numpy nor asyncio
is imported: each takes longer to load than a minute of audio to decode. No module of the worker
imports this one.

Each report is one line of JSON on stderr, {"kind": …, "message": …}. A failure has the kind
"empty", "undecodable", "too long", "no channel" or "no track". Four kinds are no failure: a
"warning"; "found", which has more fields: `Found` of pcm_stream.py; "damage", which has "spans":
(start, end) of each lost stretch in milliseconds; and "channels", which comes before the first
sample where channels or tracks are decoded by themselves. Its "numbers" are theirs, in the order in
which their samples are interleaved.
"""

import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl
from itertools import chain, islice
from math import inf

import av

# PyAV imports these two with the first track, when confine() forbids it.
import av.subtitles.codeccontext
import av.subtitles.stream
from channels import EACH
from damage import DamagedSpans, while_decodable
from growing_file import GrowingFile
from length import LENGTH_OF_ALL_TRACKS, declared_seconds, estimated_seconds, is_longer
from levels import Levels, decibels
from mixed_tracks import MixedTracks
from opening import following_tracks, opened
from packets import Packets
from report import FileRefused, report
from sandbox import confine
from track import Track
from tracks import DEFAULT, Choice, chosen

OUT_BYTES = 1 << 18  # 8 s at 16 kHz: each write wakes the worker
SAMPLED_PACKETS = 500  # packets that show how long a file of its size is


def _main(
    rate: int,
    descriptor: int,
    size: int | None = None,
    suffix: str = "",
    track: int | str = DEFAULT,
    channel: int | str | None = None,
    offset: int = 0,
    end: int = sys.maxsize,
    limit: float = inf,
) -> int:
    """Write the file's audio at `rate` to stdout; returns the exit status.

    It begins with the file's first sample and ends before the sample `end`.
    `size`: bytes of the complete file, None where unknown. `suffix`: of the file's name, in lower
    case and without the dot; some formats have no other mark. `track`: the audio track to decode,
    from 0; DEFAULT for the one that players take, MIX for all, EACH for all by themselves.
    `channel`: the only one to decode, from 0; None mixes all, EACH keeps them. `limit`: a file that
    declares more seconds than this between the samples `offset` and `end` is refused.
    """
    out = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "wb", closefd=False), OUT_BYTES)
    with suppress(OSError):  # over the user's limit for pipes, which makes writes smaller
        fcntl(out.fileno(), F_SETPIPE_SZ, 2 * OUT_BYTES)
    file = GrowingFile(descriptor, size)
    confine()
    av.logging.set_level(av.logging.PANIC)
    try:
        for block in _decode(file, suffix, rate, track, channel, offset, end, limit):
            out.write(block)
        out.flush()
    except FileRefused as failure:
        out.flush()
        report(*failure.args)
        return 1
    except BrokenPipeError:  # The job has ended.
        return 1
    except av.error.FFmpegError as error:
        report("undecodable", f"The audio decoder failed on this file: {error.strerror}.")
        return 1
    return 0


def _decode(
    file: GrowingFile,
    suffix: str,
    rate: int,
    which: int | str,
    channel: int | str | None,
    offset: int,
    end: int,
    limit: float,
) -> Iterator[bytes]:
    """The audio of the file as little-endian int16; arguments as for `_main`."""
    container, parts = opened(file, suffix)
    with container:
        choice = chosen(container, which)
        if which == EACH and len(choice.streams) > 1:  # Each track becomes one of their channels.
            channel = EACH
        # FLAC numbers its channels as a film does, whatever they are.
        levels = Levels(rate, channel, end, no_films=container.format.name == "flac")
        following = following_tracks(parts, container.format.name)
        part = (offset / rate, end / rate)
        track, packets = _tracks(container, choice.streams, following, levels, part)
        unread = iter(packets)
        read = list(islice(unread, 1))
        declared = declared_seconds(file, container, read[0]) if read else 0.0
        max_seconds = offset / rate + limit
        may_be_too_long = end / rate > max_seconds and _declares_audio(container)
        if may_be_too_long and is_longer(declared, max_seconds):
            read += islice(unread, SAMPLED_PACKETS)
            estimated = estimated_seconds(file.known_size, read)
            if is_longer(min(declared, estimated), max_seconds):
                raise _too_long(limit)
        track.declare(declared)
        missing = 2 * end  # bytes of each channel
        decoded = chain(track.decode(chain(read, unread)), track.finish())
        blocks = while_decodable(decoded, lambda: track.decoded_share)
        if EACH in (which, channel):
            blocks = _with_numbers(blocks, levels, choice.numbers if which == EACH else None)
        for block in blocks:
            width = levels.width or 1
            yield block[: missing * width]
            missing -= len(block) // width
            if missing <= 0:
                break
        track.damage.warn(track.seconds)
        if missing > 0:
            _warn_of_missing_audio(declared, track, packets)
        _warn_of_levels(levels)
        _report_found(choice, levels)


def _report_found(choice: Choice, levels: Levels) -> None:
    report(
        "found",
        "",
        tracks=choice.total,
        track=choice.numbers[0] if len(choice.numbers) == 1 else None,
        channels=levels.channels,
        peak=levels.peak,
    )


def _with_numbers(
    blocks: Iterable[bytes], levels: Levels, numbers: list[int] | None
) -> Iterator[bytes]:
    """The same blocks; before the first one the numbers of the interleaved channels are reported.

    `numbers`: None for those from 0.
    """
    unread = iter(blocks)
    first = list(islice(unread, 1))
    report("channels", "", numbers=numbers or list(range(levels.width)))
    yield from chain(first, unread)


def _tracks(
    container: av.container.InputContainer,
    streams: list[av.AudioStream],
    following: Iterator[av.AudioStream],
    levels: Levels,
    part: tuple[float, float],
) -> tuple[Track | MixedTracks, Packets | MixedTracks]:
    """What decodes these streams to int16, and their packets.

    `following`: the tracks of joined parts. `part`: start and end of the wanted part, in seconds.
    """
    if len(streams) > 1:
        mixed = MixedTracks(container, streams, levels, part)
        return mixed, mixed
    packets = Packets(container, streams[0], following)
    return Track(container, streams[0], packets, levels, DamagedSpans(*part)), packets


def _declares_audio(container: av.container.InputContainer) -> bool:
    """Whether the declared length is the audio's.

    A Matroska with video may declare the video's, which cannot refuse the audio.
    """
    return container.format.name not in LENGTH_OF_ALL_TRACKS or len(container.streams) == 1


def _too_long(limit: float) -> FileRefused:
    return FileRefused(
        "too long",
        f"The audio is longer than the {limit:g} seconds allowed; "
        "start and end can choose a part of it.",
    )


def _warn_of_missing_audio(
    declared: float, track: Track | MixedTracks, packets: Packets | MixedTracks
) -> None:
    held = max(track.seconds, packets.end)  # Some writers declare the last timestamp.
    if is_longer(declared, held) and not is_longer(packets.other_tracks_end, held):
        report(
            "warning",
            f"The file declares {declared:.1f} seconds of audio, "
            f"but holds only {track.seconds:.1f}; the rest is missing.",
        )
    elif packets.is_broken:
        report(
            "warning",
            f"The file is damaged behind its first {track.seconds:.1f} seconds of audio "
            "and cannot be read further.",
        )


def _warn_of_levels(levels: Levels) -> None:
    if levels.peak and levels.gain > 1:
        report(
            "warning",
            f"The recording is very quiet: its peak level is {decibels(levels.peak):.1f} dBFS. "
            f"It was amplified by {decibels(levels.gain):.1f} dB.",
        )
    if levels.left_out:
        report(
            "warning",
            f"The audio begins with {levels.width} channels and later has more; "
            f"of those beyond the first {levels.width} nothing was transcribed.",
        )
    if levels.instead_of_mix:
        channels = ", ".join(map(str, sorted(levels.instead_of_mix)))
        report(
            "warning",
            "The channels are in opposite phase and cancel each other in the mix; instead of it, "
            f"channel {channels} was transcribed there.",
        )


if __name__ == "__main__":
    sys.exit(_main(**json.loads(sys.argv[1])))
