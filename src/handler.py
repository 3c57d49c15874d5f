"""The worker: a RunPod job with the URL of a recording in, a transcript with a time for every word out.

Job input:  audio_url; language ("auto", null or a name), initial_context, use_previous_context, segment_level,
            punctuation, allow_partial.
Output:     language_detected, languages, text, segments [{start, end, text, offset, length}], and sentences,
            failed_spans, retries, warnings where there are any; or error, error_code, retryable.
Beside the input: policy.executionTimeout is kept, s3Config takes results over RunPod's limit. /status shows the progress.

    python src/handler.py --test_input '{"input": {"audio_url": "https://…"}}'    one job, its result as JSON on stdout
    python src/handler.py --rp_serve_api                                          a local server with /runsync
    python -u handler.py                                                          in the image, on RunPod
"""

import asyncio
import gc
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import runpod
from huggingface_hub import snapshot_download
from runpod import RunPodLogger
from runpod.serverless.modules.worker_state import JobsProgress

from align import Aligner, estimated_words
from asr import Hypothesis, Recogniser
from audio import SAMPLE_RATE, AudioChunk, decode
from delivery import bucket_for, deliver
from download import download
from engine import gpu_memory, plan
from errors import AlignError, EngineDead, Incomplete, RecognitionError, SettingsError, WorkerError
from job import Progress, progress_of, time_allowed
from request import Request, parse_request
from settings import Settings, load_settings
from transcript import ChunkResult, Transcript, Word, dominant_language, join, merge
from vad import CutRules, split_at_pauses

CONTEXT_CHARACTERS = 200  # of the previous chunk's text, where the request asks for it
TAIL_SECONDS = 2.0  # of speech after the last word, and something is missing
OUTLIER_SECONDS = 3.0  # of speech; in less, the language detected may be a slip
HALVED = ("cut_off", "too_little", "tail_missing")  # faults that smaller pieces may mend
FATAL = ("cut_off", "loop")  # faults with which a text must not go out
SECOND = Path(__file__).parent / "second.flac"

log = RunPodLogger()
settings: Settings
asr: Recogniser
aligner: Aligner


async def handler(job: dict) -> dict:
    """One RunPod job → one result. Never raises but when it is cancelled; logs hold no text, context or URL."""
    began = time.monotonic()
    try:
        request = parse_request(job.get("input"))
        async with time_allowed(job):
            async with progress_of(job) as progress:
                async with temporary_folder() as folder:
                    transcript = await transcribe_recording(request, folder, progress)
            output = await deliver(transcript, request, settings.max_result_bytes, bucket_for(job, settings), f"{job.get('id')}.json")
    except Exception as error:
        failure = as_worker_error(error)
        log.warn(f"failed after {time.monotonic() - began:.1f} s: {failure.code}", job.get("id"))
        refresh = {"refresh_worker": True} if isinstance(failure, EngineDead) else {}
        return failure.to_output() | refresh
    log.info(f"done in {time.monotonic() - began:.1f} s", job.get("id"))
    return output


@asynccontextmanager
async def temporary_folder() -> AsyncIterator[Path]:
    """Removed in a thread: a large file takes the kernel so long that other jobs would wait."""
    folder = tempfile.TemporaryDirectory(prefix="job-")
    try:
        yield Path(folder.name)
    finally:
        await asyncio.to_thread(folder.cleanup)


