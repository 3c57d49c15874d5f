"""File → FFmpeg's container: what it is, and what is joined to it."""

import os
from collections.abc import Callable, Iterator

import av
from demuxers import DEMUXERS, DEMUXERS_BY_SUFFIX
from growing_file import ForwardOnlyFile, GrowingFile
from parts import Parts, WavParts, flac_parts, ogg_parts
from refusals import refuse_no_recording, refuse_protected_tracks, refuse_text_or_broken_file
from report import FileRefused, report
from tags import without_tags
from tracks import chosen

# The first bytes of Ogg, WAV, Matroska and WebM, which are decoded the same without seeking.
FORWARD_ONLY = (b"OggS", b"RIFF", b"RF64", b"\x1a\x45\xdf\xa3")
OPEN_OPTIONS = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
# Demuxers of files that may hold tags between their frames, or several recordings.
TAGGED = ("mp3", "aac")
PARTS: dict[str, Callable[[GrowingFile], Parts]] = {
    "ogg": ogg_parts,
    "flac": flac_parts,
    "wav": WavParts,
}


def opened(file: GrowingFile, suffix: str) -> tuple[av.container.InputContainer, Parts | None]:
    """The container, and the file where other recordings may be joined behind that one.

    `suffix`: of the file's name. Raises FileRefused.
    """
    refuse_no_recording(file)
    container = _opened_by_content(file, suffix)
    name = container.format.name
    if name not in TAGGED and name not in PARTS:
        return container, None
    container.close()
    file.seek(0, os.SEEK_SET)
    parts = PARTS[name](file) if name in PARTS else None
    return _container(parts or without_tags(file), name), parts


def following_tracks(parts: Parts | None, name: str) -> Iterator[av.AudioStream]:
    """The tracks of the recordings that are joined behind the first one.

    It warns of those that it leaves out. `name`: that of their demuxer.
    """
    left_out = 0
    while parts is not None and parts.next():
        try:
            with _container(parts, name) as container:
                yield chosen(container, 0).streams[0]
        except FileRefused:
            left_out += 1
    if left_out:
        report(
            "warning",
            "Several recordings are joined in this file. "
            f"Left out, because they cannot be decoded: {left_out} of them.",
        )


def _opened_by_content(file: GrowingFile, suffix: str) -> av.container.InputContainer:
    head = file.read(len(max(FORWARD_ONLY, key=len)))
    file.seek(0, os.SEEK_SET)
    source = ForwardOnlyFile(file) if head.startswith(FORWARD_ONLY) else file
    try:
        container = _container(source)
    except FileRefused as refusal:
        refuse_text_or_broken_file(file)
        container = _opened_by_suffix(file, suffix, refusal)
    if not container.streams.audio:
        refuse_text_or_broken_file(file)
    refuse_protected_tracks(container)
    return container


def _opened_by_suffix(
    file: GrowingFile, suffix: str, refusal: FileRefused
) -> av.container.InputContainer:
    """Raises `refusal` where the suffix does not tell the format either."""
    if suffix not in DEMUXERS_BY_SUFFIX:
        raise refusal
    file.seek(0, os.SEEK_SET)
    return _container(file, DEMUXERS_BY_SUFFIX[suffix])


def _container(source: object, name: str | None = None) -> av.container.InputContainer:
    """`name`: that of the demuxer, None to find it."""
    try:
        return av.open(source, format=name, container_options=OPEN_OPTIONS)
    except (av.error.FFmpegError, ValueError) as error:
        raise FileRefused(
            "undecodable", "The file at audio_url is not audio or video in a known format."
        ) from error
