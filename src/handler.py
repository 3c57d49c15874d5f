"""The worker: a RunPod job with the URL of a recording in, a transcript with a timestamp for every word out.

Job input:  audio_url (with audio_headers) or audio_base64; start, end, channel; language ("auto", null, a name or a code),
            vocabulary, initial_context, use_previous_context; output_format, segment_level, punctuation, allow_partial.
Output:     language_detected, language_code, languages, duration, text, segments [{start, end, text, offset, length}] (or srt,
            vtt, verbose_json), usage, and sentences, failed_spans, retries, warnings where there are any; or error, error_code,
            retryable.
Beside the input: policy.executionTimeout limits the job, s3Config receives results over RunPod's size limit.
While a job runs, /status shows its progress.

    python src/handler.py --test_input '{"input": {"audio_url": "https://…"}}'    one job, its result as JSON on stdout
    python src/handler.py --rp_serve_api                                          a local server with /runsync
    python -u handler.py                                                          in the image, on RunPod
"""

import asyncio
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from packages import missing_packages

if __name__ == "__main__" and (
    missing := missing_packages()
):  # before an import fails because of it
    sys.exit(f"error: {missing}")

import runpod
from contract.errors import (
    EngineDead,
    TranscriptIncomplete,
    SettingsError,
    WorkerError,
    WorkerFailed,
    is_shortage,
)
from contract.request import Request, parse_request
from contract.settings import Settings, load_settings
from job import (
    Progress,
    cancellation_wins,
    progress_of,
    seconds_left,
    temporary_folder,
    time_allowed,
)
from recording.chunk import AudioChunk
from recording.pcm_stream import decode
from recording.source import recording
from recording.vad import CutRules, split_at_pauses
from result.delivery import MAX_UPLOAD_SECONDS, bucket_for, deliver
from result.transcript import Span, Transcript, join, merge
from result.usage import Usage
from runpod import RunPodLogger
from runpod.serverless.modules.worker_state import JobsProgress
from runpod_sdk import install
from shutdown import Shutdown
from speech.admission import Gate, chunk_priority
from speech.health import Health
from speech.language_retry import LanguageOutliers
from speech.models.aligner import Aligner
from speech.models.recogniser import Recogniser
from speech.models.startup import check_models, raise_limit_of_open_files, start_models
from speech.models.weights import WeightsError
from speech.retries import transcribe_chunk
from speech.watched_models import WatchedModels
from speech.words import ChunkResult

CONTEXT_CHARACTERS = 200  # of the previous chunk's text, with use_previous_context
STEPS_ADMITTED = 2  # the gate admits the chunks of so many engine steps: the engine never waits for the next chunk

log = RunPodLogger()
settings: Settings
asr: Recogniser
aligner: Aligner
gate: Gate
shutdown = Shutdown()
health = Health(lambda: fitness_check(), lambda: asr.kill())


@cancellation_wins
async def handler(job: dict) -> dict:
    """One RunPod job → one result. Raises only when it is cancelled. Logs hold no text, context or URL."""
    usage = Usage()
    try:
        request = parse_request(job.get("input"), settings.allow_local_files)
        async with progress_of(job) as progress, temporary_folder() as folder:
            # not around the delivery: a transcript that was made in time is delivered
            async with time_allowed(job, shutdown) as limit:
                transcript = await transcribe_recording(request, folder, progress, usage)
        cost = usage.to_output(transcript.duration, settings)
        bucket, name = bucket_for(job, settings), f"{job.get('id')}.json"
        upload_time = shutdown.timeout(seconds_left(limit, MAX_UPLOAD_SECONDS))
        most = settings.max_result_bytes
        output = await deliver(transcript, request, cost, most, bucket, name, upload_time)
    except Exception as error:
        failure = as_worker_error(error)
        log.warn(f"failed after {usage.seconds:.1f} s: {failure.code}", job.get("id"))
        refresh = {"refresh_worker": True} if isinstance(failure, EngineDead) else {}
        return failure.to_output() | refresh
    log.info(f"done in {usage.seconds:.1f} s", job.get("id"))
    return output


