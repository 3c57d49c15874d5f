"""The child process of pcm_stream.py: decodes one file to int16 mono on stdout.

    python decoder '{"rate": 16000, "descriptor": 3, …}'    the arguments of `_main`, as JSON

It reads only the file that is open as `descriptor`, which may grow until stdin is closed;
sandbox.py takes all other rights away. FFmpeg's libraries come with PyAV. Neither numpy nor asyncio
is imported: each takes longer to load than a minute of audio to decode. No module of the worker
imports this one.

Each report is one line of JSON on stderr, {"kind": …, "message": …}. A failure is the last one and
has the kind "empty", "undecodable", "too long" or "no channel". The kinds "warning" and "damage"
are no failures. "damage" has "spans" too: (start, end) of each lost stretch in milliseconds.
"""

import io
import json
import os
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
from damage import DamagedSpans
from growing_file import ForwardOnlyFile, GrowingFile
from length import LENGTH_OF_ALL_TRACKS, declared_seconds, estimated_seconds, is_longer
from packets import Packets
from parts import Parts, WavParts, flac_parts, ogg_parts
from report import FileRefused, report
from sandbox import confine
from tags import without_tags
from track import Track

OUT_BYTES = 1 << 18  # 8 s at 16 kHz: each write wakes the worker
SAMPLED_PACKETS = 500  # packets that show how long a file of its size is
# The first bytes of Ogg, WAV, Matroska and WebM, which are decoded the same without seeking.
FORWARD_ONLY = (b"OggS", b"RIFF", b"RF64", b"\x1a\x45\xdf\xa3")
# Demuxers of files that may hold tags between their frames, or several recordings.
TAGGED = ("mp3", "aac")
PARTS = {"ogg": ogg_parts, "flac": flac_parts, "wav": WavParts}
MAX_HELD_BYTES = 10 << 20  # 5 minutes at 16 kHz
MIN_DECODED_SHARE = 0.1  # a recording of which less can be decoded is refused
# No playlists, no concatenation, no devices: nothing that opens another file or address.
DEMUXERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,eac3,flac,flv,loas,matroska,mov,mp3,mpeg,"
    "mpegts,ogg,tta,w64,wav,webm,wv"
)


def _main(
    rate: int,
    descriptor: int,
    size: int | None = None,
    channel: int | None = None,
    offset: int = 0,
    end: int = sys.maxsize,
    limit: float = inf,
) -> int:
    """Write the file's audio at `rate` to stdout; returns the exit status.

    It begins with the file's first sample and ends before the sample `end`.
    `size`: bytes of the complete file, None where unknown. `channel`: the only one to decode, from
    0; None mixes all. `limit`: a file that declares more seconds than this between the samples
    `offset` and `end` is refused.
    """
    out = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "wb", closefd=False), OUT_BYTES)
    with suppress(OSError):  # over the user's limit for pipes, which makes writes smaller
        fcntl(out.fileno(), F_SETPIPE_SZ, 2 * OUT_BYTES)
    file = GrowingFile(descriptor, size)
    confine()
    try:
        for block in _decode(file, rate, channel, offset, end, limit):
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
    file: GrowingFile, rate: int, channel: int | None, offset: int, end: int, limit: float
) -> Iterator[bytes]:
    """The best audio track of the file as little-endian int16 mono; arguments as for `_main`."""
    container, parts = _open(file)
    with container:
        stream = _best_track(container)
        packets = Packets(container, stream, _following_tracks(parts, container.format.name))
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
        damage = DamagedSpans(offset / rate, end / rate)
        track = Track(container, stream, packets, rate, channel, declared, damage)
        missing = 2 * end  # bytes
        blocks = chain(track.decode(chain(read, unread)), track.finish())
        for block in _while_decodable(blocks, track):
            yield block[:missing]
            missing -= len(block)
            if missing <= 0:
                break
        _report_damage(damage, min(track.seconds, end / rate) - offset / rate)
        if missing > 0:
            _warn_of_missing_audio(declared, track, packets)


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


def _while_decodable(blocks: Iterable[bytes], track: Track) -> Iterator[bytes]:
    """The blocks, held back while next to nothing of the audio so far can be decoded.

    So no model is asked for the sound of a file that is refused.
    Raises FileRefused where next to nothing could be decoded in the end.
    """
    held: list[bytes] = []
    held_bytes = 0
    for block in blocks:
        held.append(block)
        held_bytes += len(block)
        if track.decoded_share >= MIN_DECODED_SHARE or held_bytes > MAX_HELD_BYTES:
            yield from held
            held, held_bytes = [], 0
    if track.decoded_share < MIN_DECODED_SHARE:
        raise FileRefused(
            "undecodable",
            f"The file at audio_url is damaged: only {track.decoded_share:.1%} of its audio can be "
            "decoded.",
        )
    yield from held


def _report_damage(damage: DamagedSpans, seconds: float) -> None:
    """`seconds`: the length of the audio, or of its part."""
    if damage.seconds:
        report(
            "damage",
            f"The file is damaged: {damage.seconds:.1f} of {seconds:.1f} seconds of audio are lost "
            "and silent; damaged_spans says which.",
            spans=damage.in_milliseconds(),
        )


def _warn_of_missing_audio(declared: float, track: Track, packets: Packets) -> None:
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


def _open(file: GrowingFile) -> tuple[av.container.InputContainer, Parts | None]:
    """The container, and the file where other recordings may be joined behind that one."""
    av.logging.set_level(av.logging.PANIC)
    head = file.read(512)
    file.seek(0, os.SEEK_SET)
    _refuse_non_media(head)
    source = ForwardOnlyFile(file) if head.startswith(FORWARD_ONLY) else file
    container = _container(source)
    name = container.format.name
    if name not in TAGGED and name not in PARTS:
        return container, None
    container.close()
    file.seek(0, os.SEEK_SET)
    parts = PARTS[name](file) if name in PARTS else None
    return _container(parts or without_tags(file), name), parts


def _container(source: object, name: str | None = None) -> av.container.InputContainer:
    """`name`: that of the demuxer, None to find it."""
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
    try:
        return av.open(source, format=name, container_options=options)
    except (av.error.FFmpegError, ValueError) as error:
        raise FileRefused(
            "undecodable", "The file at audio_url is not audio or video in a known format."
        ) from error


def _following_tracks(parts: Parts | None, name: str) -> Iterator[av.AudioStream]:
    """The tracks of the recordings that are joined behind the first one.

    It warns of those that it leaves out. `name`: that of their demuxer.
    """
    left_out = 0
    while parts is not None and parts.next():
        try:
            with _container(parts, name) as container:
                yield _best_track(container)
        except FileRefused:
            left_out += 1
    if left_out:
        report(
            "warning",
            "Several recordings are joined in this file, and no audio could be decoded from "
            f"{left_out} of them; it is left out.",
        )


def _refuse_non_media(head: bytes) -> None:
    if not head:
        raise FileRefused("empty", "The file at audio_url is empty (0 bytes).")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise FileRefused(
            "undecodable",
            "The file at audio_url is a web page, not audio; the URL must lead to the file itself.",
        )


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