async def transcribe_recording(request: Request, folder: Path, progress: Progress) -> Transcript:
    """Download, decode, split, recognise, align and merge, all at once where it can be; files go to `folder`.

    Raises Incomplete where a chunk failed, unless the request allows a partial transcript and there is one.
    """
    rules = CutRules(settings.chunk_target_seconds, settings.chunk_limit_seconds, settings.vad_mode)
    in_flight = settings.max_chunks_per_job or asr.capacity
    slots = asyncio.Semaphore(in_flight)
    context, tasks, short = request.initial_context, [], {}

    async def transcribe(chunk: AudioChunk, context: str) -> list[ChunkResult]:
        results = await transcribe_chunk(chunk, request.language, context)
        progress.seconds_done, progress.chunks_done = progress.seconds_done + chunk.duration, progress.chunks_done + 1
        slots.release()
        return results

    limits = dict(max_bytes=settings.max_download_bytes, timeout=settings.download_timeout_seconds)
    async with (
        download(request.audio_url, folder, **limits) as file,
        decode(file.path, settings.max_audio_seconds, file.size, file.whole) as pcm,
        asyncio.TaskGroup() as group,
    ):
        progress.phase = "decoding"
        async for chunk in split_at_pauses(pcm, rules):
            progress.seconds_known = pcm.duration
            await slots.acquire()
            tasks.append(task := group.create_task(transcribe(chunk, context)))
            if chunk.speech_seconds < OUTLIER_SECONDS and len(short) < in_flight:
                short[chunk.start] = chunk  # few and short: kept until the language of the rest is known
            if not request.use_previous_context:
                context = ""
            elif text := join([result.text for result in await task])[0]:
                context = text[-CONTEXT_CHARACTERS:]  # a chunk in which nothing was said passes on what it was given
        progress.phase, progress.seconds_known = "transcribing", pcm.duration
    results = [result for task in tasks for result in task.result()]
    if request.language is None:
        results = await with_outliers_reheard(results, short)
    transcript = merge(results, pcm.duration)
    if transcript.failed and not (request.allow_partial and transcript.text):
        raise Incomplete.in_spans([span.to_output() for span in transcript.failed])
    return transcript


async def transcribe_chunk(chunk: AudioChunk, language: str | None, context: str) -> list[ChunkResult]:
    """One chunk's result, after at most two extra decodes; two where its halves gave what the whole did not."""
    result, fault = await attempt(chunk, language, context)
    if fault == "engine_error":
        again, _ = await attempt(chunk, language, context, retry=False)
        return [replace(again, retries=(fault,))]
    if fault in HALVED and not result.retries:
        halves = await asyncio.gather(*(attempt(half, language, "", retry=False) for half in chunk.halves()))
        return [replace(half, retries=(fault,)) for half, _ in halves]
    return [result]


async def attempt(chunk: AudioChunk, language: str | None, context: str, retry: bool = True) -> tuple[ChunkResult, str | None]:
    """Recognise and align: (result, what is wrong with it). The text outlives a failed alignment, with estimated times."""
    result = ChunkResult(chunk.start, chunk.end, chunk.speech_seconds)
    try:
        async with asyncio.timeout(settings.chunk_timeout_seconds):
            heard = await asr.transcribe(chunk, language, context, retry)
    except EngineDead:
        raise
    except RecognitionError:
        return replace(result, failure="engine_error"), "engine_error"
    except TimeoutError:
        return replace(result, failure="timeout"), "timeout"
    result = replace(result, retries=heard.retries)
    if heard.fault in FATAL:
        return replace(result, failure=heard.fault), heard.fault
    if not heard.text:
        return result, heard.fault
    words, warning = await time_words(chunk, heard)
    result = replace(result, text=heard.text, language=heard.language, words=words, warning=warning)
    return result, heard.fault or ("tail_missing" if speech_behind(words, chunk) > TAIL_SECONDS else None)


def speech_behind(words: Sequence[Word], chunk: AudioChunk) -> float:
    """Seconds of the chunk's speech behind its last word; one whose time is estimated is as long as the others make it."""
    measured = [word for word in words if not word.estimated]
    if not measured or not chunk.speech:
        return 0
    pace = sum(word.end - word.start for word in measured) / sum(len(word.text) for word in measured)
    behind = sum(len(word.text) for word in words if word.start >= measured[-1].end)
    return chunk.start + chunk.speech[-1][1] / SAMPLE_RATE - measured[-1].end - pace * behind


async def time_words(chunk: AudioChunk, heard: Hypothesis) -> tuple[tuple[Word, ...], str | None]:
    """(words, warning): aligned, or spread over the chunk's speech where the aligner can't."""
    try:
        async with asyncio.timeout(settings.chunk_timeout_seconds):
            return await aligner.align(chunk, heard.text, heard.language), None
    except (AlignError, TimeoutError) as error:
        reason = str(error) or "The aligner did not answer in time."
        log.warn(f"times of the chunk at {chunk.start:.3f} s are estimated: {reason}")
        return estimated_words(chunk, heard.text), f"Some times are estimated. {reason}"


