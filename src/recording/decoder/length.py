"""How long the audio of a file is by what the file declares, and by its size."""

import struct
from fractions import Fraction
from math import inf

import av
from growing_file import GrowingFile

# FFmpeg's names of demuxers.
MATROSKA = "matroska,webm"
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
LENGTH_OF_ALL_TRACKS = (MATROSKA, "asf", "flv")  # they declare that of the longest track
LENGTH_OF_TRACK = ("aiff", "ape", "au", "dsf", "rm", "tta", "wv")
FRAMES_OF_TRACK = ("avi", "caf")  # they declare a count of frames
MAX_GAP_SECONDS = 3600  # a longer jump of the timestamps is a broken clock, if nothing confirms it
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
MAX_ASF_HEADER_BYTES = 1 << 16
MAX_MPEG_FRAME_BYTES = 2881  # MPEG-1 layer III at 320 kbit/s and 32 kHz is less
# A declared length may be wrong by the larger of these two.
LENGTH_ERROR_SECONDS = 1.0
LENGTH_ERROR_SHARE = 0.01
# A WAV written as a stream declares about one of these sizes, in bytes.
UNKNOWN_SIZES = (2**31, 2**32)
UNKNOWN_SIZE_MARGIN = 2**16
W64_HEADER_BYTES = 24  # a chunk's size includes its header


def is_longer(declared: float, seconds: float) -> bool:
    """Whether `declared` is longer than `seconds` by more than its error."""
    return declared - seconds > max(LENGTH_ERROR_SECONDS, LENGTH_ERROR_SHARE * declared)


def start_of_file(container: av.container.InputContainer) -> float:
    """The timestamp in seconds that players show as 0; infinite where only the audio can say it.

    For FFmpeg a file starts with its earliest track, video included. An MP4 starts at 0: a track
    alone that starts later is so by an edit list. Fragments without an index keep a live clock.
    """
    streams = container.streams
    if container.start_time is None:
        return inf
    microseconds: int = container.start_time
    start = microseconds / av.time_base
    if len(streams) > 1:
        return start
    has_index = container.format.name == MP4 and streams[0].frames > 0
    return 0.0 if has_index and 0 <= start < MAX_GAP_SECONDS else inf


def declared_seconds(
    file: GrowingFile, container: av.container.InputContainer, first: av.Packet
) -> float:
    """The length that the file declares, from time 0 to the end of the audio.

    0 where FFmpeg would only estimate it. For LENGTH_OF_ALL_TRACKS it is the length of the longest.
    `first`: the first packet of the audio.
    """
    name, stream = container.format.name, first.stream
    length = float((stream.duration or 0) * stream.time_base)
    if name == "asf":
        return _declared_seconds_of_asf(file)
    if name in LENGTH_OF_ALL_TRACKS:
        microseconds: int = container.duration or 0
        return microseconds / av.time_base
    if name in (MP4, "flac"):
        start = float((stream.start_time or 0) * stream.time_base)
        return max(0.0, start - start_of_file(container)) + length
    if name in FRAMES_OF_TRACK:
        return float(stream.frames * stream.time_base)
    if name in ("wav", "w64") and first.size:
        return _declared_seconds_of_wav(file, first, name)
    if name == "mp3":
        return _declared_seconds_of_mp3(file, first)
    return length if name in LENGTH_OF_TRACK else 0.0


def _declared_seconds_of_wav(file: GrowingFile, first: av.Packet, name: str) -> float:
    """From the header: FFmpeg does not tell the declared size where the file holds less."""
    if name == "w64":
        size = file.read_integer(first.pos - 8, 8) - W64_HEADER_BYTES
    else:
        size = file.read_integer(first.pos - 4, 4)
    is_rf64 = file.read_integer(0, 4) == int.from_bytes(b"RF64", "little")
    if is_rf64 and size == 2**32 - 1:
        size = file.read_integer(28, 8)
    if any(abs(size - unknown) <= UNKNOWN_SIZE_MARGIN for unknown in UNKNOWN_SIZES):
        return 0.0
    stream = first.stream
    if not stream.codec_context.name.startswith("pcm_"):
        return float((stream.duration or 0) * stream.time_base)
    packet_bytes: int = first.size
    return float(first.duration * stream.time_base) * size / packet_bytes


def _declared_seconds_of_asf(file: GrowingFile) -> float:
    """From the file properties object, which FFmpeg does not believe where the file is cut.

    Advanced Systems Format Specification, section 3.2.
    """
    head = file.read_at(0, MAX_ASF_HEADER_BYTES)
    at = head.find(ASF_FILE_PROPERTIES)
    if at < 0 or len(head) < at + 92:
        return 0.0
    duration, _, preroll, flags = struct.unpack_from("<QQQI", head, at + 64)
    is_broadcast = flags & 1
    return 0.0 if is_broadcast else max(0.0, duration / 1e7 - preroll / 1e3)


def _declared_seconds_of_mp3(file: GrowingFile, first: av.Packet) -> float:
    """From the Xing, Info or VBRI header in the frame before the first one with sound."""
    end = first.pos or 0
    begin = max(0, end - MAX_MPEG_FRAME_BYTES)
    head = file.read_at(begin, end - begin)
    frames = 0
    for name in (b"Xing", b"Info"):
        at = head.rfind(name)
        if at >= 0 and head[at + 7 : at + 8] and head[at + 7] & 1:
            frames = int.from_bytes(head[at + 8 : at + 12], "big")
    if (at := head.rfind(b"VBRI")) >= 0:
        frames = int.from_bytes(head[at + 14 : at + 18], "big")
    return float(frames * (first.duration or 0) * first.stream.time_base)


def estimated_seconds(size: int | None, packets: list[av.Packet]) -> float:
    """Length of a file of `size` bytes that has the bit rate of these packets throughout.

    0 where it cannot be estimated.
    """
    places: list[tuple[int, Fraction]] = [
        (packet.pos, packet.pts * packet.time_base)
        for packet in packets
        if packet.pos is not None and packet.pts is not None
    ]
    (first_byte, start), (last_byte, end) = min(places), max(places)
    if not size or last_byte <= first_byte:
        return 0.0
    return size * float(end - start) / (last_byte - first_byte)
