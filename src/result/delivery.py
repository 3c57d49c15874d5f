"""Transcript → the job's result within RunPod's size limit: reduced in fixed steps, and the full result in a bucket if there is one.

RunPod answers a result over its limit with 400 and shows the job as COMPLETED without output. So the size is measured here, in the
bytes that the SDK will send.
"""

import asyncio
import concurrent.futures
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from urllib.parse import urlsplit

from contract.errors import ResultTooLarge
from contract.request import Request
from contract.settings import Settings
from recording.public_addresses import public_addresses
from result.subtitles import cues_of, to_srt, to_vtt
from result.transcript import Transcript
from runpod import RunPodLogger

COMPACT_FIELDS = ("start", "end", "text", "estimated")  # of a segment
MAX_UPLOAD_SECONDS = 120
URL_SECONDS = 7 * 86_400  # as the SDK's own uploads
ENCODED_AT_ONCE = 1000  # items of a list; a few milliseconds

log = RunPodLogger()


@dataclass(frozen=True, slots=True)
class Bucket:
    """An S3 bucket, from a request's `s3Config` or the worker's settings."""

    endpoint_url: str
    access_id: str
    access_secret: str
    name: str = ""  # "": month and year, as the SDK's own uploads
    trusted: bool = False  # from the settings; that of a client must have a public address


def bucket_for(job: dict, settings: Settings) -> Bucket | None:
    """The bucket for a result that is too large for RunPod: the job's `s3Config`, or else the one in the settings, if any."""
    config = job.get("s3Config")
    given = (
        [config.get(key) for key in ("endpointUrl", "accessId", "accessSecret", "bucketName")]
        if isinstance(config, dict)
        else []
    )
    if given and all(isinstance(value, str) and value for value in given):
        return Bucket(*given)
    own = (
        settings.bucket_endpoint_url,
        settings.bucket_access_key_id,
        settings.bucket_secret_access_key,
        settings.bucket_name,
    )
    return Bucket(*own, trusted=True) if own[0] else None


async def deliver(
    transcript: Transcript,
    request: Request,
    usage: dict,
    max_bytes: int,
    bucket: Bucket | None,
    name: str,
    upload_time: AbstractAsyncContextManager = nullcontext(),
) -> dict:
    """The job's output in the format of the request, with its `usage`, in at most `max_bytes` of JSON.

    A larger output is reduced, and `reduced_to` names the step: "compact" segments, "sentences" as segments, "text" alone; formats
    without segments are reduced to "text" at once. The full output goes to `bucket` as `name`, and `result_url` is its presigned URL.
    An upload that fails, or does not end in `upload_time`, is replaced by a warning.
    `upload_time` is a context that raises TimeoutError, as asyncio.timeout does.
    Raises ResultTooLarge where the text alone is too large.
    """
    full = await asyncio.to_thread(output_of, transcript, request) | {"usage": usage}
    if await asyncio.to_thread(size_of, full) <= max_bytes:
        return full
    link = {}
    if bucket:
        try:
            async with upload_time:
                link = {"result_url": await _in_own_thread(_upload, full, bucket, name)}
        except (
            Exception
        ) as error:  # boto3 has dozens of error types, and none may lose the transcript
            log.warn(f"the result could not be uploaded: {type(error).__name__}")
            full["warnings"] = [
                *full.get("warnings", []),
                "The whole result could not be uploaded to the bucket.",
            ]
    return await asyncio.to_thread(_reduced, full | link, transcript, max_bytes)


def output_of(transcript: Transcript, request: Request) -> dict:
    """The full output in the format of the request. A format other than JSON is under its name, beside the text."""
    form = request.output_format
    if form == "json":
        return transcript.to_output(request.segment_level, request.punctuation)
    formatted = {}
    if form in ("srt", "vtt"):
        cues = cues_of(list(transcript.words(punctuation=True)), transcript.end)
        formatted[form] = to_srt(cues) if form == "srt" else to_vtt(cues)
    elif form == "verbose_json":
        formatted[form] = verbose_json(transcript, request.punctuation)
    return transcript.common_fields() | formatted | transcript.problem_fields()