async def with_outliers_reheard(results: list[ChunkResult], short: dict[float, AudioChunk]) -> list[ChunkResult]:
    """A language heard nowhere in OUTLIER_SECONDS of speech, in the midst of another, is a slip: ask in that other."""
    rest = dominant_language(results)
    settled = {r.language for r in results if r.text and r.speech_seconds >= OUTLIER_SECONDS}

    async def reheard(result: ChunkResult) -> ChunkResult:
        if not result.text or result.retries or result.language in settled or rest not in settled or result.start not in short:
            return result
        again, fault = await attempt(short[result.start], rest, "", retry=False)
        return replace(again, retries=("language",)) if again.text and not fault else result

    return await asyncio.gather(*map(reheard, results))


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
    """Fill the module's state: while the engine's process boots, this one loads the aligner.

    Raises SettingsError where the two don't fit the GPU.
    """
    global asr, aligner
    gc.disable()  # what is imported and loaded, a million objects, stays: to look at it over and over takes seconds
    model = checkpoint(settings.model_name, settings.model_revision)
    aligner_model = checkpoint(settings.aligner_name, settings.aligner_revision)
    options = plan(settings, model, aligner_model, gpu_memory)
    log.info(f"starting the recogniser {settings.model_name}")
    asr = Recogniser(options)
    log.info(f"loading the aligner {settings.aligner_name}")
    aligner = Aligner(aligner_model, settings.device, settings.aligner_batch_seconds)
    gc.collect()
    log.info("waiting for the recogniser")
    asr.wait_until_ready()
    aligner.start()
    gc.freeze()  # and later would stop every job for half a second
    gc.enable()


async def check() -> None:
    """A bundled second of speech through decoder, splitter and both models; raises where one of them does not work.

    It warms them up, so that the first job finds everything compiled and allocated, and is RunPod's fitness check.
    """
    async with decode(SECOND, max_seconds=10) as pcm:
        (chunk,) = [c async for c in split_at_pauses(pcm, CutRules(10, 10, settings.vad_mode))]
    heard = await asr.transcribe(chunk, "English", "", retry=False)
    if heard.fault in FATAL:
        raise RecognitionError(f"A second of speech could not be transcribed: {heard.fault}.")
    await aligner.align(chunk, "November xray", "English")


def jobs_at_once(_: int) -> int:
    """How many jobs to hold; the SDK asks before it takes any. With a dead engine none, and the worker ends when it is idle.

    Without MAX_CONCURRENCY an eighth of the chunks of one engine step, for most jobs are of few chunks; but at least 2,
    as at 1 the SDK starts no more than one job a second.
    """
    if asr.dead:
        signal.raise_signal(signal.SIGTERM)  # the SDK's orderly end: jobs still here are answered first
        return 0
    return settings.max_concurrency or max(2, asr.capacity // 8)


async def handler_on_show(job: dict) -> dict:
    """`handler` for a try from the command line: the SDK's log cuts a long result, so print it whole."""
    result = await handler(job)
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return result


def main() -> None:
    """Load and warm the models, then take jobs. A child started by spawn re-imports this file and stops short of this."""
    global settings
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # through `finally`; on RunPod the SDK puts its own in place
    began = time.monotonic()
    try:
        settings = load_settings(os.environ)
        load_models()
    except SettingsError as error:
        sys.exit(f"error: {error}")
    log.info("warming up")
    asyncio.run(check())
    log.info(f"ready after {time.monotonic() - began:.1f} s")
    on_show = "--test_input" in sys.argv or not ({"--rp_serve_api"} & {*sys.argv} or "RUNPOD_WEBHOOK_GET_JOB" in os.environ)
    runpod.serverless.register_fitness_check(check)
    try:
        runpod.serverless.start({"handler": handler_on_show if on_show else handler, "concurrency_modifier": jobs_at_once})
        if lost := JobsProgress().get_job_list():
            log.warn(f"taken too late before the end, neither run nor answered: {lost}")
    finally:
        aligner.close()
        asr.close()


if __name__ == "__main__":
    main()
