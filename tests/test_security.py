"""Hostile requests, servers and files: the error code of each, and that nothing else happens.

Every row of `CASES` is a job for `handler.handler` with all guards on, as on RunPod; none reaches a
model. The internet is injected: public.test has a public address, and a connection to that address
reaches the row's own server on loopback. A connection to any other address is recorded and refused.
The decoder is a real child process, to which the injection does not apply. Two things show that it
stays inside: nobody connects to the trap, a second server on loopback, and nobody opens the secret,
a recording of speech on the disk.
"""

import asyncio
import ctypes
import functools
import gzip
import io
import itertools
import json
import logging
import os
import random
import socket
import socketserver
import struct
import tempfile
import threading
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import inf
from pathlib import Path

import av
import brotli
import contract.errors as errors
import handler
import media
import numpy as np
import psutil
import pytest
import recording.download as download_module
import recording.http_get as web
import recording.patience as patience
import soundfile
from backports import zstd
from contract.errors import AudioTooLong, DownloadError, WorkerError
from contract.settings import load_settings
from material import ENGLISH, silence
from recording.chunk import SAMPLE_RATE
from recording.http_get import MAX_REDIRECTS
from recording.pcm_stream import decode
from speech.admission import Gate
from speech.models.recogniser import Vocabulary
from test_download import fetched

