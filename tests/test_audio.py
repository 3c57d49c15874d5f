"""Files → samples: formats, start times, declared lengths, damage, limits.

Each test starts real decoder processes and leaves none.
"""

import asyncio
import os
import random
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

import av
import media
import numpy as np
import psutil
import pytest
import soundfile
from conftest import FileServer, _QuietFiles
from contract.errors import AudioTooLong, DecodeError, EmptyAudio, WorkerFailed
from material import ENGLISH, silence
from recording import pcm_stream
from recording.chunk import SAMPLE_RATE, AudioChunk, waveform
from recording.pcm_stream import BLOCK_BYTES, decode
from resampler import Resampler

SPEECH = np.concatenate([u.pcm for u in ENGLISH[:12]])[: 10 * SAMPLE_RATE]
LOSSLESS_LAG, LOSSY_LAG = 0.002, 0.030  # seconds


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory, monkeypatch):
    """After every test: no temp file, no child process."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = set(psutil.Process().children(recursive=True))
    yield
    assert list(folder.iterdir()) == []
    assert set(psutil.Process().children(recursive=True)) <= before


def blocks_of(path: Path, max_seconds: float = 3600) -> list[np.ndarray]:
    async def collect():
        async with decode(path, max_seconds) as pcm:
            blocks = [block async for block in pcm]
            assert (
                pcm.samples == sum(map(len, blocks)) and pcm.duration == pcm.samples / SAMPLE_RATE
            )
            return blocks

    return asyncio.run(collect())


def decoded(path: Path) -> np.ndarray:
    return np.concatenate(blocks_of(path))


def decoded_while_it_grows(
    content: bytes, folder: Path, told: bool, pieces: int = 40
) -> np.ndarray:
    """Decode a file while it is written in `pieces`. With `told` the decoder is given its size."""
    path, whole = folder / "growing", folder / "growing.whole"

    async def grow():
        with path.open("wb") as file:
            for i in range(pieces):
                file.write(content[i * len(content) // pieces : (i + 1) * len(content) // pieces])
                file.flush()
                await asyncio.sleep(0.01)
        whole.touch()

    async def collect():
        path.touch()
        growing = asyncio.create_task(grow())
        async with decode(path, 3600, len(content) if told else None, whole) as pcm:
            blocks = [block async for block in pcm]
        await growing
        return blocks

    try:
        return np.concatenate(asyncio.run(collect()))
    finally:
        path.unlink()
        whole.unlink(missing_ok=True)


def sound_and_warning(path: Path, max_seconds: float = 3600) -> tuple[float, str | None]:
    """(seconds of sound, warning)."""

    async def collect():
        async with decode(path, max_seconds) as pcm:
            async for _ in pcm:
                assert not pcm.warnings
            return pcm.duration, one_warning(pcm)

    return asyncio.run(collect())


def one_warning(pcm: pcm_stream.PcmStream) -> str | None:
    assert len(pcm.warnings) <= 1
    return pcm.warnings[0] if pcm.warnings else None


def refusal(path: Path, error: type[DecodeError] = DecodeError, **limits) -> str:
    with pytest.raises(error) as refused:
        blocks_of(path, **limits)
    assert type(refused.value) is error and str(path.parent) not in str(refused.value)
    return str(refused.value)


def lag(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(seconds by which `b` is later than `a`, correlation of the two there:

    1 where they differ in loudness only).
    """
    n = min(len(a), len(b))
    a, b = a[:n].astype(float), b[:n].astype(float)
    correlation = np.fft.irfft(np.fft.rfft(b, 2 * n) * np.fft.rfft(a, 2 * n).conj())
    best = int(correlation.argmax())
    return (best if best < n else best - 2 * n) / SAMPLE_RATE, correlation[best] / np.sqrt(
        (a**2).sum() * (b**2).sum()
    )


def seconds(pcm: np.ndarray) -> float:
    return len(pcm) / SAMPLE_RATE


# formats


FORMATS = [
    (".wav", dict(rate=44_100, channels=2)),
    (".wav", dict(rate=48_000)),
    (".wav", dict(rate=8_000)),
    (".flac", dict()),
    (".flac", dict(rate=44_100, channels=2)),
    (".mp3", dict(rate=44_100, channels=2, bitrate=128_000)),
    (".mp3", dict(rate=16_000, bitrate=48_000)),
    (".mp3", dict(rate=8_000)),
    (".m4a", dict(rate=44_100, channels=2, bitrate=96_000)),
    (".m4a", dict(rate=16_000)),
    (".ogg", dict(rate=48_000, channels=2)),
    (".opus", dict(rate=48_000, bitrate=32_000)),
    (".opus", dict(rate=16_000)),
    (".webm", dict(rate=48_000)),
    (".mp4", dict(rate=48_000, channels=2)),
]


