"""Transcript → the job's result, within RunPod's size limit.

A larger result is reduced in fixed steps, and the full one goes to a bucket if there is one.
RunPod answers a result over its limit with 400 and shows the job as COMPLETED without output. So
the size is measured here, in the bytes that the SDK will send.
"""

import asyncio
import concurrent.futures
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

from contract.errors import ResultTooLarge
from contract.request import Request
from contract.subtitle_options import SubtitleOptions
from result.bucket import Bucket, upload
from result.subtitles import Cue, cues_of, to_srt, to_vtt
from result.transcript import Transcript
from result.verbose import verbose_json
from runpod import RunPodLogger

# What a compact segment keeps.
COMPACT_FIELDS = ("start", "end", "text", "estimated", "confidence", "channel")
# What the reductions leave out.
LARGE_FIELDS = ("sentences", "channels", "srt", "vtt", "verbose_json")
UPLOAD_FAILED = "The whole result could not be uploaded to the bucket."

Output = dict[str, Any]
Result = TypeVar("Result")

log = RunPodLogger()


async def deliver(
    transcript: Transcript,
    request: Request,
    usage: Output,
    max_bytes: int,
    bucket: Bucket | None,
    name: str,
    upload_time: AbstractAsyncContextManager[object] | None = None,
) -> Output:
    """The job's output in the format of the request, with its `usage`.

    An output over `max_bytes` of JSON is reduced, and `reduced_to` names the step: "compact"
    segments, "sentences" as segments, "text" alone; formats without segments are reduced to "text"
    at once. The full output goes to `bucket` as `name`, and `result_url` is its presigned URL.
    An upload that fails, or does not end in `upload_time`, is replaced by a warning.

    `upload_time`: a context that raises TimeoutError, as asyncio.timeout does.

    Raises ResultTooLarge where the text alone is too large.
    """
    full = await asyncio.to_thread(output_of, transcript, request)
    full["usage"] = usage
    if await asyncio.to_thread(size_of, full) <= max_bytes:
        return full
    if bucket:
        full |= await _uploaded(full, bucket, name, upload_time or nullcontext())
    return await asyncio.to_thread(_reduced, full, transcript, max_bytes)


async def _uploaded(
    full: Output, bucket: Bucket, name: str, upload_time: AbstractAsyncContextManager[object]
) -> Output:
    """What the upload adds to an output: `result_url`, or one more warning."""
    try:
        async with upload_time:
            url = await _in_own_thread(lambda: upload(encoded(full), bucket, name))
            return {"result_url": url}
    except Exception as error:  # boto3 has dozens of error types; none may lose the transcript
        log.warn(f"the result could not be uploaded: {type(error).__name__}")
        return {"warnings": [*full.get("warnings", []), UPLOAD_FAILED]}


def output_of(transcript: Transcript, request: Request) -> Output:
    """The full output in the format of the request.

    A format other than JSON is under its name, beside the text.
    """
    output = _formatted(transcript, request)
    if request.warnings:
        output["warnings"] = [*request.warnings, *output.get("warnings", ())]
    return output


def _formatted(transcript: Transcript, request: Request) -> Output:
    form = request.output_format
    if form == "json":
        level = request.segment_level if request.timestamps else "chunk"
        return transcript.to_output(level, request.punctuation)
    formatted: Output = {}
    if form in ("srt", "vtt"):
        cues = _cues(transcript, request.subtitles)
        formatted[form] = to_srt(cues) if form == "srt" else to_vtt(cues)
    elif form == "verbose_json":
        formatted[form] = verbose_json(transcript, request)
    return transcript.common_fields() | formatted | transcript.problem_fields()


def _cues(transcript: Transcript, options: SubtitleOptions) -> list[Cue]:
    """The cues in the order of their starts. Those of two channels may overlap."""
    cues: list[Cue] = []
    for part in transcript.parts:
        cues += cues_of(list(part.words(punctuation=True)), part.end, options)
    return sorted(cues, key=lambda cue: cue.start)


def size_of(output: Output) -> int:
    """Bytes that the SDK sends for an output.

    Raises ValueError for values that are not valid JSON: NaN, lone surrogates.
    """
    return len(b'{"output": }') + len(encoded(output))


def encoded(output: Output) -> bytes:
    """The output as JSON, as the SDK writes it. Raises ValueError as `size_of` does."""
    return json.dumps(output, ensure_ascii=False, allow_nan=False).encode()


def _reduced(full: Output, transcript: Transcript, max_bytes: int) -> Output:
    """The largest reduction of `full` that fits. Raises ResultTooLarge."""
    for output in _reductions(full, transcript):
        if size_of(output) <= max_bytes:
            return output
    raise ResultTooLarge(
        f"Even the text alone is more than the {max_bytes} bytes that a result may have; "
        "send the recording in parts."
    )


def _reductions(full: Output, transcript: Transcript) -> Iterator[Output]:
    """Smaller outputs, the largest first."""
    text = {key: value for key, value in full.items() if key not in LARGE_FIELDS}
    if "segments" in full:
        yield _compact(full) | {"reduced_to": "compact"}
        if sentences := transcript.to_output("sentence")["segments"]:
            yield _compact(text | {"segments": sentences}) | {"reduced_to": "sentences"}
        text["segments"] = []
    yield text | {"reduced_to": "text"}


def _compact(output: Output) -> Output:
    """The output with COMPACT_FIELDS alone in its segments and sentences."""
    compact = dict(output)
    for key in ("segments", "sentences"):
        if key in output:
            compact[key] = [_compact_segment(segment) for segment in output[key]]
    return compact


def _compact_segment(segment: Output) -> Output:
    return {key: segment[key] for key in COMPACT_FIELDS if key in segment}


def _in_own_thread(function: Callable[[], Result]) -> asyncio.Future[Result]:
    """The function's result. Not from an executor, because an upload may hang for minutes.

    In an executor it would take the place of other work, and the process would wait for it to end.
    """
    future: concurrent.futures.Future[Result] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="upload", daemon=True).start()
    return asyncio.wrap_future(future)