PUBLIC = "1.1.1.1"  # the address of public.test; nothing is ever sent there
NAMES = {  # host: its addresses at each look-up; the last entry holds for all further ones
    "public.test": [[PUBLIC]],
    "localhost": [["::1", "127.0.0.1"]],
    "localhost.": [["127.0.0.1"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "inside.test": [["10.0.0.7"]],
    "mixed.test": [[PUBLIC, "10.0.0.7"]],
    "mixed-6.test": [[PUBLIC, "fd00::7"]],
    "mapped.test": [["::ffff:169.254.169.254"]],
    "rebinding.test": [[PUBLIC], ["127.0.0.1"]],
}
SECRET_PATH = (
    "/private/talk.mp3?sig=SECRET#token=SECRET"  # in every URL; must be in no message and in no log
)
URL = "http://public.test:{port}" + SECRET_PATH
CONTEXT = "names that only the client may know"
SETTINGS = load_settings({"MODEL_NAME": "none", "ALIGNER_NAME": "none"})
SETTINGS = replace(
    SETTINGS, max_audio_seconds=600, max_download_bytes=3_000_000, download_timeout_seconds=30
)
QUICKLY = {"download_timeout_seconds": 1}
RETRYABLE = {
    c.code: c.retryable
    for c in vars(errors).values()
    if isinstance(c, type) and issubclass(c, WorkerError)
}


@dataclass(frozen=True)
class Place:
    """Ports and paths of a row while it runs."""

    port: int  # where the row's server listens
    trap: int  # port of the trap
    secret: Path
    over: threading.Event  # set when the row is over
    # The numbers of the requests to the server.
    turns: Iterator[int] = field(default_factory=itertools.count)

    def fill(self, text: str) -> str:
        """Fill in the addresses and paths that a hostile text points at."""
        known = {
            "port": self.port,
            "trap": self.trap,
            "address": f"http://127.0.0.1:{self.trap}/a.wav",
            "path": self.secret,
        }
        for name, value in (
            known | {"file": self.secret.as_uri(), "name": self.secret.name}
        ).items():
            text = text.replace(f"{{{name}}}", str(value))
        return text


Answer = Callable[[Place], Iterable[bytes]]


@dataclass(frozen=True)
class Case:
    """A hostile job and its expected outcome."""

    name: str
    code: str | None  # None: not refused
    seconds: float | None = None  # the silence in a recording that is not refused
    url: str = URL
    answer: Answer = lambda _: []  # what the server sends, to each request
    environ: dict[str, str] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)  # settings


# building files byte by byte


SECOND = bytes(2 * SAMPLE_RATE)  # one second of silence


def wav(
    rate: int = SAMPLE_RATE,
    channels: int = 1,
    bits: int = 16,
    data: bytes = SECOND,
    claimed: int | None = None,
) -> bytes:
    """`claimed`: the size of the samples in its header, in bytes."""
    size, frame = len(data) if claimed is None else claimed, channels * bits // 8
    head = struct.pack(
        "<IHHIIHH", 16, 1, channels, rate, rate * frame & 0xFFFFFFFF, frame & 0xFFFF, bits
    )
    return (
        b"RIFF"
        + struct.pack("<I", min(size + 36, 0xFFFFFFFF))
        + b"WAVEfmt "
        + head
        + b"data"
        + struct.pack("<I", size)
        + data
    )


# The start of a recording without an end: a decoder waits for the rest.
ENDLESS = wav(data=b"", claimed=0xFFFFFFFF)


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box, of which MP4 and QuickTime files consist."""
    return struct.pack(">I", 8 + sum(map(len, parts))) + kind + b"".join(parts)


def full_box(kind: bytes, *parts: bytes, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", flags), *parts)


def mov(
    source: bytes = full_box(b"url ", flags=1),
    duration: int = SAMPLE_RATE,
    samples: int = SAMPLE_RATE,
) -> bytes:
    """A second of silence in QuickTime; `source` is the reference to its samples, with flag 1 for
    this file.
    """
    start, shape = (
        box(b"ftyp", b"qt  ", bytes(4), b"qt  "),
        struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30),
    )
    movie = full_box(
        b"mvhd", struct.pack(">5I", 0, 0, 1000, duration, 1 << 16), bytes(12), shape, bytes(28)
    )
    track = full_box(
        b"tkhd", struct.pack(">5I", 0, 0, 1, 0, duration), bytes(16), shape, bytes(8), flags=7
    )
    clock = full_box(b"mdhd", struct.pack(">5I", 0, 0, SAMPLE_RATE, duration, 0))
    sound = box(
        b"sowt", bytes(6), b"\0\1", bytes(8), struct.pack(">HHHHI", 1, 16, 0, 0, SAMPLE_RATE << 16)
    )
    table = box(
        b"stbl",
        full_box(b"stsd", struct.pack(">I", 1), sound),
        full_box(b"stts", struct.pack(">3I", 1, samples, 1)),
        full_box(b"stsc", struct.pack(">4I", 1, 1, samples, 1)),
        full_box(b"stsz", struct.pack(">2I", 2, samples)),
        full_box(b"stco", struct.pack(">2I", 1, len(start) + 8)),
    )
    sources = box(b"dinf", full_box(b"dref", struct.pack(">I", 1), source))
    of_sound = full_box(b"hdlr", b"mhlr", b"soun", bytes(13))
    track = box(
        b"trak",
        track,
        box(b"mdia", clock, of_sound, box(b"minf", full_box(b"smhd", bytes(4)), sources, table)),
    )
    return start + box(b"mdat", bytes(2 * SAMPLE_RATE)) + box(b"moov", movie, track)


def samples_elsewhere(url: str) -> bytes:
    return mov(full_box(b"url ", url.encode()))


def alias(path: str) -> bytes:
    """QuickTime's reference to samples in another file."""
    name, there = Path(path).name.encode(), path.encode()
    record = (
        bytes(10)
        + b"\3vol".ljust(28, b"\0")
        + bytes(12)
        + bytes([len(name)])
        + name.ljust(63, b"\0")
    )
    record += bytes(16) + struct.pack(">2H", 1, 1) + bytes(16)
    return full_box(
        b"alis",
        record
        + struct.pack(">2H", 2, len(there))
        + there
        + bytes(len(there) % 2)
        + struct.pack(">2H", 0xFFFF, 0),
    )


def reference_movie(address: str) -> bytes:
    return box(
        b"moov",
        box(
            b"rmra",
            box(
                b"rmda",
                full_box(b"rdrf", b"url ", struct.pack(">I", len(address)), address.encode()),
            ),
        ),
    )


def riff(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def avi_with_subtitles(text: str) -> bytes:
    """A second of silence, and a track of subtitles, which FFmpeg opens as a file of its own."""

    def header(kind: bytes, scale: int, rate: int, length: int) -> bytes:
        return riff(
            b"strh",
            kind
            + struct.pack("<IHHIIIIIIII", 0, 0, 0, 0, scale, rate, 0, length, 0, 0, scale)
            + bytes(8),
        )

    sound = riff(b"strf", struct.pack("<HHIIHHH", 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16, 0))
    tracks = riff(b"LIST", b"strl", header(b"auds\1\0\0\0", 2, 2 * SAMPLE_RATE, SAMPLE_RATE), sound)
    tracks += riff(b"LIST", b"strl", header(b"txtsDXSA", 1, 1, 1), riff(b"strf"))
    start = riff(b"avih", struct.pack("<14I", 40_000, 0, 0, 0, 1, 0, 2, *[0] * 7))
    subtitles = (
        b"GAB2\0"
        + struct.pack("<HI", 2, 2)
        + b"x\0"
        + struct.pack("<HI", 4, len(text))
        + text.encode()
    )
    blocks = riff(b"LIST", b"movi", riff(b"01tx", subtitles), riff(b"00wb", bytes(2 * SAMPLE_RATE)))
    return riff(b"RIFF", b"AVI ", riff(b"LIST", b"hdrl", start, tracks), blocks)


def ebml(kind: int, *parts: bytes | int | float) -> bytes:
    """An element, of which Matroska files consist."""
    body = b"".join(
        struct.pack(">Q", p)
        if isinstance(p, int)
        else struct.pack(">d", p)
        if isinstance(p, float)
        else p
        for p in parts
    )
    return (
        kind.to_bytes((kind.bit_length() + 7) // 8, "big")
        + (1 << 56 | len(body)).to_bytes(8, "big")
        + body
    )


def matroska(
    *info: bytes,
    rate: float = 8000.0,
    times: Iterable[int] = range(0, 1000, 20),
    block: bytes = bytes(320),
    packing: bytes = b"",
) -> bytes:
    """A block of samples at each of `times`, in milliseconds; `info`: more about the file;
    `packing`: of the blocks.
    """
    sound = ebml(0xE1, ebml(0xB5, rate), ebml(0x9F, 1), ebml(0x6264, 16))
    track = ebml(
        0xAE,
        ebml(0xD7, 1),
        ebml(0x73C5, 1),
        ebml(0x83, 2),
        ebml(0x86, b"A_PCM/INT/LIT"),
        sound,
        packing,
    )
    clusters = [
        ebml(0x1F43B675, ebml(0xE7, time), ebml(0xA3, b"\x81\0\0\x80" + block)) for time in times
    ]
    start = ebml(0x1A45DFA3, ebml(0x4282, b"matroska"))
    return start + ebml(
        0x18538067,
        ebml(0x1549A966, ebml(0x2AD7B1, 1_000_000), *info),
        ebml(0x1654AE6B, track),
        *clusters,
    )


def linked(path: str) -> bytes:
    """A file that names another file before it and one after it."""
    return matroska(
        ebml(0x73A4, b"1" * 16),
        ebml(0x3EB923, b"2" * 16),
        ebml(0x3E83BB, path.encode()),
        ebml(0x3C83AB, path.encode()),
    )


def encoded(suffix: str, seconds: float, **options) -> bytes:
    """Silence, by a real encoder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        media.encode(silence(seconds), path, **options)
        return path.read_bytes()


def silent_film() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        media.encode_silent_film(Path(folder) / "a.mp4", 1)
        return (Path(folder) / "a.mp4").read_bytes()


def hours_of_opus() -> bytes:
    """11 minutes: one packet of silence, repeated."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        track = container.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 960), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts = 48_000, 0
        packet = bytes([*track.encode(frame), *track.encode(None)][0])
        for i in range(50 * 660):
            again = av.Packet(packet)
            again.stream, again.pts, again.dts, again.duration, again.time_base = (
                track,
                960 * i,
                960 * i,
                960,
                Fraction(1, 48_000),
            )
            container.mux(again)
    return file.getvalue()


def claiming(suffix: str, mark: bytes, offset: int, claim: bytes) -> bytes:
    """A second of silence with `claim` in its header, `offset` bytes behind `mark`."""
    data = bytearray(encoded(suffix, 1))
    start = data.index(mark) + offset
    data[start : start + len(claim)] = claim
    return bytes(data)


def picture() -> bytes:
    def part(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    parts = (
        part(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        part(b"IDAT", zlib.compress(b"\0\0")),
        part(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def id3(kind: bytes, body: bytes) -> bytes:
    """A tag before an MP3, with one frame."""
    frame = kind + struct.pack(">IH", len(body), 0) + body
    return b"ID3\x03\0\0" + bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0)) + frame


def linked_cover(address: str) -> bytes:
    return id3(b"APIC", b"\0-->\0\3\0" + address.encode()) + encoded(".mp3", 1)


def zipped(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", wav(data=bytes(size)))
    return file.getvalue()


def noise(magic: bytes) -> bytes:
    return magic + random.Random(7).randbytes(20_000)


# addresses


def at(url: str, code: str = "address_refused", name: str | None = None, **more) -> Case:
    return Case(name or ascii(url)[1:60], code, url=url + SECRET_PATH, **more)


HOSTS = [
    *(
        "127.0.0.1",
        "127.1",
        "127.255.255.254",
        "0.0.0.0",
        "0",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
    ),
    *(
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "0xa9fea9fe",
        "169.254.170.2",
    ),
    *(
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "198.18.0.1",
        "192.88.99.1",
    ),
    *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *(
        "[::1]",
        "[::]",
        "[0:0:0:0:0:0:0:1]",
        "[::127.0.0.1]",
        "[fe80::1]",
        "[fd00::1]",
        "[fd00:ec2::254]",
        "[fec0::1]",
        "[ff02::1]",
    ),
    *(
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::ffff:10.0.0.1]",
        "[::ffff:192.0.0.192]",
        "[::ffff:1.1.1.1]",
        "[::ffff:0:127.0.0.1]",
    ),
    *(
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "[2001:db8::1]",
        "[100::1]",
    ),
    *(
        "localhost",
        "localhost.",
        "LOCALHOST",
        "metadata.google.internal",
        "inside.test",
        "mixed.test",
        "mixed-6.test",
        "mapped.test",
    ),
    *("①②⑦.0.0.1", "１２７.0.0.1", "127。0。0。1"),
]
ODD_HOSTS = [
    at("http://public.test@127.0.0.1:{trap}", name="public name as the user"),
    at("http://user:public.test@127.0.0.1:{trap}", name="public name as the password"),
    at("http://a@public.test@127.0.0.1:{trap}", name="two @"),
    at("http://public.test%2f@127.0.0.1:{trap}", name="escaped slash before the @"),
    at("http://public.test\\@127.0.0.1:{trap}", name="backslash before the @"),
    at("http://public.test &@127.0.0.1:{trap}", name="space before the @"),
    at("http://127.0.\t0.1:{trap}", name="tab in the host"),
    at("http://127.0.\r\n0.1:{trap}", name="line break in the host"),
    at("http://127.0.0.1\0.public.test:{trap}", name="zero byte in the host"),
    at("http://" + "a" * 8000, name="host of 8000 letters"),
    at("http://" + "a" * 64 + ".test", name="label of 64 letters"),
    at("http://[fe80::1%25lo]:{trap}", "host_not_found", name="IPv6 with a zone"),
    at("http://127.0.0.%31:{trap}", "host_not_found", name="percent signs in the host"),
    at("http://127.0.0.1.:{trap}", "host_not_found", name="number with a dot behind it"),
    at("http://nowhere.test", "host_not_found"),
]
NO_URLS = [
    *(
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "FILE:///etc/passwd",
        "ftp://public.test/a.mp3",
        "sftp://public.test/a",
    ),
    *(
        "gopher://127.0.0.1:{trap}/_GET%20/",
        "dict://127.0.0.1:{trap}/info",
        "ldap://127.0.0.1:{trap}/",
        "smb://public.test/a.mp3",
    ),
    *(
        "data:audio/wav;base64,UklGRg==",
        "javascript:alert(1)",
        "blob:http://public.test/a",
        "jar:http://public.test/a!/b",
        "about:blank",
    ),
    *(
        "unix:/run/docker.sock",
        "http+unix://%2Frun%2Fdocker.sock/info",
        "concat:/etc/passwd|/etc/hosts",
        "subfile,,start,0,end,9,,:/etc",
    ),
    *(
        "pipe:0",
        "lavfi:sine",
        "/etc/passwd",
        "../../etc/passwd",
        "C:\\a.mp3",
        "\\\\public.test\\a",
        "//public.test/a.mp3",
        "public.test/a",
    ),
    *(
        "http:",
        "http://",
        "http:///a.mp3",
        "http:/public.test/a.mp3",
        "http:/\\/public.test/a.mp3",
        "http:\\\\public.test\\a.mp3",
    ),
    *(
        "http:public.test/a.mp3",
        "http://:80/a.mp3",
        "http://user:SECRET@/a.mp3",
        "http://user:SECRET@public.test:0/a.mp3",
    ),
    *(
        "http://public.test:0/",
        "http://public.test:99999/",
        "http://public.test:-1/",
        "http://public.test:8a/",
        "http://::1:80/",
    ),
    *(
        "http://public.test\r\nX-Injected: 1/",
        "http://[::1/",
        "http://[x]/",
        "http://exa\u2100mple.test/",
        "http://public.test/\ud800",
    ),
]
URLS = [
    *(at(f"http://{host}:{{trap}}", name=f"host {host}") for host in HOSTS),
    *ODD_HOSTS,
    *(
        Case(ascii(url)[1:60], "input_invalid", url=url + "?sig=SECRET#token=SECRET")
        for url in NO_URLS
    ),
    Case(
        "URL of 9000 characters",
        "input_invalid",
        url="http://public.test/" + "a" * 9000 + SECRET_PATH,
    ),
]


# servers


def reply(body: bytes = b"", status: int = 200, length: int | None = None, **headers: str) -> bytes:
    """`length` is what the header says: None the truth, -1 nothing."""
    lines = [
        f"HTTP/1.1 {status} -",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    lines += [f"Content-Length: {len(body) if length is None else length}"] if length != -1 else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(body: bytes, size: str | None = None) -> bytes:
    """The beginning of a chunked answer: one chunk, said to be of `size`."""
    return (
        b"HTTP/1.1 200 -\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (size or f"{len(body):x}").encode()
        + b"\r\n"
        + body
        + b"\r\n"
    )


def drip(start: bytes, drop: bytes = b"1") -> Answer:
    """Sends `start`, then a byte every 50 ms without end."""

    def answer(place: Place) -> Iterable[bytes]:
        yield start
        while not place.over.wait(0.05):
            yield drop

    return answer


def flood(start: bytes, block: bytes) -> Answer:
    """Sends `start`, then `block` without end, as fast as the client reads."""

    def answer(place: Place) -> Iterable[bytes]:
        yield start
        while not place.over.is_set():
            yield block

    return answer


def cut_short(then: bytes) -> Answer:
    """Sends a part of a recording, and `then` at the second request."""
    return lambda place: [
        reply(then) if next(place.turns) else reply(wav()[:20_000], length=len(wav()))
    ]


def never(place: Place) -> Iterable[bytes]:
    place.over.wait()
    return []


def recording(_: Place) -> Iterable[bytes]:
    """What an honest server would send: a second of silence."""
    return [reply(wav())]


def sends(name: str, code: str | None, answer: bytes | Answer, **more) -> Case:
    """`answer`: bytes, headers and all, or a function of the place."""
    return Case(name, code, answer=answer if callable(answer) else lambda _: [answer], **more)


def redirects(name: str, location: str, code: str = "address_refused", url: str = URL) -> Case:
    return Case(
        f"redirect to {name}",
        code,
        url=url,
        answer=lambda place: [reply(status=302, Location=place.fill(location))],
    )


def slow_redirects(place: Place) -> Iterable[bytes]:
    place.over.wait(0.1)
    return [reply(status=302, Location=SECRET_PATH)]


COMPRESS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda body: brotli.compress(body, quality=5),
    "zstd": zstd.compress,
}


@functools.cache
def packed(size: int, *encodings: str) -> bytes:
    """This number of bytes of silence, with the header that says how they are compressed."""
    body = ENDLESS + bytes(size)
    for encoding in encodings:
        body = COMPRESS[encoding](body)
    return reply(body, Content_Encoding=", ".join(encodings))


REBINDING = "http://rebinding.test:{port}" + SECRET_PATH
BOMBS = {  # an unsupported compression is refused without decompressing
    **dict.fromkeys([("gzip",), ("deflate",)], "download_too_large"),
    **dict.fromkeys(
        [("gzip", "gzip"), ("br",), ("zstd",), ("zstd", "br", "gzip")], "source_refused"
    ),
}
SERVERS = [
    Case(
        "DNS that changes its answer, injected: the first one holds",
        None,
        1,
        url=REBINDING,
        answer=recording,
    ),
    sends(
        "DNS that changes its answer before the retry, injected",
        "address_refused",
        reply(status=503),
        url=REBINDING,
    ),
    redirects("its own name, which is private the second time, injected", REBINDING, url=REBINDING),
    redirects("loopback", "http://127.0.0.1:{trap}/"),
    redirects("loopback, without a scheme", "//127.0.0.1:{trap}/"),
    redirects("loopback in IPv6", "http://[::1]:{trap}/"),
    redirects("loopback as a number", "http://2130706433:{trap}/"),
    redirects("loopback behind an @", "http://public.test@127.0.0.1:{trap}/"),
    redirects(
        "loopback behind a folded line",
        "http://public.test@\r\n 127.0.0.1:{trap}/",
        "host_not_found",
    ),
    redirects("metadata", "http://169.254.169.254/latest/meta-data/"),
    redirects("Oracle's metadata", "http://192.0.0.192/opc/v2/instance/"),
    redirects("a name with a private address, injected", "http://inside.test/"),
    redirects("itself, for ever", SECRET_PATH),
    redirects("a file", "file:///etc/passwd"),
    redirects("FTP", "ftp://public.test/a.mp3"),
    redirects("gopher", "gopher://127.0.0.1:{trap}/_GET"),
    redirects("data", "data:audio/wav;base64,UklGRg=="),
    redirects("a script", "javascript:alert(1)"),
    redirects("no host", "http://"),
    redirects("half an address", "http://[::1"),
    redirects("port 99999", "http://public.test:99999/"),
    redirects("nowhere", "http://nowhere.test/", "host_not_found"),
    sends("redirect without a target", "source_refused", reply(status=302)),
    sends(
        "redirect in a web page",
        "audio_undecodable",
        reply(b"<html><meta http-equiv=refresh content='0;url=http://10.0.0.1/'>"),
    ),
    sends(
        "redirect by Refresh, for browsers: not followed",
        None,
        lambda p: [reply(wav(), Refresh=p.fill("0;url={address}"))],
        seconds=1,
    ),
    *(
        Case(
            f"proxy in {name}", None, 1, answer=recording, environ={name: "http://127.0.0.1:{trap}"}
        )
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    ),
    Case(
        "proxy in HTTPS_PROXY",
        "download_failed",
        url=URL.replace("http:", "https:"),
        environ={"HTTPS_PROXY": "http://127.0.0.1:{trap}"},
    ),
    Case(
        "proxy, and the host that needs none behind a backslash: not used",
        None,
        1,
        "http://10.0.0.1\\@public.test:{port}" + SECRET_PATH,
        recording,
        {"HTTP_PROXY": "http://127.0.0.1:{trap}", "NO_PROXY": "public.test"},
    ),
    at(
        "http://public.test:{port}/\r\nX-Injected: 1\r\n\r\n",
        name="header injected through the path",
    ),
    # answers
    *(
        sends(f"status {code}", "source_refused", reply(b"an error page", code))
        for code in (204, 206, 300, 304, 400, 401, 403, 404, 410)
    ),
    *(
        sends(f"status {code}", "download_failed", reply(b"an error page", code))
        for code in (429, 500, 503)
    ),
    sends("no HTTP", "download_failed", b"SSH-2.0-OpenSSH_9.6\r\n"),
    sends("status that is no number", "download_failed", b"HTTP/1.1 abc\r\n\r\n"),
    sends("no answer, and closed", "download_failed", b""),
    Case(
        "TLS with a server that has none",
        "tls_failed",
        url=URL.replace("http:", "https:"),
        answer=recording,
    ),
    sends(
        "header without a colon: not logged with the URL",
        "download_failed",
        b"HTTP/1.1 200 -\r\nbroken\r\n\r\n" + wav(),
    ),
    sends(
        "length with chunks: the chunks count",
        None,
        chunked(wav()).replace(b"\r\n", b"\r\nContent-Length: 9\r\n", 1) + b"0\r\n\r\n",
        seconds=1,
    ),
    sends(
        "part of a file that begins later",
        "source_refused",
        reply(wav(), 206, Content_Range="bytes 5-9/10"),
    ),
    sends(
        "part of a file above the cap",
        "download_too_large",
        reply(wav(), 206, Content_Range=f"bytes 0-9/{10**12}"),
    ),
    sends("busy for a century", "download_failed", reply(status=429, Retry_After="9" * 12)),
    sends(
        "large cookies with redirects to itself",
        "address_refused",
        reply(status=302, Location=SECRET_PATH, Set_Cookie=f"k={'c' * 90_000}; path=/"),
    ),
    # a recording that is read while it arrives
    sends(
        "recording cut short three times, with an ETag",
        "download_failed",
        reply(wav()[:20_000], length=len(wav()), ETag='"1"'),
    ),
    sends(
        "recording cut short three times",
        "download_failed",
        reply(wav()[:20_000], length=len(wav())),
    ),
    sends("recording cut short, then all of it: heard once", None, cut_short(wav()), seconds=1),
    sends(
        "recording cut short, then another", "download_failed", cut_short(wav(data=b"\1" * 32_000))
    ),
    sends("recording cut short, then a shorter one", "download_failed", cut_short(wav()[:10_000])),
    sends(
        "recording that stops to come",
        "download_timeout",
        drip(reply(wav()[:20_000], length=len(wav()))),
        limits=QUICKLY,
    ),
    sends(
        "recording with an index at its end that never comes",
        "download_timeout",
        drip(reply(mov()[:20_000], length=10**6)),
        limits=QUICKLY,
    ),
    # size
    sends("length above the cap", "download_too_large", drip(reply(length=10**12))),
    sends(
        "chunks above the cap",
        "download_too_large",
        flood(chunked(ENDLESS), b"3e8\r\n" + bytes(1000) + b"\r\n"),
    ),
    sends(
        "no length, above the cap",
        "download_too_large",
        flood(reply(ENDLESS, length=-1), bytes(10_000)),
    ),
    sends(
        "negative length, above the cap",
        "download_failed",
        flood(reply(ENDLESS, length=-5), bytes(10_000)),
    ),
    sends(
        "length that claims less: the rest is not read",
        None,
        reply(wav() + bytes(9_000_000), length=len(wav())),
        seconds=1,
    ),
    sends("length that claims more", "download_failed", reply(b"RIFF", length=1_000_000)),
    sends("two lengths", "download_failed", reply(b"RIFF", length=4, Content_length="9")),
    sends("chunk of 2^64 bytes", "download_failed", chunked(b"RIFF", "FFFFFFFFFFFFFFFF")),
    sends("chunk of -1 bytes", "download_failed", chunked(b"RIFF", "-1")),
    sends("chunk of no size", "download_failed", chunked(b"RIFF", "wide")),
    sends("size of a chunk without end", "download_failed", flood(chunked(b"RIFF"), b"1" * 10_000)),
    sends("header without end", "download_failed", flood(b"HTTP/1.1 200 -\r\nX: ", b"1" * 10_000)),
    sends(
        "headers without end", "download_failed", flood(b"HTTP/1.1 200 -\r\n", b"X: y\r\n" * 1000)
    ),
    *(
        sends(f"bomb: {', '.join(encodings)}", code, lambda _, e=encodings: [packed(5 * 10**7, *e)])
        for encodings, code in BOMBS.items()
    ),
    sends("six times compressed", "source_refused", lambda _: [packed(10**4, *["gzip"] * 6)]),
    sends(
        "not compressed, though said to be",
        "download_failed",
        reply(b"RIFF", Content_Encoding="gzip"),
    ),
    # time
    sends("no answer", "download_timeout", never, limits=QUICKLY),
    sends("dripping body", "download_timeout", drip(reply(length=10**6)), limits=QUICKLY),
    sends("dripping header", "download_timeout", drip(b"HTTP/1.1 200 -\r\nX: "), limits=QUICKLY),
    sends(
        "dripping size of a chunk", "download_timeout", drip(chunked(b"RIFF"), b"0"), limits=QUICKLY
    ),
    sends("slow redirects", "download_timeout", slow_redirects, limits=QUICKLY),
    sends(
        "interim answers without end",
        "download_failed",
        flood(b"", b"HTTP/1.1 100 -\r\n\r\n" * 1000),
    ),
    sends(
        "trailers without end",
        "download_failed",
        flood(chunked(b"RIFF") + b"0\r\n", b"X: y\r\n" * 1000),
    ),
    sends(
        "empty gzip members without end",
        "download_timeout",
        flood(reply(length=-1, Content_Encoding="gzip"), gzip.compress(b"") * 1000),
        limits=QUICKLY,
    ),
]


# files


def file(name: str, code: str | None, content: bytes | Callable[[], bytes], **more) -> Case:
    return Case(
        name, code, answer=lambda _: [reply(content() if callable(content) else content)], **more
    )


def playlist(name: str, text: str, code: str = "audio_undecodable") -> Case:
    """A text that points at the secret or at the trap: {path}, {name}, {file}, {address}."""
    return Case(name, code, answer=lambda place: [reply(place.fill(text).encode("latin-1"))])


HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n"
PLAYLISTS = [
    *(
        playlist(f"HLS of a {kind}", HLS.replace("target", kind))
        for kind in ("path", "file", "address")
    ),
    playlist("HLS of another HLS", '#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO="a"\n{address}\n'),
    playlist(
        "HLS with an audio track elsewhere",
        '#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",URI="{address}"\n',
    ),
    playlist(
        "HLS with a key elsewhere",
        '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{address}"\n#EXTINF:10,\n{path}\n#EXT-X-ENDLIST\n',
    ),
    playlist("HLS behind an MP3's tag", "ID3\x03\0\0\0\0\0\0" + HLS.replace("target", "path")),
    playlist("M3U", "{path}\n{address}\n"),
    playlist("concatenation of a name", "ffconcat version 1.0\nfile '{name}'\n"),
    playlist("concatenation of a path", "ffconcat version 1.0\nfile '{path}'\n"),
    playlist("concatenation of an address", "ffconcat version 1.0\nfile '{address}'\n"),
    playlist("concatenation by protocol", "concat:{path}|{path}"),
    playlist("part of a file by protocol", "subfile,,start,0,end,0,,:{path}"),
    playlist(
        "DASH",
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
        'type="static"><Period><AdaptationSet><Representation id="1">'
        "<BaseURL>{address}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    ),
    playlist(
        "SDP",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {trap} "
        "RTP/AVP 0\na=control:{address}\n",
    ),
    playlist("SMIL", '<smil><body><audio src="{path}"/><audio src="{address}"/></body></smil>'),
    playlist(
        "XSPF",
        '<?xml version="1.0"?><playlist version="1" '
        'xmlns="http://xspf.org/ns/0/"><trackList><track>'
        "<location>{file}</location></track></trackList></playlist>",
    ),
    playlist("PLS", "[playlist]\nFile1={path}\nFile2={address}\nNumberOfEntries=2\n"),
    playlist("ASX", '<asx version="3.0"><entry><ref href="{address}"/></entry></asx>'),
    playlist(
        "IMF",
        "<CompositionPlaylist "
        'xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"><Id>{file}</Id>'
        "</CompositionPlaylist>",
    ),
    playlist("pattern of pictures", "image2:{path}%03d.png"),
    playlist("filter graph", "lavfi:amovie={path}"),
    playlist("metadata file", ";FFMETADATA1\ntitle={path}\n"),
    playlist("subtitles", "WEBVTT\n\n00:00.000 --> 00:10.000\n{address}\n"),
    playlist("cue sheet", 'FILE "{path}" WAVE\n  TRACK 01 AUDIO\n    INDEX 01 00:00:00\n'),
    playlist("link of a desktop", "[InternetShortcut]\nURL={file}\n"),
]


def refers(
    name: str,
    make: Callable[[str], bytes],
    target: str,
    code: str | None,
    seconds: float | None = None,
) -> Case:
    """A binary file with a reference to `target`."""
    return Case(name, code, seconds, answer=lambda place: [reply(make(place.fill(target)))])


ZLIB_BLOCKS = ebml(
    0x6D80,
    ebml(0x6240, ebml(0x5031, 0), ebml(0x5032, 1), ebml(0x5033, 0), ebml(0x5034, ebml(0x4254, 0))),
)
LONG = [  # longer than allowed, in less than a megabyte each
    file("11 minutes of silence in FLAC", "audio_too_long", lambda: encoded(".flac", 660)),
    file("11 minutes of silence in Opus", "audio_too_long", hours_of_opus),
    file("4 hours in 16000 samples, at 1 Hz", "audio_too_long", wav(rate=1)),
    file(
        "timestamps that jump by 50 minutes",
        "audio_too_long",
        matroska(times=range(0, 20 * 3_000_000, 3_000_000)),
    ),
    file(
        "blocks that unpack a thousandfold",
        "audio_too_long",
        lambda: matroska(
            times=range(0, 2_000_000, 500_000),
            block=zlib.compress(bytes(8_000_000), 9),
            packing=ZLIB_BLOCKS,
        ),
    ),
]
REFERENCES = [
    refers(
        "QuickTime with its samples at an address: those in it count",
        samples_elsewhere,
        "{address}\0",
        None,
        1,
    ),
    refers(
        "QuickTime with its samples at a file URL: those in it count",
        samples_elsewhere,
        "{file}\0",
        None,
        1,
    ),
    refers(
        "QuickTime with its samples in another file",
        lambda t: mov(alias(t)),
        "{path}",
        "audio_empty",
    ),
    refers("QuickTime that is but a reference", reference_movie, "{address}", "audio_undecodable"),
    refers("Matroska that goes on in another file: not followed", linked, "{path}", None, 1),
    refers(
        "AVI with HLS of a path as subtitles: not read",
        avi_with_subtitles,
        HLS.replace("target", "path"),
        None,
        1,
    ),
    refers(
        "AVI with HLS of an address as subtitles: not read",
        avi_with_subtitles,
        HLS.replace("target", "address"),
        None,
        1,
    ),
    refers("MP3 whose cover is at an address: not fetched", linked_cover, "{address}", None, 1),
]
CLAIMS = [
    file("WAV that claims 4 GB", None, wav(claimed=0xFFFFFFFF), seconds=1),
    file("WAV that claims nothing", None, wav(claimed=0), seconds=1),
    file(
        "MP3 that claims 31 hours",
        None,
        lambda: claiming(".mp3", b"Info", 8, struct.pack(">I", 3_000_000)),
        seconds=1,
    ),
    file(
        "FLAC that claims 50 days",
        None,
        lambda: claiming(".flac", b"fLaC", 22, b"\xff" * 4),
        seconds=1,
    ),
    file("QuickTime that claims 49 days", None, mov(duration=0xFFFFFFF0), seconds=1),
    file("QuickTime that claims 2^32 samples", None, mov(samples=0xFFFFFFFF), seconds=0),
    file("Matroska that claims 30 years", None, matroska(ebml(0x4489, 1e12)), seconds=1),
    file("rate of 0 Hz", "audio_undecodable", wav(rate=0)),
    file("rate of 768 kHz", None, wav(rate=768_000), seconds=16 / 768),
    file("rate of 2^31 - 1 Hz", "audio_undecodable", wav(rate=2**31 - 1)),
    file("rate of 2^32 - 1 Hz", "audio_undecodable", wav(rate=2**32 - 1)),
    file(
        "rate that is no number: the usual one is taken",
        None,
        matroska(rate=float("nan")),
        seconds=1,
    ),
    file("rate without end: the usual one is taken", None, matroska(rate=float("inf")), seconds=1),
    file("negative rate: the usual one is taken", None, matroska(rate=-8000.0), seconds=1),
    file("no channels", "audio_undecodable", wav(channels=0)),
    file("255 channels are mixed", None, wav(channels=255, data=bytes(510_000)), seconds=0.0625),
    file("65535 channels", "audio_undecodable", wav(channels=65_535)),
    file("samples of 0 bits", "audio_undecodable", wav(bits=0)),
]
MAGIC = (
    b"fLaC",
    b"OggS",
    b"RIFF\xff\xff\xff\xffWAVE",
    b"\0\0\0\x20ftypM4A ",
    b"\x1a\x45\xdf\xa3",
    b"caff",
    b"FORM\0\0\0 AIFF",
    b"FLV\1",
)
NO_AUDIO = [
    file("nothing", "audio_empty", b""),
    file(
        "Magic Lantern video, which goes on in other files",
        "audio_undecodable",
        struct.pack("<4sI8sQHHIHHIIII", b"MLVI", 52, b"v2.0", 1, 0, 2, 0, 1, 1, 1, 1, 25, 1),
    ),
    file("header without a sample", "audio_empty", wav(data=b"")),
    file("web page", "audio_undecodable", b"<!DOCTYPE html><html><script>alert(1)</script></html>"),
    file(
        "SVG",
        "audio_undecodable",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://10.0.0.1/"/></svg>',
    ),
    file(
        "XML with an entity of a file",
        "audio_undecodable",
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc">]>',
    ),
    file("PNG", "audio_undecodable", picture),
    file("PDF", "audio_undecodable", noise(b"%PDF-1.7\n")),
    file("program", "audio_undecodable", noise(b"\x7fELF\x02\x01\x01")),
    file("shell script", "audio_undecodable", b"#!/bin/sh\ntouch /tmp/owned\n"),
    file("pickle", "audio_undecodable", b"cos\nsystem\n(S'touch /tmp/owned'\ntR."),
    file("zip bomb", "audio_undecodable", lambda: zipped(10**7)),
    file("gzip of a recording", "audio_undecodable", lambda: gzip.compress(wav())),
    *(file(f"random bytes behind {magic!r}", "audio_undecodable", noise(magic)) for magic in MAGIC),
    file(
        "MP3 of a cover and no sound",
        "audio_undecodable",
        lambda: id3(b"APIC", b"\0image/png\0\3\0" + picture()),
    ),
    file("film without sound", "audio_undecodable", silent_film),
    file("M4A cut in the middle", "audio_undecodable", lambda: encoded(".m4a", 4)[:1000]),
    file(
        "WAV cut in the middle: what is there counts", None, wav()[: 44 + SAMPLE_RATE], seconds=0.5
    ),
]

CASES = [*URLS, *SERVERS, *PLAYLISTS, *REFERENCES, *CLAIMS, *LONG, *NO_AUDIO]


# the injected internet, and what notices an access


class Server(socketserver.ThreadingTCPServer):
    """Answers every request with `answer`; records the heads of the requests."""

    daemon_threads = True

    def __init__(self, answer: Callable[[], Iterable[bytes]]):
        self.answer, self.connections, self.heads = answer, 0, []
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.port = self.server_address[1]
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Conversation(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.server.connections += 1
        try:
            head = self.request.recv(1 << 16)
            while b"\r\n\r\n" not in head and head[:1].isalpha():  # TLS begins with no letter
                head += self.request.recv(1 << 16)
            self.server.heads.append(head)
            for data in self.server.answer():
                self.request.sendall(data)
        except OSError:
            pass  # the client has had enough


class Internet:
    """Injected look-ups and connections of this process: names by NAMES; PUBLIC, on any port, is
    the row's server.
    """

    def __init__(self, monkeypatch, port: Callable[[], int]):
        self.dialled: set[str] = set()
        self._lookups = {host: iter(answers) for host, answers in NAMES.items()}
        self._last: dict[str, list[str]] = {}
        self._port = port
        self._look_up, self._connect = socket.getaddrinfo, socket.socket.connect
        monkeypatch.setattr(socket, "getaddrinfo", self.getaddrinfo)
        monkeypatch.setattr(
            socket.socket, "connect", lambda sock, address: self.connect(sock, address)
        )

    def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0) -> list:
        name = str(host).lower()
        if name not in NAMES:  # numbers, in whatever way they are written
            return self._look_up(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        self._last[name] = next(self._lookups[name], None) or self._last[name]
        found = [
            self._look_up(address, port, family, type, proto, flags | socket.AI_NUMERICHOST)
            for address in self._last[name]
        ]
        return [info for infos in found for info in infos]

    def connect(self, sock: socket.socket, address: tuple) -> None:
        self.dialled.add(address[0])
        if address[0] != PUBLIC:
            raise ConnectionRefusedError(f"{address[0]} is not to be reached")
        self._connect(sock, ("127.0.0.1", self._port()))


class Watch:
    """Notices that any process opens a file, by inotify."""

    def __init__(self, path: Path):
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        # The mask is IN_OPEN.
        assert self._fd >= 0 and libc.inotify_add_watch(self._fd, os.fsencode(path), 0x20) >= 0

    def opened(self) -> bool:
        try:
            return bool(os.read(self._fd, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._fd)


class NoModels:
    """Replaces recogniser and aligner; any use of a model fails."""

    def vocabulary(self, terms: tuple[str, ...]) -> Vocabulary:
        return Vocabulary(terms)

    def __getattr__(self, name: str):
        raise AssertionError("a hostile job got as far as a model")


def processes() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def downloads() -> set[asyncio.Task]:
    return asyncio.all_tasks(download_module.download_loop())


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.fixture(scope="module")
def secret(tmp_path_factory) -> Path:
    """A recording that nobody may open.

    If it were decoded, the speech in it would reach a model, and the test would fail.
    """
    path = tmp_path_factory.mktemp("elsewhere") / "secret.wav"
    soundfile.write(path, ENGLISH[0].pcm, SAMPLE_RATE)
    return path


@pytest.fixture(autouse=True)
def as_on_runpod(monkeypatch):
    """Undo that tests/run.sh allows downloads from loopback; no proxies, short waits."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS":
            monkeypatch.delenv(name)
    monkeypatch.setattr(patience, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(web, "CONNECT_SECONDS", 1.5)
    monkeypatch.setattr(web, "READ_SECONDS", 1.5)


@contextmanager
def place_of(case: Case, secret: Path, monkeypatch):
    """(place, server, trap, internet) while the row runs."""
    over = threading.Event()
    with closing(Server(list)) as trap, closing(Server(lambda: case.answer(place))) as server:
        place = Place(server.port, trap.port, secret, over)
        internet = Internet(monkeypatch, lambda: server.port)
        try:
            yield place, server, trap, internet
        finally:
            over.set()


# the table


def test_the_table_has_200_rows_with_different_names():
    assert len(CASES) >= 200 and len({case.name for case in CASES}) == len(CASES)
    assert {case.code for case in CASES} <= {None, *RETRYABLE}
    assert all((case.code is None) == (case.seconds is not None) for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case.name)[1:-1])
def test_a_hostile_job_gets_its_code_and_reaches_nothing_else(
    case, secret, monkeypatch, tmp_path, capfd, caplog
):
    caplog.set_level(logging.DEBUG)  # libraries log at this level too
    monkeypatch.chdir(secret.parent)  # where a name without a path leads
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(handler, "settings", replace(SETTINGS, **case.limits), raising=False)
    monkeypatch.setattr(handler, "gate", Gate(8), raising=False)
    for name in ("asr", "aligner"):
        monkeypatch.setattr(handler, name, NoModels(), raising=False)
    merge, durations = handler.merge_channels, []
    monkeypatch.setattr(
        handler,
        "merge_channels",
        lambda results, pcm, script: durations.append(pcm.end) or merge(results, pcm, script),
    )

    before = processes()
    with (
        closing(Watch(secret)) as watch,
        place_of(case, secret, monkeypatch) as (place, server, trap, internet),
    ):
        for name, value in case.environ.items():
            monkeypatch.setenv(name, place.fill(value))
        url = place.fill(case.url)
        result = asyncio.run(
            handler.handler(
                {"id": "job-7", "input": {"audio_url": url, "initial_context": CONTEXT}}
            )
        )
        assert wait_until(lambda: not downloads()), "the download goes on"
        assert internet.dialled <= {PUBLIC} and trap.connections == 0 and not watch.opened(), (
            "something else was opened"
        )
        assert not any(
            line.lower().startswith(b"x-injected")
            for head in server.heads
            for line in head.splitlines()
        )
        assert server.connections <= max(MAX_REDIRECTS + 1, patience.ATTEMPTS)
    assert processes() <= before and list(tmp_path.iterdir()) == []

    if case.code is None:
        assert "error" not in result and result["text"] == "" and result["segments"] == []
        assert durations == [pytest.approx(case.seconds, abs=0.05)]
    else:
        assert result.get("error_code") == case.code, result
        assert (
            set(result) == {"error", "error_message", "error_code", "retryable"}
            and result["retryable"] is RETRYABLE[case.code]
        )
        assert (
            len(result["error"]) < 400
            and "\n" not in result["error"]
            and "Traceback" not in result["error"]
        )
        assert "private" not in result["error"] and str(tmp_path) not in result["error"]
        assert "exit status -" not in result["error"], "the decoder crashed"
    log = capfd.readouterr()
    log = log.out + log.err + caplog.text
    assert (case.code or "done in") in log
    for told in ("SECRET", "private", CONTEXT, "Traceback"):
        assert told not in json.dumps(result) + log


# what the table relies on


def test_watch_and_trap_notice_an_access(secret, monkeypatch):
    with (
        closing(Watch(secret)) as watch,
        place_of(Case("", None), secret, monkeypatch) as (_, _, trap, internet),
    ):
        assert not watch.opened() and trap.connections == 0
        secret.read_bytes()
        assert watch.opened() and not watch.opened()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", trap.port))
        assert internet.dialled == {"127.0.0.1"}
        monkeypatch.undo()
        socket.create_connection(("127.0.0.1", trap.port)).close()
        assert wait_until(lambda: trap.connections == 1)


# memory


@pytest.mark.parametrize(("encodings", "code"), BOMBS.items(), ids=map(", ".join, BOMBS))
def test_a_compressed_bomb_is_given_up_before_it_fills_the_memory(
    encodings, code, monkeypatch, tmp_path, secret
):
    bomb = packed(5 * 10**7, *encodings)
    with place_of(sends("", None, bomb), secret, monkeypatch) as (place, *_):
        tracemalloc.start()
        try:
            with pytest.raises(DownloadError) as given_up:
                asyncio.run(fetched(place.fill(URL), tmp_path, max_bytes=10**6, timeout=30))
            assert given_up.value.code == code
            assert tracemalloc.get_traced_memory()[1] < 10**7
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_a_long_recording_in_a_small_file_does_not_fill_the_memory(case, tmp_path):
    (answer,) = case.answer(None)
    path, peaks = tmp_path / "a", [0]
    path.write_bytes(answer.partition(b"\r\n\r\n")[2])
    assert path.stat().st_size < 10**6

    async def listen():
        # Without a limit, because a file that declares its length would not be decoded at all.
        async with decode(path, inf) as pcm:
            pcm._max_seconds = SETTINGS.max_audio_seconds
            async for _ in pcm:
                peaks[0] = max(peaks[0], _peak_kilobytes(pcm._child.pid))

    with pytest.raises(AudioTooLong):
        asyncio.run(listen())
    assert 0 < max(peaks) < 500_000


def _peak_kilobytes(pid: int) -> int:
    """The most memory that a process has held; 0 for one that has ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) if "VmHWM:" in status else 0
