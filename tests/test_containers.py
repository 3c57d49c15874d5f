"""Containers beyond the usual ones, and files that are no recording: where the speech lies, or the
sentence of the refusal.

The files are made by the muxers of PyAV and libsndfile. What neither can write (DTS, DSS, …) is
only known to be allowed.
"""

import asyncio
import io
import json
import zipfile
from pathlib import Path

import av
import demuxers
import numpy as np
import pytest
import soundfile
from av.format import ContainerFormat
from contract.audio_source import FileInUrl
from contract.errors import DecodeError, DownloadTooLarge
from contract.request import Request, parse_request
from material import ENGLISH, silence
from recording.chunk import SAMPLE_RATE
from recording.pcm_stream import decode
from recording.source import recording

WORD = ENGLISH[0].pcm[: 2 * SAMPLE_RATE // 3]
BEFORE, AFTER = 1.0, 0.7  # seconds of silence
RECORDING = np.concatenate([silence(BEFORE), WORD, silence(AFTER)])
LOUD = 1000

# by PyAV: (the file's suffix, FFmpeg's muxer, codec, rate, layout)
BY_PYAV = [
    ("mxf", "mxf_opatom", "pcm_s16le", 48_000, "mono"),
    ("gxf", "gxf", "pcm_s16le", 48_000, "mono"),
    ("rm", "rm", "real_144", 8_000, "mono"),
    ("ra", "rm", "ac3", 44_100, "stereo"),
    ("voc", "voc", "pcm_u8", 16_000, "mono"),
    ("g722", "g722", "g722", 16_000, "mono"),
    ("722", "g722", "g722", 16_000, "mono"),
    ("aptx", "aptx", "aptx", 48_000, "stereo"),
    ("dfpwm", "dfpwm", "dfpwm", 48_000, "mono"),
    ("302", "daud", "pcm_s24daud", 96_000, "5.1"),
    ("rso", "rso", "pcm_u8", 16_000, "mono"),
    ("sox", "sox", "pcm_s32le", 16_000, "mono"),
    ("spdif", "spdif", "ac3", 48_000, "stereo"),
    ("wtv", "wtv", "mp2", 48_000, "stereo"),
    ("nut", "nut", "libopus", 48_000, "mono"),
    ("swf", "swf", "libmp3lame", 44_100, "mono"),
    ("ast", "ast", "pcm_s16be_planar", 16_000, "mono"),
    ("adx", "adx", "adpcm_adx", 16_000, "mono"),
    ("wv", "wv", "wavpack", 16_000, "mono"),
    ("wma", "asf", "wmav2", 44_100, "mono"),
    ("3gp", "3gp", "aac", 44_100, "mono"),
    ("caf", "caf", "alac", 44_100, "mono"),
]
# by libsndfile: (the file's suffix, its format, its codec, rate)
BY_LIBSNDFILE = [
    ("gsm", "RAW", "GSM610", 8_000),
    ("sph", "NIST", "PCM_16", 16_000),
    ("sf", "IRCAM", "PCM_16", 16_000),
    ("8svx", "SVX", "PCM_16", 16_000),
    ("paf", "PAF", "PCM_16", 16_000),
    ("avr", "AVR", "PCM_16", 16_000),
    ("pvf", "PVF", "PCM_16", 16_000),
    ("au", "AU", "G721_32", 8_000),
]


def write_by_pyav(path: Path, muxer: str, codec: str, rate: int, layout: str, **metadata) -> None:
    with av.open(str(path), "w", format=muxer) as container:
        track = container.add_stream(codec, rate=rate, layout=layout)
        track.metadata.update(metadata)
        if codec == "wmav2":
            track.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(RECORDING[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        resampler = av.AudioResampler(format=track.format, layout=layout, rate=rate)
        for resampled in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(track.encode(resampled))
        container.mux(track.encode(None))


def write_by_libsndfile(path: Path, kind: str, codec: str, rate: int) -> None:
    soundfile.write(path, RECORDING[:: SAMPLE_RATE // rate], rate, format=kind, subtype=codec)


def decoded(path: Path, suffix: str) -> np.ndarray:
    async def collect():
        async with decode(path, 60, suffix=suffix) as pcm:
            return [block async for block in pcm]

    return np.concatenate(asyncio.run(collect()))


def speech(pcm: np.ndarray) -> tuple[float, float, float]:
    """(where it begins, where it ends, length of the file), in seconds."""
    loud = np.flatnonzero(np.abs(pcm.astype(int)) > LOUD)
    return loud[0] / SAMPLE_RATE, loud[-1] / SAMPLE_RATE, len(pcm) / SAMPLE_RATE


def test_speech_keeps_its_place_in_containers_of_all_kinds(tmp_path):
    path, writers = tmp_path / "source", []
    for rows, write in ((BY_PYAV, write_by_pyav), (BY_LIBSNDFILE, write_by_libsndfile)):
        writers += [(write, row) for row in rows]
    for write, (suffix, *how) in writers:
        write(path, *how)
        found = speech(decoded(path, suffix))
        assert found == pytest.approx(speech(RECORDING), abs=0.4), (suffix, how)


def test_the_suffix_matters_only_where_the_bytes_say_nothing(tmp_path):
    soundfile.write(tmp_path / "a.wav", RECORDING, SAMPLE_RATE)
    assert np.array_equal(decoded(tmp_path / "a.wav", "g722"), RECORDING)
    write_by_pyav(tmp_path / "b", "g722", "g722", 16_000, "mono")
    with pytest.raises(DecodeError, match="not audio or video in a known format"):
        decoded(tmp_path / "b", "")


# the list

LEFT_OUT = {
    "opens other files or addresses": "concat hls image2 image2pipe mlv rtp rtsp sap sdp vobsub "
    "webm_dash_manifest msnwctcp",
    "reads a device or a filter graph": "alsa fbdev kmsgrab lavfi oss video4linux2,v4l2 x11grab",
    "needs a key": "aa",
    "bare samples": "alaw bitpacked data f32be f32le f64be f64le mulaw s16be s16le s24be s24le "
    "s32be s32le s8 u16be u16le u24be u24le u32be u32le u8 vidc",
    "another name of mov": "3g2 3gp mp4",
    "no decoder": "ac4",
    "no sound": "adf alias_pix anm apng apv av1 avs2 avs3 bin brender_pix cavsvideo cdg cine "
    "codec2raw dfa dirac dnxhd dvbsub dvbtxt ea_cdata evc ffmetadata filmstrip fits flic frm gif "
    "h261 h263 h264 hevc ico idf ifv ingenient ipu iv8 ivf jpegxl_anim lmlm4 m4v mjpeg mjpeg_2000 "
    "mm mpegtsraw mpegvideo mpjpeg msp nc obu pdv r3d rawvideo rcwt sbg ser tty v210 v210x vc1 "
    "vc1test vvc xbin yuv4mpegpipe",
    "subtitles": "aqtitle ass jacosub lrc mcc microdvd mpl2 mpsub pjs realtext sami scc srt stl "
    "subviewer subviewer1 sup tedcaptions vplayer webvtt",
}


def demuxers_of_ffmpeg() -> set[str]:
    names = set()
    for name in av.formats_available:
        try:
            names.add(ContainerFormat(name, "r").name)
        except ValueError:  # a muxer
            continue
    return names


def test_every_demuxer_is_allowed_or_left_out_for_a_reason():
    allowed = set(demuxers.DEMUXERS.split(","))
    left_out = set(" ".join(LEFT_OUT.values()).split())
    known = demuxers_of_ffmpeg()
    pictures = {name for name in known if name.endswith("_pipe")}
    undecided = {n for n in known - left_out - pictures if not allowed & set(n.split(","))}
    assert undecided == set() and allowed & left_out == set()
    assert len(allowed) == len(demuxers.DEMUXERS.split(","))
    assert set(demuxers.DEMUXERS_BY_SUFFIX.values()) <= allowed


# files that are no recording, or one that nobody can decode


def zip_of(data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("talk.wav", data)
    return packed.getvalue()


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, RECORDING, SAMPLE_RATE, format="WAV")
    return file.getvalue()


ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
WMA_DRM = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e")
HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nhttp://a.example/1.ts\n#EXT-X-ENDLIST\n"
XML = '<?xml version="1.0"?>\n'
ZIP = "is an archive (ZIP), not audio; unpack it"
NO_RECORDING = {
    "HLS": (HLS.encode(), "is an HLS playlist, which only lists the addresses of a stream; save"),
    "M3U": (b"#EXTM3U\n#EXTINF:10,Talk\nhttp://a.example/1.mp3\n", "is a playlist, which only"),
    "M3U without a head": (b"http://a.example/1.mp3\n", "is a playlist, which only lists"),
    "PLS": (b"[playlist]\nFile1=http://a.example/1.mp3\n", "is a playlist, which only lists"),
    "XSPF": (f"{XML}<playlist version='1'/>".encode(), "is a playlist, which only lists"),
    "concat": (b"ffconcat version 1.0\nfile 'a.wav'\n", "is a playlist, which only lists"),
    "SDP": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\n", "is a playlist, which only lists"),
    "DASH": (f"{XML}<MPD type='static'/>".encode(), "is a DASH manifest, which only lists"),
    "podcast": (f"{XML}<rss version='2.0'/>".encode(), "is a podcast feed; send the URL of an"),
    "page": (b"\n<!DOCTYPE html><html></html>", "is a web page, not audio; the URL must lead"),
    "JSON": (json.dumps({"error": "gone"}).encode(), "is JSON, not audio; the URL must lead to"),
    "JSON in lines": (b'[\n  {\n    "url": "x"\n  }\n]', "is JSON, not audio; the URL must"),
    "ZIP": (zip_of(wav()), ZIP),
    "empty ZIP": (b"PK\5\6" + bytes(18), ZIP),
    "RAR": (b"Rar!\x1a\7\1\0" + bytes(50), "is an archive (RAR), not audio; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(50), "is an archive (7z), not audio; unpack it"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "is an archive (gzip), not audio; unpack it"),
    "Audible": (bytes(4) + b"\x57\x90\x75\x36" + bytes(50), "is protected by DRM (Audible); only"),
    "WMA": (
        ASF_HEADER + (80).to_bytes(8, "little") + bytes(6) + WMA_DRM + bytes(34),
        "is protected by DRM (Windows Media); only a copy without protection",
    ),
    "no sound": (b"\0\1\2\3" * 100, "is not audio or video in a known format"),
}


def refusal(path: Path, suffix: str = "") -> str:
    with pytest.raises(DecodeError) as refused:
        decoded(path, suffix)
    return str(refused.value)


def test_what_is_no_recording_is_refused_with_its_name_and_a_way_out(tmp_path):
    path = tmp_path / "source"
    for name, (content, sentence) in NO_RECORDING.items():
        path.write_bytes(content)
        assert refusal(path).startswith(f"The file at audio_url {sentence}"), name


def test_an_answer_in_json_is_no_sound_of_a_format_known_by_its_suffix(tmp_path):
    (tmp_path / "a").write_bytes(b'{"error": "expired"}')
    assert "is JSON" in refusal(tmp_path / "a", "g722")


@pytest.fixture(scope="module")
def m4a(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("made") / "a.m4a"
    write_by_pyav(path, "mp4", "aac", 44_100, "mono")
    return path.read_bytes()


def test_an_mp4_without_its_index_or_with_a_part_of_it_says_so(tmp_path, m4a):
    index = m4a.index(b"moov") - 4
    for name, end in (("without", index), ("eight bytes", index + 8), ("a part", index + 300)):
        (tmp_path / "a").write_bytes(m4a[:end])
        assert "is an MP4 without its index (moov)" in refusal(tmp_path / "a"), name
    (tmp_path / "a").write_bytes(b"\0\0\0\x08ftyp" + bytes(100))
    assert "is an MP4 without its index (moov)" in refusal(tmp_path / "a"), "a box of no size"


def test_an_mp4_whose_audio_is_protected_says_by_what(tmp_path, m4a):
    for tag, name in {b"drms": "FairPlay", b"aavd": "Audible", b"enca": "Common Encr"}.items():
        (tmp_path / "a").write_bytes(m4a.replace(b"mp4a", tag, 1))
        assert f"is protected by DRM ({name}" in refusal(tmp_path / "a")


def element(identifier: str, content: bytes) -> bytes:
    """An element of Matroska; the content has at most 126 bytes."""
    return bytes.fromhex(identifier) + bytes([0x80 | len(content)]) + content


def test_a_matroska_whose_audio_is_encrypted_says_so(tmp_path):
    """The name of the track gives its place to the element that says how it is encrypted."""
    write_by_pyav(tmp_path / "a", "matroska", "libopus", 48_000, "mono", title="x" * 60)
    key = element("47e2", bytes(16))
    encryption = element("5033", b"\1") + element("5035", element("47e1", b"\5") + key)
    encodings = element("6d80", element("6240", encryption))
    name = element("536e", b"x" * 60)
    data = (tmp_path / "a").read_bytes()
    assert data.count(name) == 1
    void = element("ec", bytes(len(name) - len(encodings) - 2))
    (tmp_path / "a").write_bytes(data.replace(name, encodings + void))
    assert "is protected by DRM" in refusal(tmp_path / "a")


# the field

UNUSED = {"timeout": 1, "timer": None}  # they are for downloads


def sentence_for(request: Request, folder: Path) -> str:
    async def read():
        async with (
            recording(request, folder, max_bytes=1000, **UNUSED) as file,
            decode(file.path, 60, suffix=file.suffix) as pcm,
        ):
            return [block async for block in pcm]

    with pytest.raises(DecodeError) as refused:
        asyncio.run(read())
    return str(refused.value)


def test_a_sentence_about_a_file_names_the_field_that_holds_it(tmp_path):
    (tmp_path / "talk.G722").write_bytes(b"PK\3\4")
    given = {
        "in audio_base64": {"audio_base64": "UEsDBA=="},
        "in audio_url": {"audio_url": "data:;base64,UEsDBA"},
        "at audio_url": {"audio_url": str(tmp_path / "talk.G722")},
    }
    for place, job_input in given.items():
        request = parse_request(job_input, local_files=True)
        assert isinstance(request.audio_base64, FileInUrl) == (place == "in audio_url")
        sentence = sentence_for(request, tmp_path)
        assert sentence.startswith(f"The file {place} is an archive (ZIP)"), place


def test_a_file_in_a_request_that_is_too_large_is_refused_with_its_field(tmp_path):
    async def store():
        async with recording(Request(audio_base64=b"12345"), tmp_path, max_bytes=4, **UNUSED):
            pass

    with pytest.raises(DownloadTooLarge) as refused:
        asyncio.run(store())
    assert str(refused.value) == "The file in audio_base64 is larger than the 4 bytes allowed."
