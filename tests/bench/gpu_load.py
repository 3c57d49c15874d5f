"""The load of gpu.py: sound, words and answers that cost what real speech costs; whole jobs."""

import asyncio
import functools
import http.server
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

TOKENS_PER_SECOND = (
    4.5  # of audio, in an answer; measured of real speech, the language's prefix included
)
WORDS_PER_SECOND = 2.5
WORDS = [
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliet",
    "kilo",
    "lima",
    "mike",
    "november",
    "oscar",
]
SAMPLE_RATE = 16_000


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """(samples,) int16: noise in bursts of 3-8 s with pauses of 0.3-0.8 s."""
    rng, parts, length = np.random.default_rng(seed), [], 0
    while length < seconds * SAMPLE_RATE:
        burst = rng.normal(0, 3000, int(rng.uniform(3, 8) * SAMPLE_RATE)) * rng.uniform(0.5, 1)
        pause = rng.normal(0, 5, int(rng.uniform(0.3, 0.8) * SAMPLE_RATE))
        parts += [burst, pause]
        length += len(burst) + len(pause)
    samples = np.concatenate(parts)[: int(seconds * SAMPLE_RATE)]
    return samples.clip(-32768, 32767).astype(np.int16)


def chunk_of(seconds: float, seed: int):
    from recording.chunk import AudioChunk

    pcm = speech_like(seconds, seed)
    return AudioChunk(seed, 0, pcm, ((0, len(pcm)),))


def words_for(seconds: float) -> str:
    """As many words as are said in the time."""
    count = max(1, round(WORDS_PER_SECOND * seconds))
    return " ".join(WORDS[i % len(WORDS)] for i in range(count))


@contextmanager
def forced_answers(recogniser) -> Iterator[None]:
    """Answers as long as those of real speech, with words: `engine.generate` is wrapped."""
    from speech.models.token_limits import AUDIO_TOKENS_PER_SECOND

    generate, rng = recogniser._engine.generate, random.Random(0)

    async def forced(prompt, sampling, **options):
        seconds = prompt["mm_placeholders"]["audio"][0].length / AUDIO_TOKENS_PER_SECOND
        tokens = max(1, round(rng.gauss(TOKENS_PER_SECOND, 0.5) * seconds))
        sampling.ignore_eos, sampling.min_tokens, sampling.max_tokens = True, tokens, tokens
        async for result in generate(prompt, sampling, **options):
            output = result.outputs[0]
            text = f"language English<asr_text>{words_for(seconds)}."
            output.text, output.finish_reason = text, "stop"
            yield result

    recogniser._engine.generate = forced
    try:
        yield
    finally:
        recogniser._engine.generate = generate


async def rtfx(work, chunks: list, in_flight: int) -> float:
    """Seconds of audio per second of `work(chunk)` over all chunks, `in_flight` at a time."""
    slots, began = asyncio.Semaphore(in_flight), time.monotonic()

    async def one(chunk) -> None:
        async with slots:
            await work(chunk)

    await asyncio.gather(*(one(chunk) for chunk in chunks))
    return sum(chunk.duration for chunk in chunks) / (time.monotonic() - began)


@contextmanager
def recording(folder: Path, seconds: int) -> Iterator[str]:
    """The URL, on loopback, of a recording of that length."""
    import soundfile

    path = folder / f"talk-{seconds}.flac"
    if not path.exists():
        soundfile.write(path, speech_like(seconds), SAMPLE_RATE)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{path.name}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


async def run_jobs(worker, url: str, count: int) -> float:
    """Seconds for `count` jobs at once. Raises RuntimeError where one fails."""
    began = time.monotonic()
    request = {"audio_url": url, "language": "English"}
    given = [{"id": str(i), "input": request} for i in range(count)]
    outputs = await asyncio.gather(*(worker.handler(job) for job in given))
    if failed := [output["error"] for output in outputs if "error" in output]:
        raise RuntimeError(failed[0])
    return time.monotonic() - began
