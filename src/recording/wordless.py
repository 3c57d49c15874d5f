"""What to say of a recording without any text. Knows nothing of how text is recognised."""

import asyncio
from contextlib import suppress
from math import log10
from pathlib import Path

from contract.errors import WorkerError
from contract.request import Request
from contract.settings import Settings
from recording.each_channel import split_recording
from recording.pcm_stream import Found, PcmStream, decode
from recording.vad import cut_rules

LOOK_SECONDS = 30  # at most for the other tracks of a file


async def why_wordless(pcm: PcmStream, request: Request, settings: Settings) -> list[str]:
    """Warnings that say what the file of `pcm`, which has ended, holds instead of words.

    Where the default track has none, the other tracks are decoded until the detector hears speech.
    """
    found = pcm.found
    if found is None:
        return []
    sentence = f"No words were recognised. The audio has {_level(found.peak)} and {_size(found)}."
    if found.track is None or request.track != "default":
        return [sentence]
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_SECONDS):
            for track in range(found.tracks):
                if track == found.track:
                    continue
                if await _has_speech(pcm.path, track, request, settings):
                    return [sentence, f"Track {track} holds speech: set track to {track}."]
    return [sentence]


def _level(peak: float) -> str:
    return f"a peak level of {20 * log10(peak):.1f} dBFS" if peak > 0 else "no sound, only zeros,"


def _size(found: Found) -> str:
    channels = "1 channel" if found.channels == 1 else f"{found.channels} channels"
    tracks = "1 audio track" if found.tracks == 1 else f"{found.tracks} audio tracks"
    return f"{channels}; the file has {tracks}"


async def _has_speech(path: Path, track: int, request: Request, settings: Settings) -> bool:
    with suppress(WorkerError):
        async with decode(
            path,
            settings.max_audio_seconds,
            start=request.start,
            end=request.end,
            track=track,
            channel=request.channel,
        ) as pcm:
            async for _ in split_recording(pcm, cut_rules(settings, request.language)):
                return True
    return False
