"""How long the audio of a file is by what the file declares, and by its size."""

from fractions import Fraction

import av
from growing_file import GrowingFile

MATROSKA = "matroska,webm"  # FFmpeg's name of the demuxer
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"  # FFmpeg's name of the demuxer
# A declared length may be wrong by the larger of these two.
LENGTH_ERROR_SECONDS = 1.0
LENGTH_ERROR_SHARE = 0.01
# A WAV written as a stream declares about one of these sizes, in bytes.
UNKNOWN_SIZES = (2**31, 2**32)
UNKNOWN_SIZE_MARGIN = 2**16


def is_longer(declared: float, seconds: float) -> bool:
    """Whether `declared` is longer than `seconds` by more than its error."""
    return declared - seconds > max(LENGTH_ERROR_SECONDS, LENGTH_ERROR_SHARE * declared)


def declared_seconds(
    file: GrowingFile, container: av.container.InputContainer, first: av.Packet
) -> float:
    """The length that the file declares, from time 0 to the end of the audio.

    0 where FFmpeg would only estimate it. For Matroska it is the length of the longest track.
    `first`: the first packet of the audio.
    """
    name, stream = container.format.name, first.stream
    if name == MATROSKA:
        microseconds: int = container.duration or 0
        return microseconds / av.time_base
    if name in (MP4, "flac"):
        file_start = Fraction(container.start_time or 0, av.time_base)
        late = (stream.start_time or 0) * stream.time_base - file_start
        return float(late + (stream.duration or 0) * stream.time_base)
    if name == "wav" and stream.codec_context.name.startswith("pcm_") and first.size:
        return _declared_seconds_of_wav(file, first)
    return 0.0


def _declared_seconds_of_wav(file: GrowingFile, first: av.Packet) -> float:
    """From the header: FFmpeg does not tell the declared size where the file holds less."""
    size = file.read_integer(first.pos - 4, 4)
    is_rf64 = file.read_integer(0, 4) == int.from_bytes(b"RF64", "little")
    if is_rf64 and size == 2**32 - 1:
        size = file.read_integer(28, 8)
    if any(abs(size - unknown) <= UNKNOWN_SIZE_MARGIN for unknown in UNKNOWN_SIZES):
        return 0.0
    packet_bytes: int = first.size
    return float(first.duration * first.stream.time_base) * size / packet_bytes


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
