"""The worker: a RunPod job with the URL of a recording in, a transcript with a time for every word out.

Job input:  audio_url, language ("auto", null or a name), initial_context, use_previous_context.
Output:     language_detected, text, segments [{start, end, text}], or error, error_code, retryable.

    python src/handler.py --test_input '{"input": {"audio_url": "https://…"}}'    one job, its result as JSON on stdout
    python src/handler.py --rp_serve_api                                          a local server with /runsync
    python -u handler.py                                                          in the image, on RunPod
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import runpod
from huggingface_hub import snapshot_download
from runpod import RunPodLogger

from align import Aligner, estimated_words
from asr import EngineOptions, Recogniser
from audio import SAMPLE_RATE, AudioChunk, decode
from download import download
from errors import AlignError, EngineDead, SettingsError, WorkerError
from request import Request, parse_request
from settings import Settings, load_settings
from transcript import ChunkResult, Transcript, merge
from vad import CutRules, split_at_pauses

CONTEXT_CHARACTERS = 200  # of the previous chunk's text, where the request asks for it

log = RunPodLogger()
settings: Settings
asr: Recogniser
aligner: Aligner


async def handler(job: dict) -> dict:
    """One RunPod job → one result. Never raises but when it is cancelled; logs hold no text, context or URL."""
    began = time.monotonic()
    try:
        request = parse_request(job.get("input"))
        with tempfile.TemporaryDirectory(prefix="job-") as folder:
            transcript = await transcribe_recording(request, Path(folder))
    except Exception as error:
        failure = as_worker_error(error)
        log.warn(f"failed after {time.monotonic() - began:.1f} s: {failure.code}", job.get("id"))
        refresh = {"refresh_worker": True} if isinstance(failure, EngineDead) else {}
        return failure.to_output() | refresh
    log.info(f"done in {time.monotonic() - began:.1f} s", job.get("id"))
    return transcript.to_output()


async def transcribe_recording(request: Request, folder: Path) -> Transcript:
    """Download, decode, split, recognise, align and merge, all at once where it can be; files go to `folder`."""
    path = await download(
        request.audio_url, folder, max_bytes=settings.max_download_bytes, timeout=settings.download_timeout_seconds
    )
    rules = CutRules(settings.chunk_target_seconds, settings.chunk_limit_seconds, settings.vad_mode)
    slots = asyncio.Semaphore(settings.max_chunks_per_job)
    context, results = request.initial_context, []
    async with decode(path, settings.max_audio_seconds) as pcm, asyncio.TaskGroup() as tasks:
        async for chunk in split_at_pauses(pcm, rules):
            await slots.acquire()
            task = tasks.create_task(transcribe_chunk(chunk, request.language, context))
            task.add_done_callback(lambda _: slots.release())
            results.append(task)
            if not request.use_previous_context:
                context = ""
            elif text := (await task).text:  # a chunk in which nothing was said passes on what it was given
                context = text[-CONTEXT_CHARACTERS:]
    return merge([task.result() for task in results])


async def transcribe_chunk(chunk: AudioChunk, language: str | None, context: str) -> ChunkResult:
    """Recognise and align one chunk. Its text outlives a failed alignment, with estimated times."""
    heard = await asr.transcribe(chunk, language, context)
    words = ()
    if heard.text:
        try:
            words = await aligner.align(chunk, heard.text, heard.language)
        except AlignError as error:
            log.warn(f"times of the chunk at {chunk.start:.3f} s are estimated: {error}")
            words = estimated_words(chunk, heard.text)
    return ChunkResult(chunk.start, chunk.end, chunk.speech_seconds, heard.text, heard.language, words, heard.retries)


def as_worker_error(error: BaseException) -> WorkerError:
    """The one failure to tell the client; what nobody foresaw keeps its details to itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, WorkerError):
        return error
    # where and what kind, for us; not the message, which may quote the client's data
    log.error(f"unforeseen {type(error).__name__} at\n{''.join(traceback.format_tb(error.__traceback__))}")
    return WorkerError("The worker failed for a reason it did not foresee.")


def checkpoint(name: str, revision: str) -> str:
    """The local folder of a model: `name` itself, or the one of that hub id (offline, out of the image's cache)."""
    return name if Path(name).is_dir() else snapshot_download(name, revision=revision)


def load_models() -> None:
    """Fill the module's state; minutes on a slow machine, seconds on a fast one."""
    global asr, aligner
    log.info(f"loading the recogniser {settings.model_name}")
    asr = Recogniser(
        EngineOptions(
            model=checkpoint(settings.model_name, settings.model_revision),
            device=settings.device,
            longest_chunk_seconds=settings.chunk_limit_seconds,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            gpu_memory_utilization=settings.gpu_memory_utilization,
        )
    )
    log.info(f"loading the aligner {settings.aligner_name}")
    aligner = Aligner(checkpoint(settings.aligner_name, settings.aligner_revision), settings.device, settings.aligner_batch_seconds)


async def warm_up() -> None:
    """One second through both models, so that the first job finds everything compiled and allocated."""
    noise = np.random.default_rng(0).normal(0, 1000, SAMPLE_RATE).astype(np.int16)
    chunk = AudioChunk(index=0, offset=0, pcm=noise, speech_seconds=0)
    await asr.transcribe(chunk, "English", "")
    await aligner.align(chunk, "one two", "English")


async def handler_on_show(job: dict) -> dict:
    """`handler` for a try from the command line: the SDK's log cuts a long result, so print it whole."""
    result = await handler(job)
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return result


def main() -> None:
    """Load and warm the models, then take jobs. A child started by spawn re-imports this file and stops short of this."""
    global settings
    try:
        settings = load_settings(os.environ)
    except SettingsError as error:
        sys.exit(f"error: {error}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # through `finally`; on RunPod the SDK puts its own in place
    began = time.monotonic()
    load_models()
    asyncio.run(warm_up())
    log.info(f"ready after {time.monotonic() - began:.1f} s")
    on_show = "--test_input" in sys.argv or not ({"--rp_serve_api"} & {*sys.argv} or "RUNPOD_WEBHOOK_GET_JOB" in os.environ)
    try:
        runpod.serverless.start(
            {"handler": handler_on_show if on_show else handler, "concurrency_modifier": lambda _: settings.max_concurrency}
        )
    finally:
        aligner.close()
        asr.close()


if __name__ == "__main__":
    main()
