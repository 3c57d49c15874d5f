"""Tracks, channels and levels: whatever a file holds, the words are heard at their times.

Each row of the table is a file, what is asked of it, and what the output warns of. The rows are
decoded once. Speech has its time where it correlates best with what was recorded.
"""

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition
from channels import FILM_LAYOUTS, Phase
from conftest import FileServer, succeeded
from contract.errors import DecodeError, InvalidRequest, WorkerError
from contract.request import Request
from contract.settings import Settings
from hypothesis import given, settings
from hypothesis import strategies as st
from levels import MAX_PEAK, Levels
from material import ENGLISH, noise, silence
from mixed_tracks import MAX_LAG_SECONDS
from recording.chunk import SAMPLE_RATE
from recording.pcm_stream import Found, decode
from recording.vad import CutRules, split_at_pauses
from recording.wordless import why_wordless
from resampler import Resampler
from test_audio import lag
from test_end_to_end import run, words_of
from utterance import plain

SAID, ALSO = ENGLISH[6], ENGLISH[18]  # short ones
A = np.concatenate([silence(1), SAID.pcm, silence(2.5)])
B = np.concatenate([silence(len(A) / SAMPLE_RATE - 2), ALSO.pcm])
B = np.pad(B, (0, len(A) - len(B)))
LENGTH = len(A)
QUIET = np.zeros(LENGTH, np.int16)
RULES = CutRules(60, 180, 2)
# vLLM turns subnormal numbers off for the process.
floats = partial(st.floats, allow_subnormal=False)
MAX_LATE = 0.4  # seconds
MIN_MATCH = 0.85  # correlation
MARGIN = SAMPLE_RATE // 4  # samples around speech in which it is looked for


# -- making files


def track_file(
    path: Path,
    tracks: list[np.ndarray],
    codec: str = "aac",
    *,
    default: int | None = None,
    special: int | None = None,
    late: tuple[float, ...] = (),
    rates: tuple[int, ...] = (),
) -> None:
    """Each of `tracks` is (samples,) int16; `late`: seconds until it begins."""
    late, rates = late or (0,) * len(tracks), rates or (48_000,) * len(tracks)
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=rate, layout="mono") for rate in rates]
        for number, stream in enumerate(streams):
            if default is not None:
                stream.disposition = Disposition.default if number == default else Disposition(0)
            if number == special:
                stream.disposition = stream.disposition | Disposition.visual_impaired
        packets = []
        for stream, pcm, seconds in zip(streams, tracks, late):
            frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, round(seconds * SAMPLE_RATE)
            packets += [*stream.encode(frame), *stream.encode(None)]
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))


def with_unknown_codec(path: Path, tracks: list[np.ndarray]) -> None:
    """A MOV whose first track is in Apple's spatial codec, which FFmpeg does not know."""
    track_file(path, tracks)
    data = path.read_bytes()
    begin = data.index(b"stsd")
    end = data.index(b"stsd", begin + 4)
    entry = data[begin:end].replace(b"mp4a", b"apac").replace(b"esds", b"dapa")
    path.write_bytes(data[:begin] + entry + data[end:])


def channel_file(path: Path, channels: np.ndarray, codec: str, layout: str, rate: int) -> None:
    """`channels`: (samples, channels) int16."""
    options = {"mapping_family": "255"} if layout.endswith("channels") else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, options=options)
        frame = av.AudioFrame.from_ndarray(channels.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])


def ambisonic(path: Path, channels: np.ndarray) -> None:
    """Ambisonic Opus: channels without a layout, and then the number of another mapping family."""
    channel_file(path, channels, "libopus", f"{channels.shape[1]} channels", 48_000)
    data = bytearray(path.read_bytes())
    data[data.index(b"OpusHead") + 18] = 2
    path.write_bytes(data)


def wav(path: Path, channels: np.ndarray, mask: int | None = None, subtype: str = "PCM_16") -> None:
    """`channels`: (samples, channels); `mask`: which speakers they are for."""
    soundfile.write(path, channels, SAMPLE_RATE, subtype, format="WAV")
    if mask is not None:
        data, count = channels.astype("<i2").tobytes(), channels.shape[1]
        rates = (SAMPLE_RATE, 2 * count * SAMPLE_RATE, 2 * count, 16)
        head = struct.pack("<HHIIHHHHI", 0xFFFE, count, *rates, 22, 16, mask)
        head += bytes.fromhex("0100000000001000800000aa00389b71")
        body = b"WAVEfmt " + struct.pack("<I", len(head)) + head
        body += b"data" + struct.pack("<I", len(data)) + data
        path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def only(channel: int, of: int, pcm: np.ndarray = A) -> np.ndarray:
    """(samples, of): `pcm` on one channel, silence on the others."""
    channels = np.zeros((len(pcm), of), pcm.dtype)
    channels[:, channel] = pcm
    return channels


