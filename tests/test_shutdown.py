"""SIGTERM ends the worker, whatever hangs in it, and its jobs are answered first.

The models are scripted, all else is the worker's.
"""

import asyncio
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import soundfile
from recording.chunk import SAMPLE_RATE
from scripted_worker import spoken
from shutdown import MAX_CLOSE_SECONDS, Shutdown
from standin import Platform, running_worker, until
from test_entry_points import START_SECONDS, members

TRICKLE_SECONDS = 5
SCRIPT = Path(__file__).parent / "scripted_worker.py"
JOBS_SECONDS = 3.0  # SHUTDOWN_TIMEOUT_SECONDS of the worker
SETTINGS = {
    "MAX_CONCURRENCY": "4",
    "MAX_RESULT_BYTES": "10000",
    "SHUTDOWN_TIMEOUT_SECONDS": str(JOBS_SECONDS),
    # the tests' environment has shorter chunks, for the tiny checkpoints
    "CHUNK_TARGET_SECONDS": "60",
    "CHUNK_LIMIT_SECONDS": "180",
}
MAX_END_SECONDS = JOBS_SECONDS + MAX_CLOSE_SECONDS  # what the README promises


class ScriptedWorker:
    """A worker process with scripted models, and its platform."""

    def __init__(self, platform: Platform, process, temporary: str, log: Path):
        self.platform, self.process, self.temporary, self._log = platform, process, temporary, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ended(self) -> int:
        """The exit status after a SIGTERM; nothing of its session may be left."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(MAX_END_SECONDS)
        assert members(self.process.pid) == []
        return status


@contextmanager
def scripted(folder: Path, fault: str = "", **environment: str) -> Iterator[ScriptedWorker]:
    environment = SETTINGS | environment
    with closing(Platform()) as platform, tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-u", SCRIPT, fault]
        with running_worker(
            platform, command, folder / "log", **environment | {"TMPDIR": temporary}
        ) as process:
            worker = ScriptedWorker(platform, process, temporary, folder / "log")
            until(lambda: process.poll() is not None or platform.takes, START_SECONDS)
            assert process.poll() is None, worker.log
            yield worker


@contextmanager
def silent_server() -> Iterator[tuple[int, Callable[[], int]]]:
    """(port, how many have connected) of a server that accepts connections and never answers."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connections.append(server.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1], lambda: len(connections)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


