"""The child process of pcm_stream.py: decodes one file to int16 mono on stdout.

    python decoder '{"rate": 16000, "descriptor": 3, …}'    the arguments of `_main`, as JSON

It reads only the file that is open as `descriptor`, which may grow until stdin is closed;
sandbox.py takes all other rights away. FFmpeg's libraries come with PyAV. Neither numpy nor asyncio
is imported: each takes longer to load than a minute of audio to decode. No module of the worker
imports this one.

A failure is one line of JSON on stderr, {"kind": …, "message": …} with the kind "empty",
"undecodable", "too long" or "no channel". A line of the kind "warning" is no failure: the file
holds less than it declares.
"""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl
from itertools import chain, islice
from math import inf

import av

# PyAV imports these two with the first track, when confine() forbids it.
import av.subtitles.codeccontext
import av.subtitles.stream
from demuxers import DEMUXERS, DEMUXERS_BY_SUFFIX
from growing_file import ForwardOnlyFile, GrowingFile
from length import MATROSKA, declared_seconds, estimated_seconds, is_longer
from packets import Packets
from refusals import refuse_no_recording, refuse_protected_tracks, refuse_text_or_broken_file
from report import FileRefused, report
from sandbox import confine
from track import Track

OUT_BYTES = 1 << 18  # 8 s at 16 kHz: each write wakes the worker
SAMPLED_PACKETS = 500  # packets that show how long a file of its size is
# The first bytes of Ogg, WAV, Matroska and WebM, which are decoded the same without seeking.
FORWARD_ONLY = (b"OggS", b"RIFF", b"RF64", b"\x1a\x45\xdf\xa3")
OPEN_OPTIONS = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}


def _main(
    rate: int,
    descriptor: int,
    size: int | None = None,
    suffix: str = "",
    channel: int | None = None,
    offset: int = 0,
    end: int = sys.maxsize,
    limit: float = inf,
) -> int:
    """Write the file's audio at `rate` to stdout; returns the exit status.

    It begins with the file's first sample and ends before the sample `end`.
    `size`: bytes of the complete file, None where unknown. `suffix`: of the file's name, in lower
    case and without the dot; some formats have no other mark. `channel`: the only one to decode,
    from 0; None mixes all. `limit`: a file that declares more seconds than this between the
    samples `offset` and `end` is refused.
    """
    out = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "wb", closefd=False), OUT_BYTES)
    with suppress(OSError):  # over the user's limit for pipes, which makes writes smaller
        fcntl(out.fileno(), F_SETPIPE_SZ, 2 * OUT_BYTES)
    file = GrowingFile(descriptor, size)
    confine()
    try:
        for block in _decode(file, suffix, rate, channel, offset, end, limit):
            out.write(block)
        out.flush()
    except FileRefused as failure:
        out.flush()
        report(*failure.args)
        return 1
    except BrokenPipeError:  # The job has ended.
        return 1
    return 0


def _decode(
    file: GrowingFile,
    suffix: str,
    rate: int,
    channel: int | None,
    offset: int,
    end: int,
    limit: float,
) -> Iterator[bytes]:
    """The best audio track of the file as little-endian int16 mono; arguments as for `_main`."""
    with _open(file, suffix) as container:
        stream = _best_track(container)
        packets = Packets(container, stream)
        track = Track(container, stream, packets, rate, channel)
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
        missing = 2 * end  # bytes
        for block in chain(track.decode(chain(read, unread)), track.finish()):
            yield block[:missing]
            missing -= len(block)
            if missing <= 0:
                break
        track.check_damage()
        if missing > 0:
            _warn_of_missing_audio(declared, track, packets)


def _declares_audio(container: av.container.InputContainer) -> bool:
    """Whether the declared length is the audio's.

    A Matroska with video may declare the video's, which cannot refuse the audio.
    """
    return container.format.name != MATROSKA or len(container.streams) == 1


def _too_long(limit: float) -> FileRefused:
    return FileRefused(
        "too long",
        f"The audio is longer than the {limit:g} seconds allowed; "
        "start and end can choose a part of it.",
    )


def _warn_of_missing_audio(declared: float, track: Track, packets: Packets) -> None:
    held = max(track.seconds, packets.end)  # Some writers declare the last timestamp.
    if is_longer(declared, held) and not is_longer(packets.other_tracks_end, held):
        report(
            "warning",
            f"The file declares {declared:.1f} seconds of audio, "
            f"but holds only {track.seconds:.1f}; the rest is missing.",
        )


def _open(file: GrowingFile, suffix: str) -> av.container.InputContainer:
    av.logging.set_level(av.logging.PANIC)
    refuse_no_recording(file)
    head = file.read(len(max(FORWARD_ONLY, key=len)))
    file.seek(0, os.SEEK_SET)
    source = ForwardOnlyFile(file) if head.startswith(FORWARD_ONLY) else file
    try:
        container = av.open(source, container_options=OPEN_OPTIONS)
    except (av.error.FFmpegError, ValueError) as error:
        refuse_text_or_broken_file(file)
        container = _opened_by_suffix(file, suffix, error)
    if not container.streams.audio:
        refuse_text_or_broken_file(file)
    refuse_protected_tracks(container)
    for stream in container.streams.audio:
        if stream.codec_context is not None:
            # sandbox.py allows no threads. Without them WavPack and DSD lost their first packet.
            stream.codec_context.thread_count = 1
    return container


def _opened_by_suffix(
    file: GrowingFile, suffix: str, error: Exception
) -> av.container.InputContainer:
    """Raises FileRefused, from `error`, where the suffix does not tell the format either."""
    demuxer = DEMUXERS_BY_SUFFIX.get(suffix)
    if demuxer is None:
        raise FileRefused(
            "undecodable", "The file at audio_url is not audio or video in a known format."
        ) from error
    file.seek(0, os.SEEK_SET)
    return av.open(file, format=demuxer, container_options=OPEN_OPTIONS)


def _best_track(container: av.container.InputContainer) -> av.AudioStream:
    stream = container.streams.best("audio")
    if stream is None:
        raise FileRefused("undecodable", "The file at audio_url has no audio track.")
    if stream.codec_context is None:  # Decoding a packet of it would crash PyAV.
        raise FileRefused(
            "undecodable",
            "The audio track of the file at audio_url is in a format that is not known.",
        )
    return stream


if __name__ == "__main__":
    sys.exit(_main(**json.loads(sys.argv[1])))