def at(decibels: float, pcm: np.ndarray = A) -> np.ndarray:
    """(samples, 1) float with this peak level."""
    return (pcm / np.abs(pcm.astype(float)).max() * 10 ** (decibels / 20))[:, None]


def opposite(gain: float = 1.0, pcm: np.ndarray = A) -> np.ndarray:
    """(samples, 2): the second channel in opposite phase."""
    return np.stack([pcm, np.rint(-gain * pcm.clip(-32767)).astype(np.int16)], 1)


# -- the table


@dataclass(frozen=True)
class Row:
    make: Callable[[Path], None]
    suffix: str
    asked: dict = field(default_factory=dict)
    warns: tuple[str, ...] = ()  # the start of each warning
    hears: tuple[np.ndarray, ...] = (A,)
    late: float = 0.0  # how much later the speech is than in A and B


def tracks(suffix: str, pcm: list, *, codec: str = "aac", how: dict | None = None, **row) -> Row:
    return Row(partial(track_file, tracks=pcm, codec=codec, **(how or {})), suffix, **row)


def mics(suffix: str, channel: int, of: int, subtype: str = "PCM_16", **row) -> Row:
    data = only(channel, of) / 32768 if subtype == "FLOAT" else only(channel, of)
    write = partial(soundfile.write, data=data, samplerate=SAMPLE_RATE, subtype=subtype)
    return Row(write, suffix, **row)


def encoded(suffix: str, codec: str, layout: str, channels: np.ndarray, rate=48_000, **row) -> Row:
    make = partial(channel_file, channels=channels, codec=codec, layout=layout, rate=rate)
    return Row(make, suffix, **row)


def waves(channels: np.ndarray, mask: int | None = None, subtype: str = "PCM_16", **row) -> Row:
    return Row(partial(wav, channels=channels, mask=mask, subtype=subtype), ".wav", **row)


def took(number: int, total: int = 2) -> str:
    return f"The file has {total} audio tracks, and track {number} was transcribed;"


