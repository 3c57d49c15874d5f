"""The reference worker, written as public workers are: each step for the whole file, one chunk at a
time, files between steps.

Download to disk; decode the whole file at its own rate into memory; write that as WAV; load it
again and resample it; find speech; write each chunk as WAV; load it, transcribe it, align it; next.
"""

import asyncio
from pathlib import Path

import av
import numpy as np
import requests
import soundfile
import soxr
import webrtcvad
from recording.chunk import SAMPLE_RATE, AudioChunk

FRAME = SAMPLE_RATE * 30 // 1000
PAUSE_FRAMES = 10  # without speech, at which a chunk may end


def front_end(url: str, folder: Path, target_seconds: float) -> list[Path]:
    """The chunks of the recording as WAV files."""
    source, whole = folder / "source", folder / "whole.wav"
    source.write_bytes(requests.get(url, timeout=60).content)
    with av.open(str(source)) as container:
        frames = [_interleaved(frame) for frame in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    soundfile.write(whole, np.concatenate(frames), rate, subtype="PCM_16")
    del frames
    samples, rate = soundfile.read(whole, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    pcm = (mono * 32767).clip(-32768, 32767).astype(np.int16)
    paths = []
    for start, end in _plan(pcm, round(target_seconds * SAMPLE_RATE)):
        paths.append(folder / f"chunk-{len(paths)}.wav")
        soundfile.write(paths[-1], pcm[start:end], SAMPLE_RATE)
    return paths


def _interleaved(frame) -> np.ndarray:
    """(samples, channels) int16, as pydub keeps them."""
    array = frame.to_ndarray()
    channels = frame.layout.nb_channels
    array = array.T if frame.format.is_planar else array.reshape(-1, channels)
    if array.dtype == np.int16:
        return array
    return (array * 32767).clip(-32768, 32767).astype(np.int16)


def _plan(pcm: np.ndarray, target: int) -> list[tuple[int, int]]:
    """(start, end) samples of chunks that tile the recording, each cut at the first pause from
    `target` samples on.
    """
    vad, silent, cuts = webrtcvad.Vad(2), 0, [0]
    for start in range(0, len(pcm) - FRAME + 1, FRAME):
        silent = (
            0 if vad.is_speech(pcm[start : start + FRAME].tobytes(), SAMPLE_RATE) else silent + 1
        )
        if start + FRAME - cuts[-1] >= target and silent >= PAUSE_FRAMES:
            cuts.append(start)
    return list(zip(cuts, [*cuts[1:], len(pcm)]))


async def transcribe(handler, url: str, folder: Path, target_seconds: float) -> str:
    """The text of the recording, by the models of `handler`."""
    text, offset = [], 0
    for path in await asyncio.to_thread(front_end, url, folder, target_seconds):
        pcm, _ = soundfile.read(path, dtype="int16")
        chunk = AudioChunk(0, offset, pcm, ((0, len(pcm)),))
        heard = await handler.asr.transcribe(chunk, None, "")
        if heard.text:
            await handler.aligner.align(chunk, heard.text, heard.language)
        text.append(heard.text)
        offset += len(pcm)
    return " ".join(text)
