"""Engine and worker on models of the true 0.6B shape with random weights: python tests/bench/gpu.py --out FOLDER [--small]

Answers are forced to a realistic length (4.5 tokens per second of audio, end of sequence ignored), and their text is replaced
by a realistic number of words. So the speed is that of real speech, while the text is nonsense. Measures, and writes gpu.json:
  cold start   seconds to import the worker, to load both models, and to warm them up
  engine       RTFx (seconds of audio per second) of recognition alone, by chunk length and number in flight
  aligner      RTFx of alignment alone, by chunk length and number in flight
  worker       RTFx of whole jobs with word times: download, decoding, VAD, recognition, alignment, merging
  reference    one chunk at a time through the same models, as public workers do it
  memory       of the GPU in use after the start and at the end

--small runs all of it with the tiny checkpoints on vLLM's CPU build, to test the script; its figures mean nothing.
"""

import argparse
import asyncio
import http.server
import json
import os
import random
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests" / "bench"), str(ROOT / "tests" / "models" / "recipe")]

TOKENS_PER_SECOND = 4.5  # of audio, in an answer; measured of real speech, the language's prefix included
WORDS_PER_SECOND = 2.5
CHUNKS = (20, 30, 60, 120, 180)  # seconds
IN_FLIGHT = (1, 8, 32, 64, 128, 256)
REPEATS = 3


def force_answers(recogniser) -> None:
    """Wrap `engine.generate`: answers as long as those of real speech, with words for the aligner."""
    from engine import AUDIO_TOKENS_PER_SECOND

    generate, rng = recogniser._engine.generate, random.Random(0)

    async def forced(prompt, sampling, **options):
        seconds = prompt["mm_placeholders"]["audio"][0].length / AUDIO_TOKENS_PER_SECOND
        sampling.ignore_eos = True
        sampling.min_tokens = sampling.max_tokens = max(1, round(rng.gauss(TOKENS_PER_SECOND, 0.5) * seconds))
        async for result in generate(prompt, sampling, **options):
            output = result.outputs[0]
            words = " ".join(rng.choice(WORDS) for _ in range(max(1, round(WORDS_PER_SECOND * seconds))))
            output.text, output.finish_reason = f"language English<asr_text>{words}.", "stop"
            yield result

    recogniser._engine.generate = forced


WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo".split()


def speech_like(seconds: float, seed: int = 0):
    """(samples,) int16: noise in bursts of 3-8 s with pauses of 0.3-0.8 s."""
    import numpy as np

    rng, parts, length = np.random.default_rng(seed), [], 0
    while length < seconds * 16_000:
        burst = rng.normal(0, 3000, int(rng.uniform(3, 8) * 16_000)) * rng.uniform(0.5, 1)
        pause = rng.normal(0, 5, int(rng.uniform(0.3, 0.8) * 16_000))
        parts += [burst, pause]
        length += len(burst) + len(pause)
    return np.concatenate(parts)[: int(seconds * 16_000)].clip(-32768, 32767).astype(np.int16)


def chunk_of(seconds: float, seed: int):
    from audio import AudioChunk

    pcm = speech_like(seconds, seed)
    return AudioChunk(seed, 0, pcm, ((0, len(pcm)),))


async def rtfx(work, chunks, in_flight: int) -> float:
    """Seconds of audio per second of `work(chunk)` over all chunks, `in_flight` at a time."""
    slots, began = asyncio.Semaphore(in_flight), time.monotonic()

    async def one(chunk):
        async with slots:
            await work(chunk)

    await asyncio.gather(*(one(chunk) for chunk in chunks))
    return sum(chunk.duration for chunk in chunks) / (time.monotonic() - began)