MIX = dict(track="mix")
CANCELS = "The channels are in opposite phase and cancel each other in the mix; instead of it, "
IS_QUIET = "The recording is very quiet: its peak level is "
TABLE = {
    # tracks
    "one track": tracks(".mp4", [A]),
    "first of two": tracks(".mp4", [A, B], warns=(took(0),)),
    "first of two in Matroska": tracks(".mkv", [A, B], codec="flac", warns=(took(0),)),
    "first of two in MPEG-TS": tracks(".ts", [A, B], warns=(took(0),)),
    "first of two in WebM": tracks(".webm", [A, B], codec="libopus", warns=(took(0),)),
    "the one marked as default": tracks(".mkv", [B, A], how={"default": 1}, warns=(took(1),)),
    "the enabled one of an MP4": tracks(".mp4", [B, A, B], how={"default": 1}, warns=(took(1, 3),)),
    "none marked": tracks(".mkv", [A, B], how={"default": 9}, warns=(took(0),)),
    "no description for the blind": tracks(
        ".mkv", [B, A], how={"default": 0, "special": 0}, warns=(took(1),)
    ),
    "second of two": tracks(".mp4", [B, A], asked={"track": 1}),
    "mix of two": tracks(".mp4", [A, B], asked=MIX, hears=(A, B)),
    "mix of two in Matroska": tracks(".mkv", [B, A], codec="flac", asked=MIX, hears=(A, B)),
    "mix of two in MPEG-TS": tracks(".ts", [A, B], asked=MIX, hears=(A, B)),
    "mix of three, one silent": tracks(
        ".webm", [QUIET, A, B], codec="libopus", asked=MIX, hears=(A, B)
    ),
    "mix of two that start late": tracks(
        ".mkv", [A, B], how={"late": (2.0, 2.0)}, asked=MIX, hears=(A, B)
    ),
    "mix of one that starts late": tracks(
        ".mkv", [QUIET, A], how={"late": (0.0, 2.0)}, asked=MIX, late=2.0
    ),
    "mix of two rates": tracks(
        ".mp4", [A, B], how={"rates": (16_000, 44_100)}, asked=MIX, hears=(A, B)
    ),
    "mix of a short and a long one": tracks(
        ".mkv", [QUIET[: SAMPLE_RATE // 2], A], codec="flac", asked=MIX
    ),
    "an unknown codec first": Row(
        partial(with_unknown_codec, tracks=[B, A]), ".mov", warns=(took(1),)
    ),
    "mix beside an unknown codec": Row(
        partial(with_unknown_codec, tracks=[B, A]), ".mov", MIX, ("These tracks are in a format",)
    ),
    # channels
    **{
        f"only channel {channel} of {of}": mics(".wav", channel, of)
        for channel, of in ((2, 3), (3, 6), (3, 7), (3, 8), (9, 10), (12, 13))
    },
    "only the last of 24": mics(".wav", 23, 24, subtype="PCM_24"),
    # A 64th of a voice is very quiet.
    "only the last of 64": mics(".caf", 63, 64, subtype="FLOAT", warns=(IS_QUIET,)),
    "only the last of 65": mics(".caf", 64, 65, warns=(IS_QUIET,)),
    "only the last of 128": mics(".w64", 127, 128, subtype="PCM_24", warns=(IS_QUIET,)),
    "one of 128 that was asked for": mics(".w64", 99, 128, asked={"channel": 99}),
    "only the ninth of 9": mics(".aiff", 8, 9, subtype="PCM_16"),
    "only the eleventh of 11": mics(".au", 10, 11, subtype="FLOAT"),
    "only the fourth of a FLAC of 6": mics(".flac", 3, 6),
    "two back speakers": waves(only(0, 2), mask=0x30),
    "a single speaker of low frequencies": waves(only(0, 1), mask=0x8),
    "the centre of a film in AC3": encoded(".ac3", "ac3", "5.1(side)", only(2, 6)),
    "a side of a film in AAC": encoded(".m4a", "aac", "7.1", only(7, 8)),
    "the centre of a film in Opus": encoded(".opus", "libopus", "5.1", only(2, 6)),
    "Opus without a layout": encoded(".mka", "libopus", "3 channels", only(2, 3)),
    "ambisonic Opus": Row(partial(ambisonic, channels=only(3, 4)), ".mka"),
    "ambisonic Opus, from behind": Row(
        partial(ambisonic, channels=np.stack([A, 0 * A, 0 * A, -A.clip(-32767)], 1)),
        ".mka",
        warns=(CANCELS,),
    ),
    # opposite phase
    "opposite phase": waves(opposite(), warns=(CANCELS + "channel 0",)),
    "opposite phase in 8 bits": waves(opposite(), subtype="PCM_U8", warns=(CANCELS,)),
    "opposite phase, the second louder": waves(
        np.stack([A // 5 * 4, -A.clip(-32767)], 1), warns=(CANCELS,), hears=(A,)
    ),
    "opposite phase in MP3": encoded(".mp3", "libmp3lame", "stereo", opposite(), warns=(CANCELS,)),
    "opposite phase in 4 channels": waves(
        np.hstack([opposite(), 0 * opposite()]), warns=(CANCELS,)
    ),
    "opposite phase of one of two": waves(
        opposite() + np.stack([B // 2, B // 2], 1), warns=(CANCELS,), hears=(A, B)
    ),
    "opposite phase, asked by channel": waves(opposite(), asked={"channel": 1}, hears=(-A,)),
    # levels
    **{
        f"float at {level} dBFS": waves(at(level), subtype="FLOAT", warns=(f"{IS_QUIET}{level}.",))
        for level in (-50, -80, -95)
    },
    "24 bits at -60 dBFS": waves(at(-60), subtype="PCM_24", warns=(IS_QUIET,)),
    "opposite phase at -60 dBFS": waves(
        np.hstack([at(-60), -at(-60)]), subtype="FLOAT", warns=(IS_QUIET, CANCELS)
    ),
    "a constant offset over a voice at -60 dBFS": waves(
        at(-60) + 0.05, subtype="FLOAT", warns=(IS_QUIET,)
    ),
    "mix of two tracks at -60 dBFS": tracks(
        ".mkv",
        [np.rint(at(-60) * 32768).astype(np.int16)[:, 0], QUIET],
        codec="flac",
        asked=MIX,
        warns=(IS_QUIET,),
    ),
    "a normal level": waves(at(-35), subtype="FLOAT"),
}


@dataclass(frozen=True)
class Heard:
    pcm: np.ndarray
    warnings: tuple[str, ...]
    found: Found | None
    has_speech: bool


async def heard(path: Path, **asked) -> Heard | WorkerError:
    blocks: list[np.ndarray] = []

    async def kept(pcm):
        async for block in pcm:
            blocks.append(block)
            yield block

    try:
        async with decode(path, 3600, **asked) as pcm:
            chunks = [chunk async for chunk in split_at_pauses(kept(pcm), RULES)]
        return Heard(np.concatenate(blocks), pcm.warnings, pcm.found, bool(chunks))
    except WorkerError as error:
        return error


def heard_now(path: Path, **asked) -> Heard | WorkerError:
    return asyncio.run(asyncio.wait_for(heard(path, **asked), 60))


def lag_of(speech: np.ndarray, pcm: np.ndarray, late: float) -> tuple[float, float]:
    """`lag` where only this speech is heard, about `late` seconds later."""
    spoken = np.flatnonzero(speech)
    first, last = max(0, spoken[0] - MARGIN), spoken[-1] + MARGIN
    moved = round(late * SAMPLE_RATE)
    part = pcm[first + moved : last + moved].astype(float)
    seconds, match = lag(speech[first:last], part - part.mean())
    return seconds + late, match


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> dict[str, Heard | WorkerError]:
    """What is heard of every row."""
    folder = tmp_path_factory.mktemp("rows")
    found = {}
    for number, (name, row) in enumerate(TABLE.items()):
        path = folder / f"{number}{row.suffix}"
        row.make(path)
        found[name] = heard_now(path, **row.asked)
    return found


@pytest.mark.parametrize("name", TABLE)
def test_speech_is_heard_at_its_time_with_the_warning(table, name):
    row, result = TABLE[name], table[name]
    assert isinstance(result, Heard), result
    assert result.has_speech
    for speech in row.hears:
        late, match = lag_of(speech, result.pcm, row.late)
        assert abs(late - row.late) <= MAX_LATE and match > MIN_MATCH
    assert len(result.warnings) == len(row.warns), result.warnings
    for said, wanted in zip(result.warnings, row.warns):
        assert said.startswith(wanted)


# -- tracks


def test_a_missing_track_is_refused_with_those_that_exist(tmp_path):
    for count, told in ((1, "only 1 audio track, number 0."), (2, "only 2 audio tracks, 0 to 1.")):
        track_file(tmp_path / "a.mp4", [A[:SAMPLE_RATE]] * count)
        refused = heard_now(tmp_path / "a.mp4", track=count)
        assert type(refused) is InvalidRequest
        assert str(refused) == f"track is {count}; the file at audio_url has {told}"


def test_a_track_in_an_unknown_format_that_was_asked_for_is_refused_with_those_that_are_known(
    tmp_path,
):
    with_unknown_codec(tmp_path / "a.mov", [A, B])
    refused = heard_now(tmp_path / "a.mov", track=0)
    assert type(refused) is DecodeError and str(refused) == (
        "Track 0 of the file at audio_url is in a format that is not known; "
        "these can be decoded: 1."
    )


def test_a_default_track_without_sound_does_not_hide_the_others(tmp_path):
    track_file(tmp_path / "a.mkv", [B, A], "flac")
    data = tmp_path.joinpath("a.mkv").read_bytes()
    # The codec of the first track, by its name of the same length.
    (tmp_path / "a.mkv").write_bytes(data.replace(b"A_FLAC", b"A_AAC\0", 1))
    refused = heard_now(tmp_path / "a.mkv")
    assert isinstance(refused, DecodeError) and took(0) in str(refused)


def test_a_track_that_says_nothing_for_longer_than_the_others_are_held_keeps_its_times(tmp_path):
    """The mix goes on without it, and later its audio has its time again."""
    pause = MAX_LAG_SECONDS + 20
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("flac", rate=SAMPLE_RATE, layout="mono") for _ in range(2)]
        packets = []
        for second in range(pause + 6):
            packets += streams[0].encode(frame_at(second, silence(1)))
        for second in (0, pause):
            packets += streams[1].encode(frame_at(second, A))
        for stream in streams:
            packets += stream.encode(None)
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    result = heard_now(tmp_path / "a.mkv", track="mix")
    assert isinstance(result, Heard) and len(result.pcm) == (pause + 6) * SAMPLE_RATE
    for second in (0, pause):
        late, match = lag_of(A, result.pcm, second)
        assert abs(late - second) <= 0.05 and match > MIN_MATCH


def test_what_comes_too_late_for_the_mix_is_told(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("flac", rate=SAMPLE_RATE, layout="mono") for _ in range(2)]
        for second in range(MAX_LAG_SECONDS + 20):
            container.mux(streams[0].encode(frame_at(second, silence(1))))
        for stream, pcm in zip(streams[::-1], (A, silence(1))):
            container.mux(stream.encode(frame_at(0 if stream is streams[1] else 80, pcm)))
            container.mux(stream.encode(None))
    result = heard_now(tmp_path / "a.mkv", track="mix")
    assert isinstance(result, Heard)
    assert [warning for warning in result.warnings if "seconds are missing" in warning]


def frame_at(second: int, pcm: np.ndarray) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = SAMPLE_RATE, second * SAMPLE_RATE
    return frame


# -- channels


def weights(layout: str, **how) -> list[float]:
    """The part of each channel in the mix."""
    parts = []
    count = av.AudioLayout(layout).nb_channels
    for channel in range(count):
        samples = np.zeros((SAMPLE_RATE, count), np.float32)
        samples[:, channel] = 0.5
        frame = av.AudioFrame("flt", layout, SAMPLE_RATE)
        frame.sample_rate = SAMPLE_RATE
        frame.planes[0].update(samples.tobytes())
        resampler = Resampler(SAMPLE_RATE, **how)
        mono = np.frombuffer(resampler.push(frame) + resampler.finish(), np.int16)
        parts.append(round(mono[SAMPLE_RATE // 2] / 32768 / 0.5, 3))
    return parts


def test_film_layouts_keep_ffmpegs_weights_which_leave_out_low_frequencies_only():
    for layout in FILM_LAYOUTS:
        names = [channel.name for channel in av.AudioLayout(layout).channels]
        silent = [name for name, part in zip(names, weights(layout)) if part == 0]
        assert set(silent) <= {"LFE"}, layout
    assert weights("5.1") == [0.207, 0.207, 0.293, 0, 0.146, 0.146]


@pytest.mark.parametrize(
    "layout", ["3 channels", "9 channels", "binaural", "cube", "5.1.4", "22.2", "ambisonic 2"]
)
def test_other_layouts_are_mixed_in_equal_parts(layout):
    count = av.AudioLayout(layout).nb_channels
    assert weights(layout) == pytest.approx([1 / count] * count, abs=0.001)
    assert weights("5.1", no_films=True) == pytest.approx([1 / 6] * 6, abs=0.001)


@given(floats(0, 1), floats(0.1, 1), floats(0.0, 0.8), st.sampled_from(["s16", "fltp", "u8"]))
@settings(max_examples=40)
def test_channels_that_do_not_cancel_are_never_replaced_by_one(side, level, opposed, form):
    """`side`: the share of the sound that is on one side; `opposed`: of it in opposite phase."""
    middle, left, right = np.random.default_rng(round(1e6 * side)).normal(0, 0.1, (3, 12_000))
    channels = np.stack([middle + side * left, middle + side * (right - opposed * left)], 1) * level
    assert Phase(block_of(channels, form)).channel_for(block_of(channels, form)) is None


@given(floats(1e-3, 1), floats(0.8, 1.25), st.sampled_from(["s16", "s32p", "flt", "fltp"]))
@settings(max_examples=40)
def test_opposite_phase_is_found_at_any_level_and_gives_the_first_channel(level, gain, form):
    voice = np.random.default_rng(1).laplace(0, 0.1, 12_000).clip(-0.8, 0.8) * level
    block = block_of(np.stack([voice, -gain * voice], 1), form)
    assert Phase(block).channel_for(block) == 0


def block_of(channels: np.ndarray, form: str) -> av.AudioFrame:
    """(samples, channels) in [-1, 1] as a frame of this sample format."""
    frame = av.AudioFrame.from_ndarray(
        channels.astype(np.float32).reshape(1, -1), format="flt", layout="stereo"
    )
    frame.sample_rate = 48_000
    [converted] = av.AudioResampler(format=form).resample(frame)
    return converted


ORDINARY = ((".wav", "pcm_s16le", 44_100), (".mp3", "libmp3lame", 44_100), (".m4a", "aac", 48_000))


def test_ordinary_recordings_keep_ffmpegs_samples_bit_by_bit(tmp_path):
    """Also where they begin quietly."""
    begin = noise(1, level=20)
    mono = np.concatenate([begin, SAID.pcm])
    stereo = np.stack([mono, np.roll(mono, 7) // 2 + 30], 1)
    for suffix, codec, rate in ORDINARY:
        for layout, channels in (("mono", mono), ("stereo", stereo)):
            path = tmp_path / f"a{suffix}"
            channel_file(path, channels, codec, layout, rate)
            result = heard_now(path)
            assert isinstance(result, Heard) and result.warnings == ()
            assert np.array_equal(result.pcm, mixed_by_ffmpeg(path)), (suffix, layout)


def mixed_by_ffmpeg(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    first = frames[0]
    graph = av.filter.Graph()
    source = graph.add_abuffer(
        format=first.format.name,
        sample_rate=first.sample_rate,
        layout=first.layout.name,
        time_base=1 / Fraction(first.sample_rate),
    )
    graph.link_nodes(
        source,
        graph.add("aresample", "osf=fltp:ochl=mono:rematrix_maxval=1"),
        graph.add("aformat", f"sample_fmts=s16:sample_rates={SAMPLE_RATE}"),
        graph.add("abuffersink"),
    ).configure()
    for frame in (*frames, None):
        if frame is not None:
            frame.pts = None
        graph.push(frame)
    blocks = []
    with suppress(av.error.BlockingIOError, av.error.EOFError):
        while True:
            blocks.append(graph.pull().to_ndarray()[0])
    return np.concatenate(blocks)


# -- levels


def levelled(parts: list[np.ndarray], held_seconds: float) -> tuple[np.ndarray, float]:
    """(int16 samples, highest gain) of float parts that follow one another."""
    levels = Levels(SAMPLE_RATE, None, round(held_seconds * SAMPLE_RATE))
    out = b""
    for part in parts:
        frame = av.AudioFrame.from_ndarray(
            part.astype(np.float32)[None], format="flt", layout="mono"
        )
        frame.sample_rate = SAMPLE_RATE
        out += levels.push(frame)
    return np.frombuffer(out + levels.finish(), np.int16), levels.gain


def tone(decibels: float, seconds: float = 0.3) -> np.ndarray:
    phase = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE * 2 * np.pi * 440
    return 10 ** (decibels / 20) * np.sin(phase)


@given(st.lists(floats(-120, 0), min_size=1, max_size=8), floats(0, 3))
@settings(max_examples=30)
def test_samples_are_those_of_the_file_times_a_gain_that_falls_and_never_clips(parts, held_seconds):
    sounds = [tone(decibels) for decibels in parts]
    pcm, gain = levelled(sounds, held_seconds)
    assert len(pcm) == sum(map(len, sounds))
    # The peaks of the parts, in the file and in the samples.
    peaks = [10 ** (decibels / 20) for decibels in parts]
    heard_peaks = np.abs(pcm.astype(float)).reshape(len(parts), -1).max(1) / 32768
    gains = [after / before for before, after in zip(peaks, heard_peaks) if after > 0.01]
    assert all(later <= 1.02 * earlier for earlier, later in zip(gains, gains[1:]))
    assert all(0.98 <= each <= 1.02 * gain for each in gains)
    assert heard_peaks.max() <= max(MAX_PEAK, *peaks) + 1e-4


def test_a_recording_that_begins_quietly_keeps_its_samples():
    pcm, gain = levelled([tone(-70, 2), tone(-10)], 600)
    assert gain == 1 and np.abs(pcm[:SAMPLE_RATE].astype(int)).max() == 10


def test_a_very_quiet_recording_that_becomes_loud_is_lowered_and_does_not_clip():
    pcm, gain = levelled([tone(-70, 2), tone(-10, 1), tone(0, 1)], 1)
    loudest = np.abs(pcm.astype(int))
    assert gain > 100 and loudest.max() == pytest.approx(32767, abs=70)
    assert loudest[:SAMPLE_RATE].max() == pytest.approx(3277, abs=5)


def test_what_no_gain_can_make_audible_is_not_amplified():
    """As the rounding that a lossy codec leaves in a silent channel."""
    pcm, gain = levelled([tone(-200, 2)], 600)
    assert gain == 1 and not pcm.any()


def test_what_is_no_number_stops_nothing():
    for level in (-70, -10):
        for hole in (np.nan, np.inf, -np.inf):
            sound = tone(level, 1)
            sound[5000] = hole
            assert len(levelled([sound, tone(level)], 600)[0]) == round(1.3 * SAMPLE_RATE)


def test_a_very_quiet_beginning_is_held_back_up_to_a_limit_and_digital_silence_is_not(monkeypatch):
    monkeypatch.setattr("levels.HOLD_SECONDS", 3)
    levels = Levels(SAMPLE_RATE, None, 10**12)
    written = [len(levels.push(frame_at(0, silence(1))))]
    quiet = (tone(-70, 1) * 32768).astype(np.int16)
    written += [len(levels.push(frame_at(0, quiet))) for _ in range(4)]
    assert written == [2 * SAMPLE_RATE * seconds for seconds in (1, 0, 0, 3, 1)]


# -- a recording without words


def why(path: Path, **fields) -> list[str]:
    async def asked():
        async with decode(path, 3600, track=fields.get("track", "default")) as pcm:
            async for _ in pcm:
                pass
        return await why_wordless(pcm, Request(**fields), Settings(vad_mode=2))

    return asyncio.run(asyncio.wait_for(asked(), 60))


def test_without_words_the_level_the_channels_and_the_tracks_are_told(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((SAMPLE_RATE, 3)), SAMPLE_RATE)
    assert why(tmp_path / "a.wav") == [
        "No words were recognised. The audio has no sound, only zeros, and 3 channels; "
        "the file has 1 audio track."
    ]
    soundfile.write(tmp_path / "b.wav", tone(-20, 1), SAMPLE_RATE, subtype="FLOAT")
    assert why(tmp_path / "b.wav") == [
        "No words were recognised. The audio has a peak level of -20.0 dBFS and 1 channel; "
        "the file has 1 audio track."
    ]


def test_without_words_the_first_other_track_that_holds_speech_is_told(tmp_path):
    track_file(tmp_path / "a.mkv", [QUIET, QUIET, A, A], "flac")
    assert why(tmp_path / "a.mkv")[1:] == ["Track 2 holds speech: set track to 2."]
    assert len(why(tmp_path / "a.mkv", track=0)) == len(why(tmp_path / "a.mkv", track="mix")) == 1
    track_file(tmp_path / "b.mkv", [QUIET, QUIET], "flac")
    assert len(why(tmp_path / "b.mkv")) == 1


# -- whole jobs


@pytest.fixture
def jobs_server(tmp_path):
    server = FileServer(tmp_path)
    yield server
    server.close()


def test_a_job_tells_of_the_track_it_took_and_transcribes_the_one_asked_for(
    worker, tmp_path, jobs_server
):
    track_file(tmp_path / "a.mp4", [QUIET, A])
    url = jobs_server.url("a.mp4")
    taken = succeeded(run(worker, url))
    assert taken["text"] == "" and [said.split(".")[0] for said in taken["warnings"]] == [
        took(0) + " track can be a number from 0 to 1, or 'mix' for all",
        "No words were recognised",
        "Track 1 holds speech: set track to 1",
    ]
    for track in (1, "mix"):
        output = succeeded(run(worker, url, track=track))
        assert words_of(output) == [plain(word.text) for word in SAID.words]
        assert "warnings" not in output
        for segment, word in zip(output["segments"], SAID.words):
            assert abs(segment["start"] - 1 - word.start) <= MAX_LATE


def test_a_job_of_a_voice_in_opposite_phase_far_below_full_scale_has_its_words(
    worker, tmp_path, jobs_server
):
    wav(tmp_path / "a.wav", np.hstack([at(-60), -at(-60)]), subtype="FLOAT")
    output = succeeded(run(worker, jobs_server.url("a.wav")))
    assert words_of(output) == [plain(word.text) for word in SAID.words]
    assert [said[:20] for said in output["warnings"]] == [IS_QUIET[:20], CANCELS[:20]]
