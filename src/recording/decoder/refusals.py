"""Files without sound, or with sound that nobody can have: a sentence for each, with a way out."""

import os
import re
from contextlib import suppress

import av
from growing_file import GrowingFile
from report import FileRefused

HEAD_BYTES = 512
_WEB_PAGE = "is a web page, not audio; the URL must lead to the file itself"
_DASH = (
    "is a DASH manifest, which only lists the addresses of a stream; "
    "save the stream as one file and send that"
)
_HLS = (
    "is an HLS playlist, which only lists the addresses of a stream; "
    "save the stream as one file and send that"
)
_FEED = "is a podcast feed; send the URL of an episode's file"
_PLAYLIST = "is a playlist, which only lists recordings; send the URL of one of them"
_JSON = "is JSON, not audio; the URL must lead to the file itself, not to an API's answer about it"
_ARCHIVE = "is an archive ({}), not audio; unpack it and send the recording that is in it"
_PROTECTED = "is protected by DRM ({}); only a copy without protection can be transcribed"
_NO_INDEX = (
    "is an MP4 without its index (moov), because its recording was not ended or its upload was "
    "cut; send the whole file, or repair it with the recorder or with a tool such as untrunc"
)
# What the root of an XML file says, in lower case. Other XML is taken for a web page.
XML_KINDS = {
    b"<mpd": _DASH,
    b"<rss": _FEED,
    b"<feed": _FEED,
    b"<playlist": _PLAYLIST,
    b"<smil": _PLAYLIST,
    b"<asx": _PLAYLIST,
}
ARCHIVES = {
    b"PK\3\4": "ZIP",
    b"PK\5\6": "ZIP",
    b"Rar!\x1a\7": "RAR",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x1f\x8b\x08": "gzip",
}
# How the text of a playlist begins, in lower case.
PLAYLIST_STARTS = (
    b"#extm3u",
    b"[playlist]",
    b"[reference]",
    b"[internetshortcut]",
    b"ffconcat version",
    b"http://",
    b"https://",
    b"file '",
    b'file "',
    b"v=0",
)
_JSON_START = re.compile(rb"(\{\s*[\"}]|\[\s*[\"{\[\]])")
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
MAX_ASF_HEADER_BYTES = 1 << 16
# The three content encryption objects of ASF.
ASF_PROTECTION = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),
    bytes.fromhex("338505438169e6499b74ad12cb86d58c"),
)
AUDIBLE_MARK = b"\x57\x90\x75\x36"  # at byte 4 of an .aa file
# FFmpeg's tags of encrypted tracks in MP4.
PROTECTED_TAGS = {"drms": "FairPlay", "aavd": "Audible", "enca": "Common Encryption"}
MP4_BOXES = (b"ftyp", b"mdat", b"moov", b"free", b"skip", b"wide", b"pnot", b"styp")
MAX_BOXES = 10_000


def refuse_no_recording(file: GrowingFile) -> None:
    """Raises FileRefused where the first bytes show a file that holds no sound, or is protected."""
    head = _head(file)
    if not head:
        raise FileRefused("empty", "The file at audio_url is empty (0 bytes).")
    text = _text(head)
    if text.startswith((b"<!doctype", b"<html", b"<?xml", *XML_KINDS)):
        kinds = (kind for mark, kind in XML_KINDS.items() if mark in text)
        raise _refusal(next(kinds, _WEB_PAGE))
    for mark, archive in ARCHIVES.items():
        if head.startswith(mark):
            raise _refusal(_ARCHIVE.format(archive))
    if head[4:8] == AUDIBLE_MARK:
        raise _refusal(_PROTECTED.format("Audible"))
    if head.startswith(ASF_HEADER) and _is_protected_asf(file):
        raise _refusal(_PROTECTED.format("Windows Media"))


def refuse_text_or_broken_file(file: GrowingFile) -> None:
    """For a file that FFmpeg does not open. Raises FileRefused where it is known why."""
    head = _head(file)
    text = _text(head)
    if text.startswith(b"#extm3u") and b"#ext-x-" in text:
        raise _refusal(_HLS)
    if text.startswith(PLAYLIST_STARTS):
        raise _refusal(_PLAYLIST)
    if _JSON_START.match(text):
        raise _refusal(_JSON)
    if head[4:8] in MP4_BOXES and not _has_whole_index(file):
        raise _refusal(_NO_INDEX)


def refuse_protected_tracks(container: av.container.InputContainer) -> None:
    """Raises FileRefused where no audio track of the file is without DRM."""
    protections = [protection(stream) for stream in container.streams.audio]
    if protections and all(protections):
        raise _refusal(_PROTECTED.format(protections[0]))


def protection(stream: av.AudioStream) -> str:
    """The DRM of a track; "" without any."""
    tag = ""
    with suppress(AttributeError, UnicodeDecodeError):  # no codec, or a number as the tag of a WAV
        tag = stream.codec_context.codec_tag
    if "enc_key_id" in stream.metadata:  # FFmpeg's for Matroska and WebM
        return "Matroska"
    return PROTECTED_TAGS.get(tag, "")


def _refusal(what: str) -> FileRefused:
    return FileRefused("undecodable", f"The file at audio_url {what}.")


def _head(file: GrowingFile) -> bytes:
    """The first bytes; the next read begins at the first of them."""
    file.seek(0, os.SEEK_SET)
    head = file.read(HEAD_BYTES)
    file.seek(0, os.SEEK_SET)
    return head


def _text(head: bytes) -> bytes:
    """In lower case, without what may precede it: a byte order mark, white space."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()


def _is_protected_asf(file: GrowingFile) -> bool:
    size = file.read_integer(16, 8)
    header = file.read(min(size, MAX_ASF_HEADER_BYTES))
    file.seek(0, os.SEEK_SET)
    return any(mark in header for mark in ASF_PROTECTION)


def _has_whole_index(file: GrowingFile) -> bool:
    """Whether an MP4's box moov is there to its end."""
    position = 0
    for _ in range(MAX_BOXES):
        file.seek(position, os.SEEK_SET)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4]), header[4:8]
        if size == 1:  # the size follows in 8 bytes
            size = int.from_bytes(header[8:])
        end = position + size if size else file.size  # 0: to the end of the file
        if kind == b"moov":
            return end <= file.size
        if len(header) < 8 or end <= position:
            return False
        position = end
    return False