@contextmanager
def half_a_file(path: Path) -> Iterator[str]:
    """The URL of a file whose second half never comes.

    A byte in TRICKLE_SECONDS keeps the download from breaking off.
    """
    data, over = path.read_bytes(), threading.Event()

    class Half(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(data[: len(data) // 2])
                while not over.wait(TRICKLE_SECONDS):
                    self.wfile.write(b"\0")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Half)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/half.wav"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def minutes(file_server) -> Path:
    """A recording whose result is over MAX_RESULT_BYTES."""
    path = file_server.folder / "noise.wav"
    soundfile.write(path, spoken(150), SAMPLE_RATE)
    return path


def bucket(port: int) -> dict:
    return {
        "endpointUrl": f"http://127.0.0.1:{port}",
        "accessId": "id",
        "accessSecret": "s",
        "bucketName": "b",
    }


def stopped(body: dict) -> bool:
    return failed_with(body, "worker_stopped", retryable=True)


def failed_with(body: dict, code: str, retryable: bool) -> bool:
    """Whether a job's answer says so, with its sentence in both places."""
    expected = {"error_message": body["error"], "error_code": code, "retryable": retryable}
    return body["status"] == "FAILED" and body["output"] == expected


@pytest.mark.parametrize("fault", ["aligner", "engine"])
def test_a_model_that_hangs_does_not_keep_the_worker_after_sigterm_fault_injected(
    fault, tmp_path, file_server, minutes
):
    with scripted(tmp_path, fault) as worker:
        job_id = worker.platform.submit({"audio_url": file_server.url(minutes.name)})
        until(
            lambda: (
                worker.platform.jobs[job_id].progress
                and worker.platform.jobs[job_id].progress[-1].body["output"]["phase"]
                == "transcribing"
            )
        )
        assert worker.ended() == 0
        assert stopped(worker.platform.jobs[job_id].body())


def test_a_download_that_hangs_does_not_keep_the_worker_after_sigterm(tmp_path, minutes):
    with scripted(tmp_path) as worker, half_a_file(minutes) as url:
        job_id = worker.platform.submit({"audio_url": url})
        until(lambda: worker.platform.jobs[job_id].progress)
        assert worker.ended() == 0
        assert stopped(worker.platform.jobs[job_id].body())


def test_an_upload_that_hangs_at_sigterm_keeps_neither_the_worker_nor_the_result(
    tmp_path, file_server, minutes
):
    with scripted(tmp_path) as worker, silent_server() as (port, connected):
        job_id = worker.platform.submit(
            {"audio_url": file_server.url(minutes.name)}, s3Config=bucket(port)
        )
        until(connected)
        assert worker.ended() == 0
        body = worker.platform.jobs[job_id].body()
        assert (
            body["status"] == "COMPLETED"
            and "could not be uploaded" in body["output"]["warnings"][-1]
        )


def test_a_platform_out_of_reach_does_not_keep_the_worker_after_sigterm(
    tmp_path, file_server, minutes
):
    with scripted(tmp_path) as worker:
        job_id = worker.platform.submit({"audio_url": file_server.url(minutes.name)})
        until(lambda: worker.platform.jobs[job_id].taken)
        worker.platform.outage = "reset"
        until(
            lambda: (
                any(refusal.call == "job-done" for refusal in worker.platform.refused)
                and "done in" in worker.log
            )
        )
        assert worker.ended() == 0
        assert "the result is lost" in worker.log


def test_a_worker_that_does_not_close_is_ended_with_its_pings_fault_injected(tmp_path):
    with scripted(tmp_path, "close") as worker:
        assert worker.ended() == 1
        assert "did not end in time" in worker.log


def test_after_sigterm_a_job_that_ends_in_time_is_answered(tmp_path, file_server, minutes):
    with scripted(tmp_path, SHUTDOWN_TIMEOUT_SECONDS="60") as worker:
        job_id = worker.platform.submit({"audio_url": file_server.url(minutes.name)})
        until(lambda: worker.platform.jobs[job_id].progress)
        assert worker.ended() == 0
        assert worker.platform.jobs[job_id].status == "COMPLETED"


def test_a_transcript_made_in_time_is_delivered_although_its_upload_hangs_until_the_deadline(
    tmp_path, file_server, minutes
):
    with scripted(tmp_path) as worker, silent_server() as (port, connected):
        policy = {"executionTimeout": 10_000}
        job_id = worker.platform.submit(
            {"audio_url": file_server.url(minutes.name)}, s3Config=bucket(port), policy=policy
        )
        body = worker.platform.wait(job_id, 60)
        assert connected() and body["status"] == "COMPLETED" and body["output"]["text"]
        assert "could not be uploaded" in body["output"]["warnings"][-1]


# the clock itself


async def seconds_in(limit) -> float:
    began = time.monotonic()
    with suppress(TimeoutError):
        async with limit:
            await asyncio.sleep(30)
    return time.monotonic() - began


async def test_a_shutdown_brings_a_running_timeout_forward():
    shutdown = Shutdown()
    waiting = asyncio.create_task(seconds_in(shutdown.timeout(None)))
    await asyncio.sleep(0)
    shutdown.begin(0.1)
    assert await waiting < 20


async def test_a_shutdown_limits_what_begins_after_it():
    shutdown = Shutdown()
    shutdown.begin(0)
    assert await seconds_in(shutdown.timeout(25)) < 20


async def test_a_shutdown_lengthens_no_timeout():
    shutdown = Shutdown()
    shutdown.begin(60)
    assert await seconds_in(shutdown.timeout(0.1)) < 20


async def test_a_second_shutdown_only_brings_the_end_forward():
    shutdown = Shutdown()
    shutdown.begin(5)
    first = shutdown.jobs_end
    shutdown.begin(50)
    assert shutdown.jobs_end == first
    shutdown.begin(0)
    assert shutdown.jobs_end < first
