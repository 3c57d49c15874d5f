"""The handler without models: a cancellation wins over a failure; whose trouble a failure is.

Each admitted chunk has its results, and the log tells why a job failed.
"""

import asyncio
import errno
import resource
from types import SimpleNamespace

import handler
import pytest
from contract.errors import DownloadError, InvalidRequest
from contract.settings import Settings
from recording.source import recording
from speech.models.startup import raise_limit_of_open_files

JOB = {"id": "test", "input": {"audio_url": "http://a.example/b.wav"}}


@pytest.fixture
def run(monkeypatch):
    """Run a job whose transcription is replaced by a function."""
    monkeypatch.setattr(handler, "settings", Settings(), raising=False)

    def run(transcription) -> asyncio.Task:
        async def job() -> asyncio.Task:
            task = asyncio.create_task(handler.handler(JOB))
            monkeypatch.setattr(handler, "transcribe_recording", lambda *_: transcription(task))
            await asyncio.wait([task])
            return task

        return asyncio.run(job())

    return run


def test_a_job_that_is_cancelled_in_the_step_in_which_it_fails_gives_no_answer(run):
    async def fails_and_is_cancelled(job: asyncio.Task) -> None:
        async def fail() -> None:
            job.cancel()
            raise DownloadError("injected")

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(60)

    assert run(fails_and_is_cancelled).cancelled()


def test_a_job_whose_last_task_fails_answers_with_its_failure(run):
    async def fails_at_the_end(_) -> None:
        async def fail() -> None:
            await asyncio.sleep(0)
            raise DownloadError("injected")

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    assert run(fails_at_the_end).result()["error_code"] == "download_failed"


SHORTAGES = {
    "open files": OSError(errno.EMFILE, "Too many open files"),
    "disk": OSError(errno.ENOSPC, "No space left on device"),
    "memory": MemoryError(),
    "threads": RuntimeError("can't start new thread"),
}


@pytest.mark.parametrize("shortage", SHORTAGES.values(), ids=SHORTAGES)
def test_what_the_worker_lacks_is_its_own_trouble_and_retryable_fault_injected(run, shortage):
    async def fails(_) -> None:
        raise shortage

    output = run(fails).result()
    assert (output["error_code"], output["retryable"]) == ("worker_failed", True)


def test_an_error_that_is_no_shortage_stays_unexpected_fault_injected(run):
    async def fails(_) -> None:
        raise TimeoutError

    assert run(fails).result()["error_code"] == "internal_error"


def test_a_full_disk_under_a_file_in_the_request_is_the_workers_trouble(run, tmp_path):
    (tmp_path / "source").symlink_to("/dev/full")
    request = SimpleNamespace(audio_base64=b"sound")

    async def stored(_) -> None:
        async with recording(request, tmp_path, max_bytes=10, timeout=1, timer=None):
            pass

    output = run(stored).result()
    assert output["error_code"] == "worker_failed" and "No space left on device" in output["error"]


def test_the_log_has_the_sentence_of_a_failure(run, capfd):
    async def fails(_) -> None:
        raise DownloadError("The server is on fire.")

    run(fails)
    assert "download_failed: The server is on fire." in "".join(capfd.readouterr())


def test_the_log_has_no_sentence_of_an_invalid_request_because_it_quotes_the_request(run, capfd):
    async def fails(_) -> None:
        raise InvalidRequest("language is 'SECRET'.")

    assert "SECRET" in run(fails).result()["error"]
    logged = "".join(capfd.readouterr())
    assert "input_invalid" in logged and "SECRET" not in logged


def test_the_limit_of_open_files_is_raised_to_what_the_system_allows():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        raise_limit_of_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
