"""The worker: a RunPod job with the URL of a recording in, a transcript with a time per word out.

`python src/handler.py --help` lists the fields of both, and the ways to start it.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from platform import python_version
from typing import Any

INSTALL = "`pip install -r requirements.txt` installs all that the worker needs."
if sys.version_info < (3, 11):  # noqa: UP036  who starts it on an older Python is told so
    INSTALL = f"This is Python {python_version()}; with 3.11 or newer {INSTALL}"

try:
    from command_line import exit_if_invalid, printing, reserve_stdout, single_job
    from contract.errors import SettingsError
    from contract.request import Request, parse_request
    from contract.settings import Settings, load_settings
    from failures import failed_output
    from job import (
        Progress,
        cancellation_wins,
        progress_of,
        seconds_left,
        temporary_folder,
        time_allowed,
    )
    from recording.chunk import AudioChunk
    from recording.each_channel import split_recording
    from recording.pcm_stream import PcmStream
    from recording.source import decoded_recording
    from recording.vad import cut_rules
    from recording.wordless import why_wordless
    from result.account import Admitted, check_account, raise_if_incomplete
    from result.bucket import MAX_UPLOAD_SECONDS, bucket_for
    from result.conversation import merge_channels
    from result.delivery import deliver
    from result.transcript import Transcript
    from result.usage import Usage
    from runpod import RunPodLogger
    from runpod_sdk import concurrency, install, serve
    from shutdown import Shutdown
    from speech.admission import Gate, Holder, chunk_priority
    from speech.context import Contexts
    from speech.health import Health
    from speech.language_retry import LanguageOutliers
    from speech.models.aligner import Aligner
    from speech.models.recogniser import Recogniser, Vocabulary
    from speech.models.startup import check_models, raise_limit_of_open_files, start_models
    from speech.models.weights import WeightsError
    from speech.retries import transcribe_chunk
    from speech.watched_models import WatchedModels
    from speech.words import ChunkResult
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {missing}. {INSTALL}")

STEPS_ADMITTED = 2  # one batch of chunks runs in the engine while one waits for it

log = RunPodLogger()
settings: Settings
asr: Recogniser
aligner: Aligner
gate: Gate
shutdown = Shutdown()
health = Health(lambda: fitness_check(), lambda: asr.kill())


@dataclass(frozen=True, slots=True)
class Work:
    """What all chunks of one job share."""

    request: Request
    vocabulary: Vocabulary
    models: WatchedModels
    progress: Progress
    holder: Holder


@cancellation_wins
async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """One RunPod job → one result. Raises only when it is cancelled. Logs quote no request."""
    usage = Usage()
    try:
        output = await result_of(job, usage)
    except Exception as error:
        return failed_output(error, usage.seconds, job.get("id"))
    log.info(f"done in {usage.seconds:.1f} s", job.get("id"))
    return output


async def result_of(job: dict[str, Any], usage: Usage) -> dict[str, Any]:
    """The output of a job. Raises what its stages raise."""
    request = parse_request(job.get("input"), settings.allow_local_files)
    async with (
        progress_of(job) as progress,
        temporary_folder() as folder,
        time_allowed(job, shutdown) as limit,
    ):
        transcript = await transcribe_recording(request, folder, progress, usage)
    # No time limit covers the delivery: a transcript that was made in time is delivered.
    cost = usage.to_output(transcript.duration, settings)
    bucket, name = bucket_for(job, settings), f"{job.get('id')}.json"
    upload_time = shutdown.timeout(seconds_left(limit, MAX_UPLOAD_SECONDS))
    max_bytes = settings.max_result_bytes
    return await deliver(transcript, request, cost, max_bytes, bucket, name, upload_time)


async def transcribe_recording(
    request: Request, folder: Path, progress: Progress, usage: Usage
) -> Transcript:
    """Download, decode, split, recognise, align and merge; all stages run at the same time.

    Raises InvalidRequest for a vocabulary that is too long, before the download.
    Raises TranscriptIncomplete where a chunk got no answer: at once, or, if the request allows a
    partial transcript, only without any text.
    Raises LostResults where the results do not tile the chunks.
    """
    vocabulary, outliers = asr.vocabulary(request.vocabulary), LanguageOutliers()
    models = watched_models(usage, request)
    contexts = Contexts(request.initial_context, request.use_previous_context)
    admitted: list[Admitted] = []
    tasks: list[asyncio.Task[list[ChunkResult]]] = []
    async with (
        gate.holder() as holder,
        asyncio.TaskGroup() as group,
        decoded_recording(request, folder, settings, usage.time("download")) as pcm,
    ):
        work = Work(request, vocabulary, models, progress, holder)
        async for chunk in chunks_of(pcm, request.language, progress, usage):
            context = await contexts.of_next(chunk)
            with usage.time("waiting"):  # a job that waits here decodes no further
                await gate.enter(holder, chunk_priority(chunk.index))
            admitted.append(Admitted(chunk.channel, chunk.start, chunk.end))
            tasks.append(group.create_task(transcribe_admitted(chunk, context, work)))
            contexts.keep(chunk, context, tasks[-1])
            if request.language is None:
                outliers.keep_if_short(chunk)
        progress.phase, progress.seconds_known = "transcribing", pcm.seconds_decoded
    results = [result for task in tasks for result in task.result()]
    if request.language is None:
        results = await outliers.retried(results, vocabulary, models, gate)
    check_account(results, admitted)
    transcript = await asyncio.to_thread(merge_channels, results, pcm, request.script)
    if not transcript.text:
        raise_if_incomplete(results)
        why = await why_wordless(pcm, request, settings)
        transcript = replace(transcript, warnings=(*transcript.warnings, *why))
    return transcript


async def chunks_of(
    pcm: PcmStream, language: str | None, progress: Progress, usage: Usage
) -> AsyncIterator[AudioChunk]:
    """The chunks of a recording as it is decoded, counted in its progress and usage."""
    progress.phase = "decoding"
    async for chunk in usage.chunks(split_recording(pcm, cut_rules(settings, language))):
        progress.seconds_known = pcm.seconds_decoded
        yield chunk


async def transcribe_admitted(chunk: AudioChunk, context: str, work: Work) -> list[ChunkResult]:
    """The results of a chunk that the gate has admitted; its place is given back.

    Raises TranscriptIncomplete where there is no answer and the request does not allow that.
    """
    request, progress = work.request, work.progress
    try:
        results = await transcribe_chunk(
            chunk, request.language, context, work.vocabulary, work.models
        )
    finally:
        gate.leave(work.holder)
    if not request.allow_partial:
        raise_if_incomplete(results)
    progress.seconds_done += chunk.duration
    progress.chunks_done += 1
    return results


def watched_models(usage: Usage, request: Request) -> WatchedModels:
    """The models for one job, whose calls `usage` counts."""
    timeout, with_tokens = settings.chunk_timeout_seconds, request.needs_tokens
    return WatchedModels(asr, aligner, health, timeout, usage, with_tokens, request.timestamps)


def load_models() -> None:
    """Fill the module's state. Raises what `start_models` raises, where the worker cannot run."""
    global asr, aligner, gate
    asr, aligner = start_models(settings)
    gate = Gate(STEPS_ADMITTED * asr.capacity)