async def sweep(work, lengths, counts, audio_seconds: float) -> dict[str, dict[str, float]]:
    """RTFx by chunk length and number in flight, median of REPEATS.

    A point has 2 chunks for each in flight, and up to 4 within `audio_seconds` of audio.
    """
    found: dict[str, dict[str, float]] = {}
    for length in lengths:
        pool = [chunk_of(length, seed) for seed in range(8)]
        for count in counts:
            chunks = [pool[i % len(pool)] for i in range(max(count * 2, min(int(audio_seconds // length), count * 4)))] if count > 1 else pool[:3]
            runs = sorted([await rtfx(work, chunks, count) for _ in range(REPEATS if count > 1 else 1)])
            found.setdefault(f"{length} s", {})[str(count)] = round(runs[len(runs) // 2], 1)
            print(f"  {length:4d} s x {count:3d}: {found[f'{length} s'][str(count)]:8.1f} x real time", flush=True)
    return found


def serve(folder: Path) -> tuple[http.server.ThreadingHTTPServer, str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


async def jobs(handler, url: str, count: int) -> float:
    """Seconds for `count` jobs at once."""
    began = time.monotonic()
    outputs = await asyncio.gather(*(handler.handler({"id": str(i), "input": {"audio_url": url, "language": "English"}}) for i in range(count)))
    assert all(output.get("segments") for output in outputs), outputs[0].get("error")
    return time.monotonic() - began


async def one_by_one(handler, chunks) -> None:
    for chunk in chunks:
        heard = await handler.asr.transcribe(chunk, "English", "")
        await handler.aligner.align(chunk, heard.text, "English")


def gpu_used() -> float | None:
    """GiB in use on the GPU by all processes."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return round((total - free) / 2**30, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--small", action="store_true", help="tiny checkpoints on the CPU, few points")
    parser.add_argument("--parts", default="engine,aligner,worker,reference", help="which to measure")
    a = parser.parse_args()
    parts, found = a.parts.split(","), {"started": time.strftime("%Y-%m-%d %H:%M"), "small": a.small}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        import soundfile

        import checkpoints

        asr_model, aligner_model = checkpoints.build(folder, true_shape=not a.small)
        print(f"checkpoints of {sum(f.stat().st_size for f in folder.rglob('*.safetensors')) / 2**30:.2f} GiB", flush=True)
        os.environ |= {"MODEL_NAME": str(asr_model), "ALIGNER_NAME": str(aligner_model), "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true", "RUNPOD_LOG_LEVEL": "WARN"}
        os.environ |= {"CHUNK_TARGET_SECONDS": "4", "CHUNK_LIMIT_SECONDS": "8"} if a.small else {}
        built = time.monotonic()
        import handler
        from settings import load_settings

        handler.settings = load_settings(os.environ)
        imported = time.monotonic()
        handler.load_models()
        loaded = time.monotonic()
        force_answers(handler.asr)
        asyncio.run(handler.fitness_check())
        found["cold_start_s"] = {"imports": round(imported - built, 1), "both models": round(loaded - imported, 1), "warm-up": round(time.monotonic() - loaded, 1)}
        found["gpu_gib"] = {"after the start": gpu_used()}
        print(f"cold start {found['cold_start_s']}, GPU {found['gpu_gib']}", flush=True)
        lengths, counts = ((2, 4), (1, 4)) if a.small else (CHUNKS, IN_FLIGHT)
        budget = 30 if a.small else 14_400
        text = " ".join(WORDS)
        if "engine" in parts:
            print("engine alone", flush=True)
            found["engine_rtfx"] = asyncio.run(sweep(lambda c: handler.asr.transcribe(c, "English", ""), lengths, counts, budget))
        if "aligner" in parts:
            print("aligner alone", flush=True)
            words = lambda c: " ".join([text] * 99)[: round(5.5 * WORDS_PER_SECOND * c.duration)]  # noqa: E731
            found["aligner_rtfx"] = asyncio.run(sweep(lambda c: handler.aligner.align(c, words(c), "English"), lengths, counts[:4], budget / 4))
        seconds = 60 if a.small else 3600
        soundfile.write(folder / "talk.flac", speech_like(seconds), 16_000)
        server, base = serve(folder)
        if "worker" in parts:
            print("whole worker", flush=True)
            found["worker_rtfx"] = {}
            for count in (1, 4) if a.small else (1, 4, 8):
                runs = sorted(asyncio.run(jobs(handler, f"{base}/talk.flac", count)) for _ in range(REPEATS))
                found["worker_rtfx"][f"{count} jobs of {seconds} s"] = round(count * seconds / runs[len(runs) // 2], 1)
                print(f"  {count} jobs: {found['worker_rtfx'][f'{count} jobs of {seconds} s']} x real time", flush=True)
        if "reference" in parts:
            chunks = [chunk_of(4 if a.small else 60, seed) for seed in range(4 if a.small else 10)]
            began = time.monotonic()
            asyncio.run(one_by_one(handler, chunks))
            found["reference_rtfx"] = round(sum(c.duration for c in chunks) / (time.monotonic() - began), 1)
            print(f"one chunk at a time: {found['reference_rtfx']} x real time", flush=True)
        found["gpu_gib"]["at the end"] = gpu_used()
        server.shutdown()
        server.server_close()
        handler.aligner.close()
        handler.asr.close()
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "gpu.json").write_text(json.dumps(found, indent=2))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