def verbose_json(transcript: Transcript, punctuation: bool) -> dict:
    """OpenAI's transcription object (`response_format=verbose_json` with both granularities). Its segments are sentences.

    The fields for which Qwen3-ASR has no value are left out: tokens, temperature, avg_logprob, compression_ratio, no_speech_prob,
    seek.
    """
    at = lambda segment: {"start": round(segment.start, 3), "end": round(segment.end, 3)}
    return {
        "task": "transcribe",
        "language": transcript.language and transcript.language.lower(),
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "words": [{"word": word.text, **at(word)} for word in transcript.words(punctuation)],
        "segments": [
            {"id": i, **at(sentence), "text": sentence.text}
            for i, sentence in enumerate(transcript.sentences())
        ],
    }


def size_of(output: dict) -> int:
    """Bytes that the SDK sends for an output. Raises ValueError for values that are not valid JSON: NaN, lone surrogates."""
    return len(b'{"output": }') + sum(map(len, encoded(output)))


def encoded(output: dict) -> Iterator[bytes]:
    """The output as JSON, as the SDK writes it. In pieces, because json holds the GIL while it encodes one.

    Raises ValueError for values that are not valid JSON.
    """
    for i, (key, value) in enumerate(output.items()):
        yield (b", " if i else b"{") + _json(key) + b": "
        if isinstance(value, list) and value:
            for j in range(0, len(value), ENCODED_AT_ONCE):
                yield (b", " if j else b"[") + _json(value[j : j + ENCODED_AT_ONCE])[1:-1]
            yield b"]"
        elif isinstance(value, dict):
            yield from encoded(value)
        else:
            yield _json(value)
    yield b"}" if output else b"{}"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _reduced(full: dict, transcript: Transcript, max_bytes: int) -> dict:
    for output in _reductions(full, transcript):
        if size_of(output) <= max_bytes:
            return output
    raise ResultTooLarge(
        f"Even the text alone is more than the {max_bytes} bytes that a result may have; send the recording in parts."
    )


def _reductions(full: dict, transcript: Transcript) -> Iterator[dict]:
    """Smaller outputs, the largest first."""
    text = {
        key: value
        for key, value in full.items()
        if key not in ("sentences", "srt", "vtt", "verbose_json")
    }
    if "segments" in full:
        yield _compact(full) | {"reduced_to": "compact"}
        sentences = transcript.to_output("sentence")["segments"]
        yield _compact(text | {"segments": sentences}) | {"reduced_to": "sentences"}
        text["segments"] = []
    yield text | {"reduced_to": "text"}


def _compact(output: dict) -> dict:
    lists = {
        key: [{k: s[k] for k in COMPACT_FIELDS if k in s} for s in output[key]]
        for key in ("segments", "sentences")
        if key in output
    }
    return output | lists


def _in_own_thread(function: Callable, *args: object) -> asyncio.Future:
    """The function's result. Not from an executor, because an upload may hang for minutes.

    In an executor it would take the place of other work, and the process would wait for it to end.
    """
    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="upload", daemon=True).start()
    return asyncio.wrap_future(future)


def _upload(full: dict, bucket: Bucket, name: str) -> str:
    """Upload the result with the SDK's client. Returns the presigned URL, valid for URL_SECONDS.

    Not with the SDK's `upload_in_memory_object`, which sends pieces of 25 KB from threads of its
    own: the process would wait for them to end.
    """
    from runpod.serverless.utils.rp_upload import get_boto_client

    if not bucket.trusted:
        parts = urlsplit(bucket.endpoint_url)
        public_addresses(parts.hostname or "", parts.port or 443)
    credentials = {
        "endpointUrl": bucket.endpoint_url,
        "accessId": bucket.access_id,
        "accessSecret": bucket.access_secret,
    }
    client, _ = get_boto_client(credentials)
    place = {"Bucket": bucket.name or time.strftime("%m-%y"), "Key": name}
    client.put_object(**place, Body=b"".join(encoded(full)))
    return client.generate_presigned_url("get_object", Params=place, ExpiresIn=URL_SECONDS)
