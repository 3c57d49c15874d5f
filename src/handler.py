"""The worker: a RunPod job with the URL of a recording in, a transcript with a time for every word out.

Job input:  audio_url (with audio_headers) or audio_base64; start, end, channel; language ("auto", null, a name or a code),
            vocabulary, initial_context, use_previous_context; output_format, segment_level, punctuation, allow_partial.
Output:     language_detected, language_code, languages, duration, text, segments [{start, end, text, offset, length}] (or srt,
            vtt, verbose_json), usage, and sentences, failed_spans, retries, warnings where there are any; or error, error_code,
            retryable.
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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from packages import missing_packages

if __name__ == "__main__" and (missing := missing_packages()):  # before an import fails over it
    sys.exit(f"error: {missing}")

import numpy as np
import runpod
from runpod import RunPodLogger
from runpod.serverless.modules.worker_state import JobsProgress

from admission import Gate, chunk_priority
from align import Aligner
from asr import Hypothesis, Recogniser, Vocabulary
from audio import AudioChunk, decode
from delivery import bucket_for, deliver
from engine import find_device, plan
from errors import AlignError, EngineDead, Incomplete, RecognitionError, SettingsError, WorkerError
from fallback import best_results
from health import Health
from job import Progress, progress_of, time_allowed
from request import Request, parse_request
from settings import Settings, load_settings
from source import recording
from timing import estimated_words
from transcript import SLIP_SECONDS, ChunkResult, Span, Transcript, Word, dominant_language, join, lone_slips, merge
from usage import Usage
from vad import CutRules, split_at_pauses
from weights import WeightsError, find

CONTEXT_CHARACTERS = 200  # of the previous chunk's text, where the request asks for it
CHUNKS_BY_CAPACITY = 2  # admitted to both models, for each that the engine takes in one step: it never waits for the next
SHORT_KEPT = 32  # chunks of a job, until its languages are known; a slip is the only chunk of its language
SECOND = Path(__file__).parent / "second.flac"

log = RunPodLogger()
settings: Settings
asr: Recogniser
aligner: Aligner
gate: Gate
health = Health(lambda: check(), lambda: asr.kill())


async def handler(job: dict) -> dict:
    """One RunPod job → one result. Never raises but when it is cancelled; logs hold no text, context or URL."""
    usage = Usage()
    try:
        request = parse_request(job.get("input"), settings.allow_local_files)
        async with time_allowed(job):
            async with progress_of(job) as progress:
                async with temporary_folder() as folder:
                    transcript = await transcribe_recording(request, folder, progress, usage)
            cost = usage.to_output(transcript.duration, settings)
            output = await deliver(transcript, request, cost, settings.max_result_bytes, bucket_for(job, settings), f"{job.get('id')}.json")
    except Exception as error:
        failure = as_worker_error(error)
        log.warn(f"failed after {usage.seconds:.1f} s: {failure.code}", job.get("id"))
        refresh = {"refresh_worker": True} if isinstance(failure, EngineDead) else {}
        return failure.to_output() | refresh
    log.info(f"done in {usage.seconds:.1f} s", job.get("id"))
    return output


@asynccontextmanager
async def temporary_folder() -> AsyncIterator[Path]:
    """Removed in a thread: a large file takes the kernel so long that other jobs would wait."""
    folder = tempfile.TemporaryDirectory(prefix="job-")
    try:
        yield Path(folder.name)
    finally:
        await asyncio.to_thread(folder.cleanup)


async def transcribe_recording(request: Request, folder: Path, progress: Progress, usage: Usage) -> Transcript:
    """Download, decode, split, recognise, align and merge, all at once where it can be; files go to `folder`.

    Raises InvalidRequest for a vocabulary that is too long, before any download, and Incomplete where no answer came for a chunk:
    at once, unless the request allows a partial transcript; then at the end, where there is no text at all.
    """
    rules = CutRules(settings.chunk_target_seconds, settings.chunk_limit_seconds, settings.vad_mode)
    vocabulary = asr.vocabulary(request.vocabulary)
    context, tasks, short = request.initial_context, [], {}

    async def transcribe(chunk: AudioChunk, context: str) -> list[ChunkResult]:
        try:
            results = await transcribe_chunk(chunk, request.language, context, vocabulary, usage)
        finally:
            gate.leave(holder)
        if not request.allow_partial:
            raise_incomplete(results)
        progress.seconds_done, progress.chunks_done = progress.seconds_done + chunk.duration, progress.chunks_done + 1
        return results

    limits = dict(max_bytes=settings.max_download_bytes, timeout=settings.download_timeout_seconds, timer=usage.time("download"))
    part = dict(start=request.start, end=request.end, channel=request.channel)
    async with (
        gate.holder() as holder,
        asyncio.TaskGroup() as group,
        recording(request, folder, **limits) as file,  # ends with the decoder: what lies behind the part is not awaited
        decode(file.path, settings.max_audio_seconds, file.size, file.complete_marker, **part) as pcm,
    ):
        progress.phase = "decoding"
        async for chunk in usage.chunks(split_at_pauses(pcm, rules, pcm.first)):
            progress.seconds_known = pcm.duration
            with usage.time("waiting"):
                await gate.enter(holder, chunk_priority(chunk.index))  # until there is a place, no more is decoded
            tasks.append(task := group.create_task(transcribe(chunk, context)))
            if chunk.speech_seconds < SLIP_SECONDS and len(short) < SHORT_KEPT:
                short[chunk.start] = chunk  # few and short: kept until the language of the rest is known
            if not request.use_previous_context:
                context = ""
            elif text := join([result.text for result in await task])[0]:
                context = text[-CONTEXT_CHARACTERS:]  # a chunk in which nothing was said passes on what it was given
        progress.phase, progress.seconds_known = "transcribing", pcm.duration
    results = [result for task in tasks for result in task.result()]
    if request.language is None:
        results = await with_slips_reheard(results, short, vocabulary, usage)
    transcript = merge(results, pcm.end, pcm.warning, pcm.start)
    if not transcript.text:
        raise_incomplete(results)
    return transcript


def raise_incomplete(results: list[ChunkResult]) -> None:
    """Raise Incomplete where no answer came for some of them."""
    if failed := [Span(r.start, r.end, "failed", r.failure) for r in results if r.failure]:
        raise Incomplete.in_spans([span.to_output() for span in failed])


async def transcribe_chunk(
    chunk: AudioChunk, language: str | None, context: str, vocabulary: Vocabulary, usage: Usage
) -> list[ChunkResult]:
    """The results that tile one chunk: its own, or those of its pieces where these gave more."""
    return await best_results(chunk, language, context, vocabulary, usage.counted(recognise), usage.timed("alignment", time_words))


async def recognise(chunk: AudioChunk, language: str | None, context: str, temperature: float, vocabulary: Vocabulary) -> Hypothesis:
    """One decode. Raises EngineDead, RecognitionError where the engine refuses the chunk, or TimeoutError."""
    try:
        async with asyncio.timeout(settings.chunk_timeout_seconds):
            heard = await asr.transcribe(chunk, language, context, temperature, vocabulary)
    except TimeoutError:
        await health.failed("engine")
        raise
    health.worked("engine")
    return heard


async def time_words(chunk: AudioChunk, text: str, language: str | None, spectrum: np.ndarray | None) -> tuple[tuple[Word, ...], str | None]:
    """(words, warning): aligned, or spread over the chunk's speech where the aligner can't."""
    try:
        async with asyncio.timeout(settings.chunk_timeout_seconds):
            words = await aligner.align(chunk, text, language, spectrum)
    except (AlignError, TimeoutError) as error:
        if isinstance(error, TimeoutError) or error.unexplained:
            await health.failed("aligner")
        reason = str(error) or "The aligner did not answer in time."
        log.warn(f"times of the chunk at {chunk.start:.3f} s are estimated: {reason}")
        return estimated_words(chunk, text), f"Some times are estimated. {reason}"
    health.worked("aligner")
    return words, None


async def with_slips_reheard(
    results: list[ChunkResult], short: dict[float, AudioChunk], vocabulary: Vocabulary, usage: Usage
) -> list[ChunkResult]:
    """A lone short chunk in a language of its own may be a slip of the detection: ask again in the language of the rest."""
    rest = dominant_language(results)
    slips = [result for result in lone_slips(results) if result.start in short]
    again = await asyncio.gather(*(transcribe_chunk(short[slip.start], rest, "", vocabulary, usage) for slip in slips))
    mended = {slip: replace(new[0], retries=("language",)) for slip, new in zip(slips, again) if len(new) == 1 and new[0].sound}
    return [mended.get(result, result) for result in results]


def as_worker_error(error: BaseException) -> WorkerError:
    """The one failure to tell the client; what nobody foresaw keeps its details to itself."""
    while isinstance(error, BaseExceptionGroup):
        error = next((e for e in error.exceptions if isinstance(e, EngineDead)), error.exceptions[0])
    if isinstance(error, WorkerError):
        return error
    # where and what kind, for us; not the message, which may quote the client's data
    log.error(f"unforeseen {type(error).__name__} at\n{''.join(traceback.format_tb(error.__traceback__))}")
    return WorkerError("The worker failed for a reason it did not foresee.")


def checkpoint(role: str, name: str, revision: str) -> str:
    """The local folder of a model, wherever it was found. Raises WeightsError."""
    weights = find(role, name, revision, log.info)
    log.info(f"{role} {name}, {weights}")
    return str(weights.folder)


def load_models() -> None:
    """Fill the module's state: while the engine's process boots, this one loads the aligner.

    Raises WeightsError where one of the two can't be had, SettingsError where there is no GPU for them, or they don't fit it.
    """
    global asr, aligner, gate
    gc.disable()  # what is imported and loaded, a million objects, stays: to look at it over and over takes seconds
    device, gpu_bytes = find_device(settings.device)
    if settings.device == "auto" and device == "cpu":
        log.info("no GPU that this vLLM can use: the models run on the CPU, slowly")
    model = checkpoint("recogniser", settings.model_name, settings.model_revision)
    aligner_model = checkpoint("aligner", settings.aligner_name, settings.aligner_revision)
    options = plan(settings, model, aligner_model, device, gpu_bytes)
    log.info(f"starting the recogniser {settings.model_name}")
    asr = Recogniser(options)
    gate = Gate(CHUNKS_BY_CAPACITY * asr.capacity)
    log.info(f"loading the aligner {settings.aligner_name}")
    try:
        aligner = Aligner(aligner_model, device, settings.aligner_batch_seconds, options.aligner_share)
    except BaseException:
        asr.kill()  # the interpreter's end waits for the engine's process
        raise
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
    heard = await asr.transcribe(chunk, "English", "")
    if heard.finish_reason == "length":
        raise RecognitionError("The answer for a second of speech did not come to an end.")
    await aligner.align(chunk, "November xray", "English")


def jobs_at_once(_: int) -> int:
    """How many jobs to hold; the SDK asks before it takes any. With a dead engine none, and the worker ends when it is idle.

    Without MAX_CONCURRENCY a quarter of the chunks of one engine step, for most jobs are of few chunks; but at least 2,
    as at 1 the SDK starts no more than one job a second.
    """
    if asr.dead:
        signal.raise_signal(signal.SIGTERM)  # the SDK's orderly end: jobs still here are answered first
        return 0
    return settings.max_concurrency or max(2, asr.capacity // 4)


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
    except (SettingsError, WeightsError) as error:
        sys.exit(f"error: {error}")
    try:
        log.info("warming up")
        asyncio.run(check())
        log.info(f"ready after {time.monotonic() - began:.1f} s")
        on_show = "--test_input" in sys.argv or not ({"--rp_serve_api"} & {*sys.argv} or "RUNPOD_WEBHOOK_GET_JOB" in os.environ)
        runpod.serverless.register_fitness_check(check)
        runpod.serverless.start({"handler": handler_on_show if on_show else handler, "concurrency_modifier": jobs_at_once})
        if lost := JobsProgress().get_job_list():
            log.warn(f"taken too late before the end, neither run nor answered: {lost}")
    finally:
        aligner.close()
        asr.close()


if __name__ == "__main__":
    main()