async def transcribe_recording(
    request: Request, folder: Path, progress: Progress, usage: Usage
) -> Transcript:
    """Download, decode, split, recognise, align and merge. All stages run at the same time. The job's files go to `folder`.

    Raises InvalidRequest for a vocabulary that is too long, before the download.
    Raises TranscriptIncomplete where a chunk got no answer: at once, or, if the request allows a partial transcript, only without any text.
    """
    rules = CutRules(settings.chunk_target_seconds, settings.chunk_limit_seconds, settings.vad_mode)
    models, vocabulary = watched_models(usage), asr.vocabulary(request.vocabulary)
    context, tasks, outliers = request.initial_context, [], LanguageOutliers()

    async def transcribe(chunk: AudioChunk, context: str) -> list[ChunkResult]:
        try:
            results = await transcribe_chunk(chunk, request.language, context, vocabulary, models)
        finally:
            gate.leave(holder)
        if not request.allow_partial:
            raise_if_incomplete(results)
        progress.seconds_done, progress.chunks_done = (
            progress.seconds_done + chunk.duration,
            progress.chunks_done + 1,
        )
        return results

    limits = dict(
        max_bytes=settings.max_download_bytes,
        timeout=settings.download_timeout_seconds,
        timer=usage.time("download"),
    )
    part = dict(start=request.start, end=request.end, channel=request.channel)
    async with (
        gate.holder() as holder,
        asyncio.TaskGroup() as group,
        recording(
            request, folder, **limits
        ) as file,  # the download ends with the decoder, which reads no further than `end`
        decode(
            file.path, settings.max_audio_seconds, file.size, file.complete_marker, **part
        ) as pcm,
    ):
        progress.phase = "decoding"
        async for chunk in usage.chunks(split_at_pauses(pcm, rules, pcm.offset)):
            progress.seconds_known = pcm.duration
            with usage.time("waiting"):
                await gate.enter(
                    holder, chunk_priority(chunk.index)
                )  # a job that waits here decodes no further
            tasks.append(task := group.create_task(transcribe(chunk, context)))
            if request.language is None:
                outliers.keep_if_short(chunk)
            if not request.use_previous_context:
                context = ""
            elif text := join([result.text for result in await task])[
                0
            ]:  # a chunk without text hands its own context on
                context = text[-CONTEXT_CHARACTERS:]
        progress.phase, progress.seconds_known = "transcribing", pcm.duration
    results = [result for task in tasks for result in task.result()]
    if request.language is None:
        results = await outliers.retried(results, vocabulary, models, gate)
    transcript = merge(results, pcm.end, pcm.warning, pcm.start)
    if not transcript.text:
        raise_if_incomplete(results)
    return transcript


def raise_if_incomplete(results: list[ChunkResult]) -> None:
    """Raise TranscriptIncomplete where some of the results are failures."""
    if failed := [Span(r.start, r.end, "failed", r.failure) for r in results if r.failure]:
        raise TranscriptIncomplete.in_spans([span.to_output() for span in failed])


def watched_models(usage: Usage) -> WatchedModels:
    """The models for one job, whose calls `usage` counts."""
    return WatchedModels(asr, aligner, health, settings.chunk_timeout_seconds, usage)


def as_worker_error(error: BaseException) -> WorkerError:
    """The failure to report. An unexpected error is reported without its message, because the message may quote the client's data."""
    while isinstance(error, BaseExceptionGroup):
        error = next(
            (e for e in error.exceptions if isinstance(e, EngineDead)), error.exceptions[0]
        )
    if isinstance(error, WorkerError):
        return error
    log.error(
        f"unexpected {type(error).__name__} at\n{''.join(traceback.format_tb(error.__traceback__))}"
    )
    if is_shortage(error):
        return WorkerFailed("The worker ran out of memory, threads, disk space or open files.")
    return WorkerError("The worker failed because of an unexpected error.")


def load_models() -> None:
    """Fill the module's state. Raises WeightsError or SettingsError where the worker cannot run here."""
    global asr, aligner, gate
    asr, aligner = start_models(settings)
    gate = Gate(STEPS_ADMITTED * asr.capacity)


async def fitness_check() -> None:
    """Run a bundled second of speech through all stages. Raises where one does not work; compiles and allocates what jobs need."""
    await check_models(asr, aligner, settings.vad_mode)


def jobs_at_once(_: int) -> int:
    """How many jobs this worker takes at the same time. The SDK asks before it takes any.

    The default is a quarter of the chunks in one engine step, because most jobs have few chunks. It is at least 2, because at 1 the
    SDK starts no more than one job a second. With a dead engine it is 0, and the worker ends once it is idle.
    """
    if asr.dead:
        signal.raise_signal(
            signal.SIGTERM
        )  # the SDK then ends in order: running jobs are answered first
        return 0
    return settings.max_concurrency or max(2, asr.capacity // 4)


async def handle_and_print(job: dict) -> dict:
    """`handler` for a single job from the command line. It prints the whole result, because the SDK's log cuts a long one."""
    result = await handler(job)
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return result


def stop_at_once(*_: object) -> None:
    """The reaction to SIGTERM while no job runs. Exits through `finally`."""
    shutdown.begin(0)
    sys.exit(0)


def main() -> None:
    """Load and warm the models, then take jobs. A spawned child imports this file again and must not get here."""
    global settings
    signal.signal(signal.SIGTERM, stop_at_once)  # on RunPod the SDK later installs its own handler
    shutdown.watch()
    began = time.monotonic()
    raise_limit_of_open_files()
    try:
        settings = load_settings(os.environ)
        load_models()
    except (SettingsError, WeightsError) as error:
        sys.exit(f"error: {error}")
    try:
        log.info("warming up")
        asyncio.run(fitness_check())
        log.info(f"ready after {time.monotonic() - began:.1f} s")
        serves_jobs = "--rp_serve_api" in sys.argv or "RUNPOD_WEBHOOK_GET_JOB" in os.environ
        single_job = "--test_input" in sys.argv or not serves_jobs
        runpod.serverless.register_fitness_check(fitness_check)
        install(shutdown, settings.shutdown_timeout_seconds)
        runpod.serverless.start(
            {
                "handler": handle_and_print if single_job else handler,
                "concurrency_modifier": jobs_at_once,
            }
        )
        if lost := JobsProgress().get_job_list():
            log.warn(f"jobs taken during the shutdown, neither run nor answered: {lost}")
    finally:
        shutdown.begin(0)
        asr.close()
        aligner.close()


if __name__ == "__main__":
    main()
