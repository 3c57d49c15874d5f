"""Files with tags inside, joined files, cut and damaged ones, and clocks that jump.

Each recording is made of tones, a second apart, of which each has its own pitch. So the tests see
which one is heard at what time.
"""

import asyncio
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import media
import numpy as np
import pytest
import soundfile
from contract.errors import DecodeError
from damage import MAX_SPANS, DamagedSpans
from hypothesis import given
from hypothesis import strategies as st
from material import silence
from recording.chunk import SAMPLE_RATE
from recording.pcm_stream import decode
from result.transcript import merge

TONE_SECONDS = 0.3
FIRST_HZ, STEP_HZ = 400, 60
LATE = 0.2  # seconds from a whole second to its tone
MAX_ERROR = 0.4  # seconds between a tone's time in the recording and in the file
PLAIN_MP3 = {"write_xing": "0", "id3v2_version": "0"}


def tones(first: int, end: int) -> np.ndarray:
    """(samples,) int16: the tones with these numbers, one a second."""
    time = np.arange(round(TONE_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    pcm = silence(end - first)
    for i, number in enumerate(range(first, end)):
        start = round((i + LATE) * SAMPLE_RATE)
        wave = 12_000 * np.sin(2 * np.pi * (FIRST_HZ + STEP_HZ * number) * time)
        pcm[start : start + len(time)] = wave
    return pcm


class Decoded(NamedTuple):
    pcm: np.ndarray
    warnings: tuple[str, ...]
    damaged: tuple[tuple[float, float], ...]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE

    def heard(self) -> dict[int, float]:
        """The number of each whole tone → its start in seconds."""
        step = SAMPLE_RATE // 100
        loud = np.abs(self.pcm[: len(self.pcm) // step * step].reshape(-1, step)).max(1) > 2500
        edges = np.flatnonzero(np.diff(np.concatenate([[0], loud, [0]])))
        found = {}
        for start, end in edges.reshape(-1, 2):
            if end - start >= 20:
                spectrum = np.abs(np.fft.rfft(self.pcm[start * step : end * step], SAMPLE_RATE))
                found[round((int(spectrum.argmax()) - FIRST_HZ) / STEP_HZ)] = start / 100
        return found


def decoded(path: Path, **part) -> Decoded:
    async def collect():
        async with decode(path, 36_000, **part) as pcm:
            blocks = [block async for block in pcm]
        return Decoded(np.concatenate(blocks), pcm.warnings, pcm.damaged_spans)

    return asyncio.run(collect())


def encode(path: Path, pcm: np.ndarray, codec: str, rate: int, layout="mono", form=None, **options):
    """The bytes of the file; `options` go to FFmpeg's muxer."""
    with av.open(str(path), "w", format=form, options=options) as container:
        track = container.add_stream(codec, rate=rate, layout=layout)
        track.bit_rate = 64_000 if rate > 16_000 else 32_000
        for start in range(0, len(pcm), SAMPLE_RATE):
            samples = pcm[None, start : start + SAMPLE_RATE]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path.read_bytes()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# tags and joined files


def id3v2(size: int, version: int = 3, footer: bool = False) -> bytes:
    body = random.Random(size).randbytes(size)
    length = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    head = bytes([version, 0, 0x10 if footer else 0]) + length
    return b"ID3" + head + body + (b"3DI" + head if footer else b"")


def ape(size: int) -> bytes:
    def edge(flags: int) -> bytes:
        return b"APETAGEX" + struct.pack("<IIIIQ", 2000, size + 32, 1, flags, 0)

    return edge(0xA0000000) + random.Random(size).randbytes(size) + edge(0x80000000)


ID3V1 = b"TAG" + b"Title".ljust(30, b"\0") + b"Artist".ljust(60) + b"2020" + bytes(30) + b"\x0c"


def with_titles(data: bytes, interval: int) -> bytes:
    """As a radio server sends it to a client that asks for titles; each fifth block has one."""
    title = b"StreamTitle='A - B';StreamUrl='';".ljust(48, b"\0")
    pieces = [data[i : i + interval] for i in range(0, len(data), interval)]
    blocks = [b"\3" + title if i % 5 == 0 else b"\0" for i in range(len(pieces) - 1)]
    return b"".join(a + b for a, b in zip(pieces, [*blocks, b""]))


class Made(NamedTuple):
    """The two halves of ten seconds in several codecs, as bytes."""

    mp3: tuple[bytes, bytes]
    aac: tuple[bytes, bytes]
    flac: tuple[bytes, bytes]
    wav: tuple[bytes, bytes]
    opus: tuple[bytes, bytes]
    ogg_flac: tuple[bytes, bytes]
    vorbis: tuple[bytes, bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    path = tmp_path_factory.mktemp("made") / "a"
    halves = [(tones(0, 5), "mono"), (tones(5, 10), "stereo")]

    def both(codec: str, form: str, *rates: int, **options) -> tuple[bytes, bytes]:
        files = [
            encode(path, pcm, codec, rate, layout, form, **options)
            for rate, (pcm, layout) in zip(rates, halves)
        ]
        return files[0], files[1]

    def vorbis(pcm: np.ndarray, channels: int) -> bytes:
        sound = np.stack([pcm] * channels, 1)
        soundfile.write(path, sound, SAMPLE_RATE, format="OGG", subtype="VORBIS")
        return path.read_bytes()

    return Made(
        both("libmp3lame", "mp3", 44_100, 44_100, **PLAIN_MP3),
        both("aac", "adts", 44_100, 44_100),
        both("flac", "flac", 16_000, 48_000),
        both("pcm_s16le", "wav", 16_000, 44_100),
        both("libopus", "ogg", 48_000, 48_000),
        both("flac", "ogg", 44_100, 48_000),
        (vorbis(halves[0][0], 1), vorbis(halves[1][0], 2)),
    )


UNKNOWN_LINK = "Several recordings are joined in this file. Left out"
JOINED = {  # the name's suffix does not matter
    "MP3, small ID3v2": lambda m: m.mp3[0] + id3v2(3_000) + m.mp3[1],
    "MP3, cover": lambda m: m.mp3[0] + id3v2(60_000) + m.mp3[1],
    "MP3, ID3v2 with a footer": lambda m: m.mp3[0] + id3v2(5_000, 4, True) + m.mp3[1],
    "MP3, cover in front too": lambda m: id3v2(90_000) + m.mp3[0] + id3v2(9_000) + m.mp3[1],
    "MP3, ID3v1": lambda m: m.mp3[0] + ID3V1 + m.mp3[1],
    "MP3, APE": lambda m: m.mp3[0] + ape(20_000) + m.mp3[1],
    "MP3, all tags in a row": lambda m: (
        m.mp3[0] + ape(900) + ID3V1 + id3v2(40_000) + m.mp3[1] + ape(900) + ID3V1
    ),
    "MP3, titles of a radio station": lambda m: with_titles(m.mp3[0] + m.mp3[1], 16_000),
    "MP3, titles more often": lambda m: with_titles(m.mp3[0] + m.mp3[1], 4_096),
    "AAC, ID3v2": lambda m: id3v2(63, 4) + m.aac[0] + id3v2(30_000, 4) + m.aac[1],
    "AAC, APE": lambda m: m.aac[0] + ape(20_000) + m.aac[1],
    "AAC, titles": lambda m: with_titles(m.aac[0] + m.aac[1], 8_192),
    "FLAC": lambda m: m.flac[0] + m.flac[1],
    "FLAC, ID3v2": lambda m: m.flac[0] + id3v2(30_000) + m.flac[1],
    "WAV": lambda m: m.wav[0] + m.wav[1],
    "Ogg, Opus of other channels": lambda m: m.opus[0] + m.opus[1],
    "Ogg, FLAC of other rates": lambda m: m.ogg_flac[0] + m.ogg_flac[1],
    "Ogg, Vorbis of other channels": lambda m: m.vorbis[0] + m.vorbis[1],
    "Ogg, other codecs": lambda m: m.opus[0] + m.vorbis[1],
    "Ogg, rubbish between": lambda m: m.ogg_flac[0] + bytes(5_000) + m.opus[1],
    "Ogg, a link of an unknown codec": lambda m: (
        m.opus[0] + m.opus[0].replace(b"OpusHead", b"OpusHeaX") + m.opus[1]
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_files_keep_all_sounds_and_their_times(made, tmp_path, name):
    found = decoded(written(tmp_path / "a", JOINED[name](made)))
    assert found.damaged == () and abs(found.seconds - 10) < MAX_ERROR
    expected = 1 if "unknown" in name else 0
    assert [w.startswith(UNKNOWN_LINK) for w in found.warnings] == [True] * expected
    heard = found.heard()
    assert sorted(heard) == list(range(10))
    assert all(abs(time - number - LATE) < MAX_ERROR for number, time in heard.items()), heard


def test_what_only_looks_like_a_tag_is_left_in_the_file(made, tmp_path):
    """A tag has to be followed by a frame, a tag or the end."""
    data = bytearray(made.mp3[0] + made.mp3[1])
    place = len(made.mp3[0]) // 2
    data[place : place + 10] = b"ID3\3\0\0\0\0\x40\0"  # 8 kB long
    found = decoded(written(tmp_path / "a", bytes(data)))
    assert abs(found.seconds - 10) < MAX_ERROR and len(found.heard()) >= 9


# cut files

CUT = [  # codec, container, suffix
    ("libmp3lame", "mp3", 44_100),
    ("pcm_s16be", "aiff", 16_000),
    ("pcm_s24be", "aiff", 44_100),
    ("pcm_mulaw", "au", 16_000),
    ("pcm_s16be", "caf", 16_000),
    ("pcm_s16le", "w64", 16_000),
    ("wmav2", "asf", 44_100),
    ("tta", "tta", 16_000),
    ("libmp3lame", "avi", 44_100),
    ("pcm_s16le", "avi", 16_000),
    ("wavpack", "wv", 16_000),
    ("libmp3lame", "flv", 44_100),
    ("adpcm_ms", "wav", 16_000),
    ("adpcm_ima_wav", "wav", 16_000),
    ("pcm_alaw", "wav", 16_000),
    ("pcm_f32le", "wav", 16_000),
    ("libmp3lame", "wav", 44_100),
    ("g722", "wav", 16_000),
]


@pytest.mark.parametrize("codec, form, rate", CUT)
def test_a_cut_file_warns_and_a_whole_one_does_not(tmp_path, codec, form, rate):
    data = encode(tmp_path / "whole", tones(0, 12), codec, rate, "mono", form)
    whole = decoded(tmp_path / "whole")
    assert whole.warnings == () and sorted(whole.heard()) == list(range(12))
    cut = decoded(written(tmp_path / "cut", data[: len(data) * 6 // 10]))
    [warning] = cut.warnings
    assert warning.startswith("The file declares 12.") and "the rest is missing" in warning
    heard = cut.heard()
    assert set(range(3)) <= set(heard) <= set(range(8))
    assert all(abs(time - number - LATE) < MAX_ERROR for number, time in heard.items())


def test_a_cut_mp3_with_a_vbri_header_warns(tmp_path):
    data = encode(tmp_path / "a", tones(0, 12), "libmp3lame", 44_100, "mono", "mp3")
    header = data.index(b"Info")
    frames = data[header + 8 : header + 12]
    frame = data.rindex(b"\xff\xfb", 0, header)
    vbri = b"VBRI" + struct.pack(">HHHI", 1, 0, 75, len(data)) + frames
    data = data[:header] + bytes(120) + data[header + 120 :]
    data = data[: frame + 36] + vbri + data[frame + 36 + len(vbri) :]
    [warning] = decoded(written(tmp_path / "cut", data[: len(data) // 2])).warnings
    assert warning.startswith("The file declares 12.")


# damage


def without_ts_packets(data: bytes, share: float, burst: int = 1) -> bytes:
    """A broadcast of which this share of the packets is lost, so many in a row."""
    chance = random.Random(3)
    packets = [data[i : i + 188] for i in range(0, len(data), 188)]
    lost: set[int] = set()
    for i in range(12, len(packets)):
        if chance.random() < share / burst:
            lost.update(range(i, i + burst))
    return b"".join(packet for i, packet in enumerate(packets) if i not in lost)


def overwritten(data: bytes, start: float, end: float, zeros: bool = False) -> bytes:
    """With other bytes between two shares of the file."""
    first, last = round(start * len(data)), round(end * len(data))
    rubbish = bytes(last - first) if zeros else random.Random(5).randbytes(last - first)
    return data[:first] + rubbish + data[last:]


def scattered(data: bytes, count: int) -> bytes:
    wrong, chance = bytearray(data), random.Random(5)
    for _ in range(count):
        wrong[chance.randrange(3000, len(data) * 8 // 10)] = chance.randrange(256)
    return bytes(wrong)


Damage = Callable[[bytes], bytes]


def hole(start: float, end: float, zeros: bool = False) -> Damage:
    return lambda data: overwritten(data, start, end, zeros)


def lost_packets(share: float, burst: int = 1) -> Damage:
    return lambda data: without_ts_packets(data, share, burst)


def wrong_bytes(count: int) -> Damage:
    return lambda data: scattered(data, count)


def piece_cut_out(data: bytes) -> bytes:
    return data[: len(data) // 2] + data[len(data) * 6 // 10 :]


DAMAGE = {  # codec, container, rate, damage, minimum number of the 12 tones that are left
    "1 % of a broadcast": ("aac", "mpegts", 48_000, lost_packets(0.01), 9),
    "5 % of a broadcast": ("mp2", "mpegts", 48_000, lost_packets(0.05), 5),
    "a burst in a broadcast": ("ac3", "mpegts", 48_000, lost_packets(0.1, burst=40), 7),
    "a hole in a TS": ("aac", "mpegts", 48_000, hole(0.4, 0.6), 8),
    "a hole in an MPEG": ("mp2", "mpeg", 48_000, hole(0.4, 0.6), 8),
    "a hole in an MP3": ("libmp3lame", "mp3", 44_100, hole(0.4, 0.6), 8),
    "zeros in an MP3": ("libmp3lame", "mp3", 44_100, hole(0.3, 0.8, zeros=True), 5),
    "wrong bytes in an MP3": ("libmp3lame", "mp3", 44_100, wrong_bytes(60), 8),
    "wrong bytes in an M4A": ("aac", "ipod", 44_100, wrong_bytes(12), 7),
    "a hole in an M4A": ("aac", "ipod", 44_100, hole(0.3, 0.5), 8),
    "the start of an M4A": ("aac", "ipod", 44_100, hole(0.07, 0.3), 7),
    "a hole in a FLAC": ("flac", "flac", 16_000, hole(0.5, 0.6), 8),
    "the start of a FLAC": ("flac", "flac", 16_000, hole(0.12, 0.4), 6),
    "a piece cut out of a FLAC": ("flac", "flac", 16_000, piece_cut_out, 8),
    "a hole in an Ogg": ("libopus", "ogg", 48_000, hole(0.4, 0.5), 8),
    "the start of an Ogg": ("libopus", "ogg", 48_000, hole(0.02, 0.3), 7),
    "a hole in a WebM": ("libopus", "webm", 48_000, hole(0.4, 0.5), 5),
    "a hole in a WMA": ("wmav2", "asf", 44_100, hole(0.4, 0.5), 8),
    "a hole in an MP3 in a WAV": ("libmp3lame", "wav", 44_100, hole(0.4, 0.5), 8),
    "a hole in an FLV": ("libmp3lame", "flv", 44_100, hole(0.4, 0.5), 8),
}


def is_near(time: float, spans) -> bool:
    return any(start - 0.5 < time < end + 0.5 for start, end in spans)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_silence_and_reported_and_the_rest_keeps_its_time(tmp_path, name):
    codec, form, rate, damage, least = DAMAGE[name]
    options = {"movflags": "+faststart"} if form == "ipod" else {}
    data = encode(tmp_path / "whole", tones(0, 12), codec, rate, "mono", form, **options)
    found = decoded(written(tmp_path / "a", damage(data)))
    assert abs(found.seconds - 12) < MAX_ERROR
    [warning] = [w for w in found.warnings if w.startswith("The file is damaged: ")]
    assert warning.endswith("damaged_spans says which.") and found.damaged
    # Behind a hole a codec may give noise for a moment.
    heard = {number: time for number, time in found.heard().items() if 0 <= number < 12}
    in_place = [n for n, time in heard.items() if abs(time - n - LATE) < MAX_ERROR]
    assert len(in_place) >= least, heard
    lost = set(range(12)) - set(in_place)
    assert all(is_near(number + LATE, found.damaged) for number in lost), (lost, found.damaged)


@pytest.mark.parametrize(
    "codec, form", [("libmp3lame", "mp3"), ("flac", "flac"), ("ac3", "mpegts")]
)
def test_a_file_of_which_next_to_nothing_is_left_is_refused_before_its_first_sample(
    tmp_path, codec, form
):
    data = encode(tmp_path / "whole", tones(0, 12), codec, 48_000, "mono", form)
    path = written(tmp_path / "a", overwritten(data, 0.08 if form == "flac" else 0.02, 0.96))

    async def samples_before_the_refusal():
        async with decode(path, 36_000) as pcm:
            with pytest.raises(DecodeError, match=r"damaged: only \d\.\d% of its audio can be"):
                async for _ in pcm:
                    pass
            return pcm.samples

    assert asyncio.run(samples_before_the_refusal()) == 0


def test_damage_outside_a_part_is_not_that_of_the_part(tmp_path):
    data = encode(tmp_path / "whole", tones(0, 12), "libmp3lame", 44_100, "mono", "mp3")
    path = written(tmp_path / "a", overwritten(data, 0.01, 0.7))
    late = decoded(path, start=9.0)
    assert late.damaged == () and late.warnings == ()
    [span] = decoded(path, start=6.0, end=10.0).damaged
    assert span[0] == 6.0 and 8 < span[1] < 9


def test_a_track_of_which_packets_are_lost_is_damaged_in_a_mix_too(tmp_path):
    options = {"movflags": "+faststart"}
    with av.open(str(tmp_path / "a.mp4"), "w", options=options) as container:
        tracks = [container.add_stream("aac", rate=48_000, layout="mono") for _ in range(2)]
        for track, pcm in zip(tracks, (tones(0, 6), silence(6))):
            frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, 0
            container.mux([*track.encode(frame), *track.encode(None)])
    data = (tmp_path / "a.mp4").read_bytes()
    found = decoded(written(tmp_path / "b.mp4", overwritten(data, 0.6, 0.8)), track="mix")
    assert found.damaged and any(w.startswith("The file is damaged") for w in found.warnings)


def test_the_output_lists_damaged_spans_in_every_format():
    output = merge([], 5.0, ["The file is damaged."], damaged=[(1.0, 2.5)]).to_output()
    assert output["damaged_spans"] == [{"start": 1.0, "end": 2.5}]
    assert output["warnings"] == ["The file is damaged."] and "failed_spans" not in output


PAIRS = st.lists(
    st.tuples(st.floats(0, 5, allow_subnormal=False), st.floats(0, 5, allow_subnormal=False)),
    max_size=40,
)


@given(PAIRS, st.floats(0, 50, allow_subnormal=False), st.floats(0, 50, allow_subnormal=False))
def test_spans_are_in_order_within_the_part_and_hold_all_lost_seconds(pairs, start, seconds):
    part = DamagedSpans(start, start + seconds)
    time = lost = 0.0
    for gap, length in pairs:
        part.add(time + gap, time + gap + length)
        first, last = max(time + gap, start), min(time + gap + length, start + seconds)
        lost += max(0.0, last - first)
        time += gap + length
    edges = [edge for span in part.spans for edge in span]
    assert edges == sorted(edges) and all(start <= edge <= start + seconds for edge in edges)
    assert part.seconds == pytest.approx(lost)
    assert sum(last - first for first, last in part.spans) >= lost - 1e-6


def test_there_are_never_too_many_spans_for_a_report():
    spans = DamagedSpans(0, 1e9)
    for i in range(3 * MAX_SPANS):
        spans.add(i, i + 0.5)
    assert len(spans.spans) <= MAX_SPANS and spans.seconds == 1.5 * MAX_SPANS


# clocks


@pytest.mark.parametrize("rates", [(24_000, 48_000), (16_000, 48_000), (48_000, 16_000)], ids=str)
def test_an_aac_stream_that_changes_its_rate_keeps_its_times(tmp_path, rates):
    parts = [
        encode(tmp_path / "a", tones(5 * i, 5 * i + 5), "aac", rate, "mono", "adts")
        for i, rate in enumerate(rates)
    ]
    found = decoded(written(tmp_path / "a", b"".join(parts)))
    heard = found.heard()
    assert found.warnings == () and sorted(heard) == list(range(10))
    assert all(abs(time - number - LATE) < MAX_ERROR for number, time in heard.items()), heard


def box(kind: bytes, *parts: bytes) -> bytes:
    body = kind + b"".join(parts)
    return struct.pack(">I", 4 + len(body)) + body


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, body) of each box."""
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + size]))
        at += size
    return found


def with_edits(data: bytes, edits: list[tuple[float, float]]) -> bytes:
    """An MP4 of one track at 48 kHz, its index at its end, with other edits.

    `edits`: (seconds, first second in the media), or -1 for an empty edit.
    """
    rows = b"".join(
        struct.pack(">IiI", round(seconds * 1000), -1 if at < 0 else round(at * 48_000), 1 << 16)
        for seconds, at in edits
    )
    edit_list = box(b"edts", box(b"elst", bytes(4), struct.pack(">I", len(edits)), rows))
    index = data.index(b"moov") - 4
    movie = []
    for kind, body in boxes(data[index + 8 :]):
        if kind == b"trak":
            (_, head), *rest = [each for each in boxes(body) if each[0] != b"edts"]
            body = box(b"tkhd", head) + edit_list + b"".join(box(*each) for each in rest)
        movie.append(box(kind, body))
    return data[:index] + box(b"moov", *movie)


EDITS = {  # edits → tones with their starts
    "a delay": ([(3, -1), (6, 0.02)], {n: n + 3 for n in range(6)}),
    "a cut at the start": ([(4, 2.0)], {n: n - 2 for n in range(2, 6)}),
    "a piece cut out": ([(2, 0.0), (2, 4.0)], {0: 0, 1: 1, 4: 2, 5: 3}),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("codec", ["aac", "alac"])
def test_an_edit_list_gives_the_times_that_players_show(tmp_path, codec, name):
    data = encode(tmp_path / "a", tones(0, 6), codec, 48_000, "mono", "ipod")
    edits, starts = EDITS[name]
    found = decoded(written(tmp_path / "a", with_edits(data, edits)))
    heard = found.heard()
    assert found.warnings == () and sorted(heard) == sorted(starts)
    assert all(abs(heard[n] - start - LATE) < MAX_ERROR for n, start in starts.items()), heard


def with_gap(path: Path, seconds: float, **options) -> Path:
    """A WebM whose participant is muted for so long behind the fifth tone."""
    media.encode(tones(0, 10), path / "whole.webm", rate=48_000)
    with (
        av.open(str(path / "whole.webm")) as whole,
        av.open(str(path / "a.webm"), "w", options=options) as other,
    ):
        track = whole.streams.audio[0]
        copy = other.add_stream_from_template(track)
        for packet in whole.demux(track):
            if packet.pts is not None:
                late = packet.pts * packet.time_base >= 5
                packet.pts += round(seconds / packet.time_base) if late else 0
                packet.dts, packet.stream = packet.pts, copy
                other.mux(packet)
    return path / "a.webm"


def test_a_participant_muted_for_over_an_hour_is_silent_for_so_long(tmp_path):
    found = decoded(with_gap(tmp_path, 3660.0))
    heard = found.heard()
    assert found.damaged == () and found.warnings == ()
    assert abs(heard[4] - 4 - LATE) < MAX_ERROR and abs(heard[5] - 3665 - LATE) < MAX_ERROR


def test_a_jump_of_over_an_hour_that_no_length_confirms_is_a_broken_clock(tmp_path):
    assert abs(decoded(with_gap(tmp_path, 3660.0, live="1")).seconds - 10) < MAX_ERROR


def test_one_packet_with_a_wrong_timestamp_delays_nothing(tmp_path):
    media.encode(tones(0, 10), tmp_path / "whole.webm", rate=48_000)
    with av.open(str(tmp_path / "whole.webm")) as container:
        packets = [bytes(packet) for packet in container.demux() if packet.size > 50]
    data = bytearray((tmp_path / "whole.webm").read_bytes())
    content = data.index(packets[len(packets) // 4])
    assert data[content - 4] == 0x81  # the track, before two bytes of milliseconds and the flags
    data[content - 3 : content - 1] = (4990).to_bytes(2, "big")
    found = decoded(written(tmp_path / "a.webm", bytes(data)))
    heard = found.heard()
    assert sorted(heard) == list(range(10)) and abs(found.seconds - 10) < MAX_ERROR
    assert all(abs(time - number - LATE) < MAX_ERROR for number, time in heard.items()), heard
