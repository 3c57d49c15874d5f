"""Samples → files in the usual containers and codecs, by the encoders that PyAV bundles."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from recording.chunk import SAMPLE_RATE

CODECS = {  # by suffix
    ".wav": "pcm_s16le",
    ".mp3": "libmp3lame",
    ".m4a": "aac",
    ".flac": "flac",
    ".ogg": "libopus",
    ".opus": "libopus",
    ".webm": "libopus",
    ".mp4": "aac",  # behind a video track
}
# The codecs of sound and pictures by suffix. Other suffixes get AAC and MPEG-4.
FILM_CODECS = {".webm": ("libopus", "libvpx")}
FRAMES_PER_SECOND, PICTURE = 5, 64  # the video track's rate, and its width and height in pixels


def encode(
    pcm: np.ndarray,
    path: Path,
    *,
    rate: int = SAMPLE_RATE,
    channels: int = 1,
    bitrate: int | None = None,
    **options,
) -> None:
    """Write int16 at SAMPLE_RATE to `path`, resampled to `rate`: (samples,), copied to each of
    `channels`, or (samples, 2) stereo.

    The suffix chooses container and codec, see CODECS. Opus takes 8, 12, 16, 24 and 48 kHz only.
    `options` go to FFmpeg's muxer.
    """
    with av.open(str(path), "w", options=options) as container:
        film = _video_track(container) if path.suffix == ".mp4" else None
        given = "mono" if pcm.ndim == 1 else "stereo"
        track = container.add_stream(
            CODECS[path.suffix], rate=rate, layout="stereo" if channels == 2 else given
        )
        if bitrate:
            track.bit_rate = bitrate
        if film:
            _write_pictures(container, film, len(pcm) / SAMPLE_RATE)
        for start in range(0, len(pcm), SAMPLE_RATE):
            frame = av.AudioFrame.from_ndarray(
                pcm[start : start + SAMPLE_RATE].reshape(1, -1), format="s16", layout=given
            )
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            container.mux(track.encode(frame))
        container.mux(track.encode(None))


def remux(
    source: Path,
    target: Path,
    *,
    container: str | None = None,
    without: tuple[float, float] = (0, 0),
) -> None:
    """Copy the packets of a file into another container, without those that begin between the two
    seconds of `without`.
    """
    with av.open(str(source)) as whole, av.open(str(target), "w", format=container) as other:
        track = whole.streams.audio[0]
        copy = other.add_stream_from_template(track)
        for packet in whole.demux(track):
            if (
                packet.pts is not None
                and not without[0] <= packet.pts * packet.time_base < without[1]
            ):
                packet.stream = copy
                other.mux(packet)


def encode_film(
    pcm: np.ndarray,
    path: Path,
    *,
    late: float = 0.0,
    pictures: float = 0.0,
    base: float = 0.0,
    codec: str = "",
    **options,
) -> None:
    """Write (samples,) int16 mono as the sound of a video, `late` seconds after the start of its
    pictures.

    `pictures`: length of the video in seconds, 0 for the length of the sound; `base`: timestamp in
    seconds of the file's start; `codec`: of the sound, if not the container's usual one; `options`
    go to FFmpeg's muxer.
    """
    sound_codec, film_codec = FILM_CODECS.get(path.suffix, ("aac", "mpeg4"))
    with av.open(str(path), "w", options=options) as container:
        film = _video_track(container, film_codec)
        track = container.add_stream(codec or sound_codec, rate=48_000, layout="mono")
        packets = []
        for i in range(round((pictures or late + len(pcm) / SAMPLE_RATE) * FRAMES_PER_SECOND)):
            picture = av.VideoFrame.from_ndarray(
                np.full((PICTURE, PICTURE, 3), i % 256, np.uint8), format="rgb24"
            )
            picture.pts, picture.time_base = (
                i + round(base * FRAMES_PER_SECOND),
                Fraction(1, FRAMES_PER_SECOND),
            )
            packets += film.encode(picture)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = (
            SAMPLE_RATE,
            round((base + late) * SAMPLE_RATE),
            Fraction(1, SAMPLE_RATE),
        )
        packets += [*film.encode(None), *track.encode(frame), *track.encode(None)]
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))


def encode_silent_film(path: Path, seconds: float) -> None:
    """Write a video without any audio track."""
    with av.open(str(path), "w") as container:
        _write_pictures(container, _video_track(container), seconds)


def _video_track(container, codec: str = "mpeg4"):
    track = container.add_stream(codec, rate=FRAMES_PER_SECOND)
    track.width = track.height = PICTURE
    track.pix_fmt = "yuv420p"
    return track


def _write_pictures(container, track, seconds: float) -> None:
    for i in range(max(1, round(seconds * FRAMES_PER_SECOND))):
        picture = np.full((PICTURE, PICTURE, 3), i % 256, np.uint8)
        container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(track.encode(None))
