"""The command line, read before the models are loaded: a mistake in it must not cost minutes.

The options are those of RunPod's SDK, which reads them again.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from contract.errors import InvalidRequest
from contract.request import parse_request
from job import Handler
from runpod.serverless import parser

TEST_INPUT = Path("test_input.json")  # in the current folder, as in the SDK
DESCRIPTION = """\
The URL of a recording in, a transcript with a time for every word out.

Job input:  audio_url (with audio_headers) or audio_base64; start, end, track, channel;
            language ("auto", null, a name or a code), vocabulary, initial_context,
            use_previous_context; output_format, segment_level, timestamps, punctuation,
            confidence, subtitles, allow_partial.
Output:     language_detected, language_code, languages, duration, text, usage,
            segments [{start, end, text, offset, length}] or srt, vtt, verbose_json;
            channels, sentences, failed_spans, damaged_spans, retries, warnings where there are any;
            or error, error_message, error_code, retryable.
Beside the input, policy.executionTimeout limits the job, and s3Config receives results over
RunPod's size limit. While a job runs, /status shows its progress.

    python src/handler.py --test_input '{"input": {"audio_url": "https://…"}}'
        one job; its result is JSON on stdout
    python src/handler.py --rp_serve_api
        a local server with /runsync
    python -u handler.py
        in the image, on RunPod
"""
EXAMPLE = '{"input": {"audio_url": "https://…"}}'


def single_job() -> dict[str, Any] | None:
    """The one job to run, from --test_input or TEST_INPUT; None for a worker that takes jobs.

    Exits with a sentence for an unknown option and for a job that is no JSON object with an input.
    """
    parser.prog, parser.description = "python src/handler.py", DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    options = parser.parse_args()
    if options.test_input is not None:
        return _job(options.test_input, "--test_input")
    if options.rp_serve_api or "RUNPOD_WEBHOOK_GET_JOB" in os.environ:
        return None
    if not TEST_INPUT.exists():
        sys.exit(
            f"error: there is no {TEST_INPUT} in this folder. Give a job, --test_input "
            f"'{EXAMPLE}', or start a local server with --rp_serve_api."
        )
    return _job(TEST_INPUT.read_text(encoding="utf-8"), str(TEST_INPUT))


def _job(text: str, where: str) -> dict[str, Any]:
    try:
        job = json.loads(text)
    except ValueError as error:
        sys.exit(f"error: {where} is no valid JSON: {error}. It must be like '{EXAMPLE}'.")
    if not isinstance(job, dict) or not isinstance(job.get("input"), dict):
        sys.exit(f"error: {where} must be an object with an object `input`, like '{EXAMPLE}'.")
    return job


def reserve_stdout() -> TextIO:
    """stdout for the result alone: what else this process and its children print goes to stderr."""
    result = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return result


def exit_if_invalid(job: dict[str, Any], local_files: bool, stdout: TextIO) -> None:
    """Answer an invalid request before the models are loaded, and exit."""
    try:
        parse_request(job["input"], local_files)
    except InvalidRequest as error:
        _print(error.to_output(), stdout)
        sys.exit(1)


def printing(handler: Handler, stdout: TextIO) -> Handler:
    """The same handler, which also prints the whole result: the SDK's log cuts a long one."""

    async def handle_and_print(job: dict[str, Any]) -> dict[str, Any]:
        result = await handler(job)
        _print(result, stdout)
        return result

    return handle_and_print


def _print(result: dict[str, Any], stdout: TextIO) -> None:
    print(json.dumps(result, ensure_ascii=False), file=stdout, flush=True)
