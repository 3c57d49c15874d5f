"""The error tree is part of the contract: its codes never change."""

import json

import contract.errors as errors
import pytest
from contract.errors import WorkerError

ALL = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, WorkerError)]
STABLE = {  # code → retryable; clients rely on both
    "internal_error": False,
    "input_invalid": False,
    "download_failed": True,
    "address_refused": False,
    "host_not_found": False,
    "tls_failed": False,
    "source_refused": False,
    "download_too_large": False,
    "download_timeout": True,
    "audio_undecodable": False,
    "audio_empty": False,
    "audio_too_long": False,
    "engine_dead": True,
    "transcript_incomplete": False,  # True after a timeout
    "deadline_exceeded": True,
    "worker_failed": True,
    "worker_stopped": True,
    "result_too_large": False,
}


def test_codes_and_their_retryable_flags_are_stable():
    assert {c.code: c.retryable for c in ALL} == STABLE


def test_every_error_has_a_code_of_its_own():
    assert len({c.code for c in ALL}) == len(ALL)
    assert all("code" in vars(c) for c in ALL)


@pytest.mark.parametrize(
    "reasons, retryable",
    [(["engine_error"], False), (["timeout"], True), (["engine_error", "timeout"], True)],
)
def test_an_incomplete_transcript_is_retryable_only_after_a_timeout(reasons, retryable):
    spans = [{"start": i, "end": i + 1, "reason": reason} for i, reason in enumerate(reasons)]
    assert errors.TranscriptIncomplete.in_spans(spans).to_output()["retryable"] is retryable


@pytest.mark.parametrize("error", ALL)
def test_every_error_has_a_docstring(error):
    assert error.__doc__ and error.__doc__ is not WorkerError.__doc__ or error is WorkerError


@pytest.mark.parametrize("error", ALL)
def test_a_failed_jobs_result_is_a_sentence_a_code_and_whether_to_retry(error):
    output = error("The host 例.com does not resolve.").to_output()
    assert output == {
        "error": "The host 例.com does not resolve.",
        "error_message": "The host 例.com does not resolve.",
        "error_code": error.code,
        "retryable": error.retryable,
    }
    assert json.loads(json.dumps(output)) == output