async def fitness_check() -> None:
    """Run a second of speech through all stages, which warms them. Raises where one is broken."""
    await check_models(asr, aligner, settings.vad_mode)


def jobs_at_once(_: int) -> int:
    """How many jobs this worker takes at the same time. The SDK asks before it takes any."""
    return concurrency(asr.dead, asr.capacity, settings.max_concurrency)


def main() -> None:
    """Load and warm the models, then take jobs.

    A spawned child imports this file again and must not get here.
    """
    global settings
    job = single_job()
    stdout = reserve_stdout() if job else None
    shutdown.watch()
    began = time.monotonic()
    raise_limit_of_open_files()
    try:
        settings = load_settings(os.environ)
        if job and stdout:
            exit_if_invalid(job, settings.allow_local_files, stdout)
        load_models()
    except (SettingsError, WeightsError) as error:
        sys.exit(f"error: {error}")
    except ImportError as error:
        sys.exit(f"error: {error}. {INSTALL}")
    try:
        log.info("warming up")
        asyncio.run(fitness_check())
        log.info(f"ready after {time.monotonic() - began:.1f} s")
        install(shutdown, settings.shutdown_timeout_seconds)
        run = printing(handler, stdout) if stdout else handler
        serve(run, jobs_at_once, fitness_check)
    finally:
        shutdown.begin(0)
        asr.close()
        aligner.close()


if __name__ == "__main__":
    main()