@pytest.mark.parametrize("suffix, options", FORMATS, ids=str)
def test_every_format_gives_the_same_sound_at_the_same_time(tmp_path, suffix, options):
    media.encode(SPEECH, tmp_path / f"a{suffix}", **options)
    pcm = decoded(tmp_path / f"a{suffix}")
    late, match = lag(SPEECH, pcm)
    assert abs(seconds(pcm) - seconds(SPEECH)) <= 0.06
    assert abs(late) <= (LOSSLESS_LAG if suffix in (".wav", ".flac") else LOSSY_LAG) and match > 0.9


@pytest.mark.parametrize("told", [True, False], ids=["size told", "size unknown"])
@pytest.mark.parametrize("suffix, options", dict(FORMATS).items(), ids=str)
def test_a_file_that_is_still_arriving_gives_the_samples_of_the_whole_one(
    tmp_path, suffix, options, told
):
    media.encode(SPEECH, tmp_path / f"a{suffix}", **options)
    whole = decoded(tmp_path / f"a{suffix}")
    assert np.array_equal(
        decoded_while_it_grows((tmp_path / f"a{suffix}").read_bytes(), tmp_path, told), whole
    )


@pytest.mark.parametrize("suffix", [".mp3", ".wav", ".flac", ".opus", ".webm"])
def test_samples_come_before_the_file_is_complete(tmp_path, suffix):
    media.encode(np.tile(SPEECH, 6), tmp_path / f"a{suffix}", rate=48_000)
    content = (tmp_path / f"a{suffix}").read_bytes()
    growing, whole = tmp_path / "growing", tmp_path / "growing.whole"
    growing.write_bytes(content[: len(content) // 2])

    async def first_then_all():
        async with decode(growing, 3600, len(content), whole) as pcm:
            blocks = aiter(pcm)
            first = await anext(blocks)
            with growing.open("ab") as file:
                file.write(content[len(content) // 2 :])
            whole.touch()
            return [first, *[block async for block in blocks]]

    assert np.array_equal(
        np.concatenate(asyncio.run(first_then_all())), decoded(tmp_path / f"a{suffix}")
    )


@pytest.mark.parametrize("source, suffix", [(".m4a", ".flv"), (".m4a", ".ts"), (".mp3", ".mpg")])
def test_containers_that_do_not_list_their_tracks_at_the_start_are_read(tmp_path, source, suffix):
    media.encode(SPEECH, tmp_path / f"a{source}", rate=44_100)
    media.remux(tmp_path / f"a{source}", tmp_path / f"a{suffix}")
    pcm = decoded(tmp_path / f"a{suffix}")
    late, match = lag(SPEECH, pcm)
    assert abs(seconds(pcm) - seconds(SPEECH)) < 0.2 and abs(late) <= 2 * LOSSY_LAG and match > 0.9


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_lossless_16_khz_mono_is_decoded_bit_by_bit(tmp_path, suffix):
    media.encode(SPEECH, tmp_path / f"a{suffix}")
    assert np.array_equal(decoded(tmp_path / f"a{suffix}"), SPEECH)


@pytest.mark.parametrize(
    "container, subtype",
    [
        *(("wav", subtype) for subtype in ("PCM_U8", "PCM_24", "FLOAT", "ULAW")),
        *((container, "PCM_16") for container in ("aiff", "caf", "w64")),
        ("ogg", "VORBIS"),
    ],
)
def test_every_sample_format_is_decoded(tmp_path, container, subtype):
    path = tmp_path / f"a.{container}"
    soundfile.write(path, SPEECH.astype(np.float32) / 32768, SAMPLE_RATE, subtype=subtype)
    pcm = decoded(path)
    late, match = lag(SPEECH, pcm)
    assert abs(len(pcm) - len(SPEECH)) <= 16 and abs(late) <= LOSSLESS_LAG and match > 0.98


@pytest.mark.parametrize(
    "options", [dict(rate=44_100), dict(rate=48_000), dict(rate=44_100, channels=2)], ids=str
)
def test_a_second_mp3_behind_the_first_is_decoded_at_its_own_rate_and_layout(tmp_path, options):
    """Two files joined byte by byte.

    The header of the second one is decoded as a frame of silence between them.
    """
    for name, how in {"a.mp3": dict(rate=44_100), "b.mp3": options}.items():
        media.encode(SPEECH, tmp_path / name, bitrate=64_000, **how)
    (tmp_path / "c.mp3").write_bytes(
        (tmp_path / "a.mp3").read_bytes() + (tmp_path / "b.mp3").read_bytes()
    )
    pcm = decoded(tmp_path / "c.mp3")
    assert abs(seconds(pcm) - 2 * seconds(SPEECH)) <= 0.25
    for part in (pcm[: len(pcm) // 2], pcm[len(pcm) // 2 :]):
        late, match = lag(SPEECH, part)
        assert abs(late) <= 0.1 and match > 0.9


@pytest.mark.parametrize(
    "channels, speaking", [(2, 0), (2, 1), (6, 2)], ids=["left", "right", "centre of six"]
)
def test_speech_on_one_channel_only_is_kept_in_the_mix(tmp_path, channels, speaking):
    sound = np.zeros((len(SPEECH), channels), np.int16)
    sound[:, speaking] = SPEECH
    soundfile.write(tmp_path / "a.wav", sound, SAMPLE_RATE)
    pcm = decoded(tmp_path / "a.wav")
    assert np.abs(pcm).max() > np.abs(SPEECH).max() / 8 and lag(SPEECH, pcm)[1] > 0.99


def test_samples_come_as_int16_blocks_of_bounded_size(tmp_path):
    media.encode(np.tile(SPEECH, 4), tmp_path / "a.wav")
    blocks = blocks_of(tmp_path / "a.wav")
    assert len(blocks) >= 5
    assert all(
        b.dtype == np.int16 and b.ndim == 1 and 0 < b.nbytes <= BLOCK_BYTES + 1 for b in blocks
    )


def test_resampling_ten_minutes_holds_no_memory():
    quarter = av.AudioFrame("s16", "mono", 2000)
    quarter.sample_rate = 8000
    resampler = Resampler(SAMPLE_RATE)
    resampler.push(quarter)
    before, given = sys.getallocatedblocks(), 0
    for _ in range(2400):
        given += len(resampler.push(quarter)) // 2
    assert sys.getallocatedblocks() - before < 100 and given == 600 * SAMPLE_RATE


def test_the_name_of_the_file_does_not_matter(tmp_path):
    media.encode(SPEECH, tmp_path / "a.flac")
    (tmp_path / "a.flac").rename(tmp_path / "-i source.mp3")
    assert np.array_equal(decoded(tmp_path / "-i source.mp3"), SPEECH)


def test_a_tenth_of_a_second_is_decoded_whole(tmp_path):
    media.encode(SPEECH[:1600], tmp_path / "a.wav")
    began = time.monotonic()
    assert len(decoded(tmp_path / "a.wav")) == 1600
    print(
        f"\n0.1 s of sound decoded in {time.monotonic() - began:.2f} s, start of the child included"
    )


# when the sound starts


@pytest.mark.parametrize("base", [0, 40_000], ids=["clock at 0", "clock at 11 hours"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".webm", ".ts", ".mov"])
def test_times_count_from_the_start_of_the_pictures(tmp_path, suffix, base):
    media.encode_film(SPEECH, tmp_path / f"a{suffix}", late=2.0, base=base)
    pcm = decoded(tmp_path / f"a{suffix}")
    late, match = lag(np.concatenate([silence(2.0), SPEECH]), pcm)
    assert abs(late) <= LOSSLESS_LAG and match > 0.9 and abs(seconds(pcm) - 12) <= 0.1
    assert not pcm[: round(1.9 * SAMPLE_RATE)].any()


def test_an_edit_list_that_also_cuts_the_encoders_delay_neither_adds_nor_drops_samples(tmp_path):
    media.encode_film(SPEECH, tmp_path / "a.mp4", late=2.0)
    data = (tmp_path / "a.mp4").read_bytes()
    # Each edit is its milliseconds and its first sample, or -1.
    empty, sound = (
        data.rfind(b"elst") + 12,
        data.rfind(b"elst") + 24,
    )
    assert data[empty + 4 : empty + 8] == b"\xff" * 4
    patched = (
        data[:empty]
        + (2000).to_bytes(4, "big")
        + data[empty + 4 : sound + 4]
        + (1024).to_bytes(4, "big")
        + data[sound + 8 :]
    )
    (tmp_path / "a.mp4").write_bytes(patched)
    pcm = decoded(tmp_path / "a.mp4")
    assert (
        abs(lag(np.concatenate([silence(2.0), SPEECH]), pcm)[0]) <= LOSSLESS_LAG
        and abs(seconds(pcm) - 12) <= 0.06
    )


def test_a_track_that_starts_behind_what_ffmpeg_probes_keeps_its_start(tmp_path):
    media.encode_film(SPEECH, tmp_path / "a.mkv", late=30.0)
    assert abs(seconds(decoded(tmp_path / "a.mkv")) - 40) <= 0.1


def test_a_start_over_an_hour_late_is_ignored_as_a_broken_clock(tmp_path):
    media.encode_film(SPEECH, tmp_path / "a.mkv", late=5400.0, pictures=3)
    assert abs(seconds(decoded(tmp_path / "a.mkv")) - 10) <= 0.1


# what a file declares


MINUTE = np.resize(SPEECH, 60 * SAMPLE_RATE)
DECLARING = [".wav", ".flac", ".m4a", ".mp4", ".mov", ".mkv", ".webm"]


def made(folder: Path, suffix: str, pcm: np.ndarray = MINUTE) -> Path:
    """A file that declares its length; the index of an MP4 comes first."""
    path, index = (
        folder / f"a{suffix}",
        dict(movflags="+faststart") if suffix in (".m4a", ".mp4", ".mov") else {},
    )
    if suffix in (".wav", ".flac", ".m4a", ".webm"):
        media.encode(pcm, path, rate=16_000, **index)
    else:
        media.encode_film(pcm, path, **index)
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    short = path.with_name(f"cut{path.suffix}")
    short.write_bytes(data[: round(share * len(data))])
    return short


def declaring(path: Path, size: int) -> Path:
    """The WAV with another size in its header."""
    data = path.read_bytes()
    at = data.index(b"data") + 4
    path.write_bytes(
        data[:4]
        + size.to_bytes(4, "little")
        + data[8:at]
        + size.to_bytes(4, "little")
        + data[at + 4 :]
    )
    return path


@pytest.mark.parametrize("suffix", DECLARING)
def test_a_truncated_file_warns_of_declared_and_held_seconds(tmp_path, suffix):
    held, warning = sound_and_warning(cut(made(tmp_path, suffix), 0.5))
    assert 15 < held < 45
    assert warning == (
        f"The file declares 60.0 seconds of audio, but holds only {held:.1f}; the rest is missing."
    )


@pytest.mark.parametrize("suffix", [*DECLARING, ".ts"])
def test_a_complete_file_gives_no_warning(tmp_path, suffix):
    assert sound_and_warning(made(tmp_path, suffix))[1] is None


def test_a_wav_whose_header_declares_too_much_gives_a_warning(tmp_path):
    media.encode(SPEECH[: round(1.1 * SAMPLE_RATE)], tmp_path / "a.wav")
    sentence = "The file declares 50.0 seconds of audio, but holds only 1.1; the rest is missing."
    assert sound_and_warning(declaring(tmp_path / "a.wav", 50 * 2 * SAMPLE_RATE)) == (1.1, sentence)


@pytest.mark.parametrize(
    "size", [0, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFFF - 36, 0xFFFFFFFF], ids=hex
)
def test_a_wav_written_as_a_stream_neither_warns_nor_is_too_long(tmp_path, size):
    assert sound_and_warning(declaring(made(tmp_path, ".wav"), size), max_seconds=60) == (60, None)


def test_a_webm_written_live_declares_nothing(tmp_path):
    media.encode(MINUTE, tmp_path / "a.webm", rate=48_000, live="1")
    data = (tmp_path / "a.webm").read_bytes()
    assert b"\x44\x89" not in data[:300]  # Duration
    assert (
        sound_and_warning(tmp_path / "a.webm")[1] is None
        and sound_and_warning(cut(tmp_path / "a.webm", 0.5))[1] is None
    )


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4", ".mov"])
def test_pictures_longer_than_the_sound_give_no_warning(tmp_path, suffix):
    media.encode_film(SPEECH, tmp_path / f"a{suffix}", pictures=30)
    assert sound_and_warning(tmp_path / f"a{suffix}")[1] is None


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_late_start_counts_in_the_declared_and_in_the_held_seconds(tmp_path, suffix):
    media.encode_film(
        MINUTE,
        tmp_path / f"a{suffix}",
        late=3.0,
        **({"movflags": "+faststart"} if suffix == ".mp4" else {}),
    )
    assert sound_and_warning(tmp_path / f"a{suffix}")[1] is None
    assert "declares 63.0 seconds" in sound_and_warning(cut(tmp_path / f"a{suffix}", 0.5))[1]


def test_damage_that_became_silence_is_no_missing_audio(tmp_path):
    media.encode(MINUTE, tmp_path / "a.m4a", rate=44_100)
    warning = sound_and_warning(damaged(tmp_path / "a.m4a", 0.01))[1]
    assert warning and warning.startswith("The file is damaged: ")


def test_bytes_that_arrive_later_give_no_warning(tmp_path):
    content = made(tmp_path, ".wav").read_bytes()
    growing, whole = tmp_path / "growing", tmp_path / "growing.whole"
    growing.write_bytes(content[: len(content) // 2])

    async def warning():
        async with decode(growing, 3600, None, whole) as pcm:
            async for _ in pcm:
                if not whole.exists():
                    growing.write_bytes(content)
                    whole.touch()
            return pcm.duration, one_warning(pcm)

    assert asyncio.run(warning()) == (60, None)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".m4a", ".mp4", ".mov", ".webm"])
def test_a_file_that_declares_too_much_is_refused_before_it_is_decoded(tmp_path, suffix):
    path = made(tmp_path, suffix)
    assert (
        refusal(path, AudioTooLong, max_seconds=50)
        == "The audio is longer than the 50 seconds allowed; start and end can choose a part of it."
    )

    async def samples_before_the_refusal():
        async with decode(path, 50) as pcm:
            with pytest.raises(AudioTooLong):
                async for _ in pcm:
                    pass
            return pcm.samples

    assert asyncio.run(samples_before_the_refusal()) == 0


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".m4a", ".mp4", ".webm"])
def test_a_file_too_small_for_the_length_it_declares_is_decoded(tmp_path, suffix):
    held, warning = sound_and_warning(cut(made(tmp_path, suffix), 0.5), max_seconds=50)
    assert held < 45 and "declares 60.0 seconds" in warning


def test_a_declared_length_slightly_over_the_limit_is_not_refused(tmp_path):
    assert sound_and_warning(
        declaring(made(tmp_path, ".wav"), round(60.9 * 2 * SAMPLE_RATE)), max_seconds=60
    ) == (60, None)


def test_pictures_longer_than_the_limit_do_not_refuse_a_shorter_audio_track(tmp_path):
    # The bytes of these could be sound.
    media.encode_film(silence(20), tmp_path / "a.mkv", pictures=60)
    assert abs(sound_and_warning(tmp_path / "a.mkv", max_seconds=21)[0] - 20) < 0.1


# files without sound


def test_a_file_of_0_bytes_is_empty_audio(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert "0 bytes" in refusal(tmp_path / "a", EmptyAudio)


def test_a_header_without_a_sample_is_empty_audio(tmp_path):
    soundfile.write(tmp_path / "a.wav", SPEECH[:0], SAMPLE_RATE)
    assert refusal(tmp_path / "a.wav", EmptyAudio).endswith("holds no sound that can be decoded.")


NO_SOUND = {
    "web page": b"\xef\xbb\xbf\n <!DOCTYPE html><html><body>Sign in</body></html>",
    "error of a bucket": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "JSON": b'{"error": "not found"}',
    "text": b"Call me Ishmael. " * 1000,
    "random bytes": random.Random(1).randbytes(50_000),
    "zeros": bytes(50_000),
    "picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x40\0\0\0\x40\x08\2\0\0\0"
    + random.Random(2).randbytes(5000),
    "PDF": b"%PDF-1.7\n" + random.Random(3).randbytes(5000),
    "start of a WAV header": b"RIFF\x24\x7d\0\0WAVEfmt ",
}


@pytest.mark.parametrize("name", NO_SOUND)
def test_a_file_that_is_not_a_recording_is_refused(tmp_path, name):
    (tmp_path / "a").write_bytes(NO_SOUND[name])
    message = refusal(tmp_path / "a")
    other = {
        "web page": "is a web page, not audio; the URL must lead to the file itself.",
        "error of a bucket": "is a web page, not audio; the URL must lead to the file itself.",
        "JSON": "is JSON, not audio; "
        "the URL must lead to the file itself, not to an API's answer about it.",
    }
    wanted = other.get(name, "is not audio or video in a known format.")
    assert message == f"The file at audio_url {wanted}"


def test_a_video_without_an_audio_track_is_refused(tmp_path):
    media.encode_silent_film(tmp_path / "a.mp4", 2)
    assert refusal(tmp_path / "a.mp4") == "The file at audio_url has no audio track."


def test_an_unknown_codec_is_refused_as_an_unknown_format(tmp_path):
    soundfile.write(tmp_path / "a.wav", SPEECH, SAMPLE_RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[20:22] = b"\x34\x12"  # the codec's number
    (tmp_path / "a.wav").write_bytes(data)
    assert (
        refusal(tmp_path / "a.wav")
        == "The audio track of the file at audio_url is in a format that is not known."
    )


@pytest.fixture
def watched_server(tmp_path):
    """A file server on loopback; `asked` are the paths that were requested."""
    asked = []

    class Watched(_QuietFiles):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

    server = FileServer(tmp_path, Watched)
    server.asked = asked
    yield server
    server.close()


PLAYLISTS = {
    "a.m3u8": (
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n"
        "#EXT-X-ENDLIST\n"
    ),
    "b.m3u8": (
        '#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",URI="{target}"\n'
        '#EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO="a"\n{target}\n'
    ),
    "a.ffconcat": "ffconcat version 1.0\nfile '{target}'\n",
    "a.sdp": (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP "
        "0\na=control:{target}\n"
    ),
    "a.mpd": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
    'type="static"><Period><AdaptationSet><Representation id="1">'
    "<BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize(
    "name, scheme",
    [
        *((name, "address") for name in PLAYLISTS),
        ("a.m3u8", "path"),
        ("a.m3u8", "file URL"),
        ("a.ffconcat", "path"),
    ],
)
def test_a_playlist_is_refused_and_its_target_is_not_opened(tmp_path, watched_server, name, scheme):
    other = tmp_path / "other.wav"
    media.encode(SPEECH, other)
    target = {
        "address": watched_server.url("other.wav"),
        "path": other,
        "file URL": other.as_uri(),
    }[scheme]
    (tmp_path / name).write_text(
        PLAYLISTS[name].format(target=target, port=watched_server.url("").split(":")[2].strip("/"))
    )
    refusal(tmp_path / name)
    assert watched_server.asked == []


# damage


def damaged(path: Path, share: float, at: float = 0.5) -> Path:
    """A copy in which random bytes overwrite `share` of the file around `at`."""
    data = bytearray(path.read_bytes())
    size, middle = round(share * len(data)), round(at * len(data))
    data[middle - size // 2 : middle + size - size // 2] = random.Random(1).randbytes(size)
    copy = path.with_name(f"damaged{path.suffix}")
    copy.write_bytes(data)
    return copy


@pytest.mark.parametrize(
    "suffix, rate", [(".mp3", 44_100), (".m4a", 44_100), (".ogg", 48_000), (".flac", 16_000)]
)
def test_light_damage_becomes_silence_and_what_follows_keeps_its_time(tmp_path, suffix, rate):
    recording = np.tile(SPEECH, 8)
    media.encode(recording, tmp_path / f"a{suffix}", rate=rate)
    # Ogg loses whole pages.
    pcm = decoded(damaged(tmp_path / f"a{suffix}", 0.002 if suffix == ".ogg" else 0.01, at=0.506))
    assert abs(seconds(pcm) - seconds(recording)) <= 0.1
    half_a_minute = 30 * SAMPLE_RATE
    late, match = lag(recording[-half_a_minute:], pcm[len(recording) - half_a_minute :])
    assert abs(late) <= 0.1 and match > 0.9


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".ogg", ".webm", ".flac"])
def test_a_truncated_file_is_decoded_up_to_its_end(tmp_path, suffix):
    media.encode(SPEECH, tmp_path / f"a{suffix}", rate=16_000)
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) * 6 // 10 + 1])
    pcm = decoded(tmp_path / "cut")
    assert 4.5 < seconds(pcm) < 7 and lag(SPEECH[: len(pcm)], pcm)[1] > 0.9


@pytest.mark.parametrize("suffix", [".mp4", ".m4a"])
def test_a_truncated_mp4_has_lost_its_index_and_is_refused(tmp_path, suffix):
    media.encode(SPEECH, tmp_path / f"a{suffix}")
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    refusal(tmp_path / "cut")


def test_tags_around_an_mp3_are_no_damage(tmp_path):
    media.encode(SPEECH, tmp_path / "a.mp3", rate=44_100)
    picture = random.Random(1).randbytes(60_000)
    before = b"ID3\x03\0\0" + bytes([0, *(len(picture) >> s & 127 for s in (14, 7, 0))]) + picture
    after = (
        b"APETAGEX\xd0\x07\0\0" + len(picture).to_bytes(4, "little") + picture + b"TAG" + bytes(125)
    )
    (tmp_path / "b.mp3").write_bytes(before + (tmp_path / "a.mp3").read_bytes() + after)
    pcm = decoded(tmp_path / "b.mp3")
    assert abs(seconds(pcm) - seconds(SPEECH)) < 0.2 and abs(lag(SPEECH, pcm)[0]) <= LOSSY_LAG


def without_packets(path: Path, start: float = 3, end: float = 7) -> Path:
    """A copy without the packets between `start` and `end` seconds."""
    copy = path.with_name(f"sparse{path.suffix}")
    media.remux(path, copy, container="matroska", without=(start, end))
    return copy


def test_a_gap_without_packets_becomes_silence(tmp_path):
    """Recorders of calls write no packets while nobody speaks."""
    media.encode(SPEECH, tmp_path / "whole.webm", rate=48_000)
    pcm = decoded(without_packets(tmp_path / "whole.webm"))
    assert abs(seconds(pcm) - seconds(SPEECH)) <= 0.06
    assert not pcm[round(3.1 * SAMPLE_RATE) : round(6.9 * SAMPLE_RATE)].any()
    assert abs(lag(SPEECH[-2 * SAMPLE_RATE :], pcm[-2 * SAMPLE_RATE :])[0]) <= LOSSY_LAG


def test_a_gap_without_packets_becomes_silence_on_eight_channels_too(tmp_path):
    """The samples are in eight planes; PyAV lists more planes than there are."""
    with av.open(str(tmp_path / "whole.mka"), "w", format="matroska") as container:
        track = container.add_stream("aac", rate=48_000, layout="7.1")
        frame = av.AudioFrame.from_ndarray(SPEECH.repeat(8)[None], format="s16", layout="7.1")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        container.mux([*track.encode(frame), *track.encode(None)])
    pcm = decoded(without_packets(tmp_path / "whole.mka"))
    assert abs(seconds(pcm) - seconds(SPEECH)) <= 0.1
    assert not pcm[round(3.1 * SAMPLE_RATE) : round(6.9 * SAMPLE_RATE)].any()
    assert lag(SPEECH[-2 * SAMPLE_RATE :], pcm[-2 * SAMPLE_RATE :])[1] > 0.9


# limits and the end of the child


def test_a_recording_longer_than_allowed_is_refused(tmp_path):
    media.encode(SPEECH, tmp_path / "a.wav")
    assert "9.5 seconds allowed" in refusal(tmp_path / "a.wav", AudioTooLong, max_seconds=9.5)
    assert sum(map(len, blocks_of(tmp_path / "a.wav", max_seconds=10))) == len(SPEECH)


def test_leaving_the_context_early_ends_the_decoder(tmp_path):
    media.encode(silence(300), tmp_path / "a.wav")

    async def leave():
        async with decode(tmp_path / "a.wav", 3600) as pcm:
            async for _ in pcm:
                break
            child = psutil.Process(pcm._child.pid)
            assert child.is_running()
        assert not child.is_running()

    asyncio.run(leave())


def test_cancelling_a_job_ends_its_decoder(tmp_path):
    media.encode(silence(300), tmp_path / "a.wav")

    async def job():
        async with decode(tmp_path / "a.wav", 3600) as pcm:
            async for _ in pcm:
                await asyncio.sleep(60)

    async def cancel():
        task = asyncio.create_task(job())
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 5)
        assert task.cancelled()

    asyncio.run(cancel())


@pytest.mark.parametrize(
    "signal_, error, sentence",
    [
        (signal.SIGSEGV, DecodeError, "decoder failed on this file"),
        (signal.SIGKILL, WorkerFailed, "memory ran out"),
    ],
    ids=["crash", "killed by the kernel"],
)
def test_a_crash_of_the_decoder_fails_the_file_and_its_kill_the_worker(
    tmp_path, signal_, error, sentence
):
    media.encode(silence(300), tmp_path / "a.wav")

    async def end():
        async with decode(tmp_path / "a.wav", 3600) as pcm:
            async for _ in pcm:
                if pcm._child.returncode is None:
                    os.kill(pcm._child.pid, signal_)

    with pytest.raises(error, match=sentence):
        asyncio.run(end())


def test_a_stuck_decoder_is_an_error(tmp_path, monkeypatch):
    media.encode(SPEECH, tmp_path / "a.wav")
    monkeypatch.setattr(pcm_stream, "STALL_SECONDS", 0.5)

    async def stop():
        async with decode(tmp_path / "a.wav", 3600) as pcm:
            psutil.Process(pcm._child.pid).suspend()
            async for _ in pcm:
                pass

    with pytest.raises(DecodeError, match="stuck"):
        asyncio.run(stop())


def test_the_end_of_the_download_gives_a_stuck_decoder_no_more_time(tmp_path, monkeypatch):
    media.encode(SPEECH, tmp_path / "a.wav")
    monkeypatch.setattr(pcm_stream, "STALL_SECONDS", 4)

    async def stop():
        marker = tmp_path / "complete"
        async with decode(tmp_path / "a.wav", 3600, complete_marker=marker) as pcm:
            psutil.Process(pcm._child.pid).suspend()
            asyncio.get_running_loop().call_later(0.2, marker.touch)
            began = time.monotonic()
            with pytest.raises(DecodeError, match="stuck"):
                async for _ in pcm:
                    pass
            return time.monotonic() - began

    assert asyncio.run(stop()) < 7


def test_a_decoder_that_ends_its_output_and_goes_on_is_stuck_fault_injected(tmp_path, monkeypatch):
    media.encode(SPEECH, tmp_path / "a.wav")
    decoder = tmp_path / "decoder.py"
    decoder.write_text("import os, time\nos.close(1)\ntime.sleep(20)\n")
    monkeypatch.setattr(pcm_stream, "DECODER", decoder)
    monkeypatch.setattr(pcm_stream, "STALL_SECONDS", 0.5)
    with pytest.raises(DecodeError, match="stuck"):
        decoded(tmp_path / "a.wav")


def box(kind: bytes, *parts: bytes, more: int = 0) -> bytes:
    """A box of an MP4 file, whose last `more` bytes are not among the parts."""
    body = kind + b"".join(parts)
    return struct.pack(">I", 4 + len(body) + more) + body


def with_cover(path: Path, size: int) -> None:
    """Put a cover picture of `size` bytes into an M4A file, whose index is at its end.

    The picture is a hole in the file and takes no disk.
    """
    content = path.read_bytes()
    index = content.index(b"moov") - 4
    tags = content.index(b"udta") - 4
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    picture = box(b"covr", box(b"data", struct.pack(">II", 13, 0), more=size), more=size)
    listed = box(b"ilst", picture, more=size)
    described = box(b"udta", box(b"meta", bytes(4), handler, listed, more=size), more=size)
    movie = box(b"moov", content[index + 8 : tags], described, more=size)
    path.write_bytes(content[:index] + movie)
    os.truncate(path, path.stat().st_size + size)


def test_a_cover_picture_of_500_mb_does_not_refuse_the_recording(tmp_path):
    path = tmp_path / "a.m4a"
    media.encode(SPEECH, path)
    with_cover(path, 500 * 10**6)
    assert abs(seconds(decoded(path)) - seconds(SPEECH)) <= 0.1


@pytest.mark.parametrize(
    "report",
    [
        "",
        "no JSON",
        "[]",
        "{}",
        '{"kind": "empty"}',
        '{"kind": [], "message": {}}',
        '{"kind": null, "message": null}',
    ],
)
def test_a_decoder_whose_report_is_malformed_is_a_decode_error_fault_injected(
    tmp_path, monkeypatch, report
):
    media.encode(SPEECH, tmp_path / "a.wav")
    decoder = tmp_path / "decoder.py"
    decoder.write_text(f"import sys\nprint({report!r}, file=sys.stderr)\nsys.exit(1)\n")
    monkeypatch.setattr(pcm_stream, "DECODER", decoder)
    with pytest.raises(DecodeError):
        decoded(tmp_path / "a.wav")


def test_many_files_at_once_do_not_mix(tmp_path):
    async def collect(path):
        async with decode(path, 3600) as pcm:
            return np.concatenate([block async for block in pcm])

    async def together():
        return await asyncio.gather(*(collect(path) for path in paths))

    recordings = [np.full(20 * SAMPLE_RATE, i, np.int16) for i in range(4)]
    paths = [tmp_path / f"{i}.wav" for i in range(4)]
    for recording, path in zip(recordings, paths):
        media.encode(recording, path)
    assert all(np.array_equal(a, b) for a, b in zip(asyncio.run(together()), recordings))


# chunks


def test_a_chunk_knows_its_place_in_the_recording():
    chunk = AudioChunk(index=3, offset=8000, pcm=SPEECH[:4000], speech=((0, 3200),))
    assert (chunk.start, chunk.end, chunk.duration) == (0.5, 0.75, 0.25)


def test_a_waveform_is_float_between_minus_one_and_one_and_padded_with_zeros():
    pcm = np.array([-32768, 0, 32767], np.int16)
    padded = waveform(AudioChunk(0, 0, pcm, ()))
    assert padded.dtype == np.float32 and len(padded) == 8000
    assert padded[:3].tolist() == [-1, 0, 32767 / 32768] and not padded[3:].any()
    assert len(waveform(AudioChunk(0, 0, silence(0.6), ()))) == 9600
