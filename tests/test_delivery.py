"""Results within RunPod's limit: measured as they are sent, and reduced in fixed steps.

What is sent is valid JSON. The whole result goes to a bucket.
"""

import asyncio
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import result.bucket as bucket_module
import result.delivery as delivery
from contract.errors import ResultTooLarge
from contract.request import Request
from contract.settings import Settings
from hypothesis import given, settings
from hypothesis import strategies as st
from result.bucket import Bucket, bucket_for
from result.delivery import deliver, size_of
from result.transcript import merge
from test_trust import chunk_result

SPOKEN = " ".join(["Alpha bravo charlie, delta echo foxtrot."] * 40)
HOUR = [chunk_result(SPOKEN, start=60.0 * i, seconds=59) for i in range(60)]
WORDS = Request("http://a/b")
S3 = {
    "endpointUrl": "https://s3.example.com",
    "accessId": "id",
    "accessSecret": "secret",
    "bucketName": "talks",
}
BUCKET = Bucket("https://s3.example.com", "id", "secret", "talks")
SRC = Path(delivery.__file__).parent.parent
PUBLIC = "93.184.215.14"
SETTINGS = Settings(model_name="m", aligner_name="a")
USAGE = {"chunks": 60}


def delivered(
    max_bytes: int, request: Request = WORDS, bucket: Bucket | None = None, chunks=HOUR
) -> dict:
    return asyncio.run(deliver(merge(chunks, 3600), request, USAGE, max_bytes, bucket, "job.json"))


WHOLE = delivered(2**30)
SMALLER = 900_000  # bytes, less than its compact form


def test_a_result_that_fits_is_sent_whole():
    assert delivered(size_of(WHOLE)) == WHOLE and "reduced_to" not in WHOLE


def test_a_result_one_byte_over_the_limit_loses_offsets_and_lengths():
    output = delivered(size_of(WHOLE) - 1)
    assert output["reduced_to"] == "compact" and output["text"] == WHOLE["text"]
    assert output["segments"] == [
        {k: s[k] for k in ("start", "end", "text", "estimated")} for s in WHOLE["segments"]
    ]


def test_the_next_reduction_replaces_words_by_sentences():
    compact = size_of(delivered(size_of(WHOLE) - 1))
    for level in ("word", "both"):
        output = delivered(compact - 1, replace(WORDS, segment_level=level))
        assert output["reduced_to"] == "sentences" and "sentences" not in output
        assert " ".join(s["text"] for s in output["segments"]) == output["text"] == WHOLE["text"]


def test_without_timestamps_each_chunk_is_a_segment_and_the_next_reduction_is_the_text():
    request = replace(WORDS, timestamps=False)
    chunks = [replace(chunk, words=()) for chunk in HOUR]
    whole = delivered(2**30, request, chunks=chunks)
    assert [segment["text"] for segment in whole["segments"]] == [chunk.text for chunk in chunks]
    for segment in whole["segments"]:
        end = segment["offset"] + segment["length"]
        assert whole["text"][segment["offset"] : end] == segment["text"]
    compact = delivered(size_of(whole) - 1, request, chunks=chunks)
    smaller = delivered(size_of(compact) - 1, request, chunks=chunks)
    assert [compact["reduced_to"], smaller["reduced_to"]] == ["compact", "text"]


def test_the_last_reduction_leaves_only_the_text():
    output = delivered(len(WHOLE["text"]) + 1000)
    assert (output["reduced_to"], output["segments"], output["text"]) == ("text", [], WHOLE["text"])


@pytest.mark.parametrize("form", ["text", "srt", "vtt", "verbose_json"])
def test_every_format_comes_with_text_and_languages_and_without_segments(form):
    output = delivered(2**30, replace(WORDS, output_format=form))
    assert {
        key: output[key] for key in ("language_detected", "language_code", "languages", "text")
    } == {key: WHOLE[key] for key in ("language_detected", "language_code", "languages", "text")}
    assert set(output) - set(WHOLE) == ({form} if form != "text" else set())
    assert "segments" not in output and {k: WHOLE.get(k) for k in ("retries", "warnings")} == {
        k: output.get(k) for k in ("retries", "warnings")
    }


@pytest.mark.parametrize("form", ["srt", "vtt", "verbose_json"])
def test_a_format_that_is_too_large_is_reduced_to_the_text(form):
    request = replace(WORDS, output_format=form)
    output = delivered(size_of(delivered(2**30, request)) - 1, request)
    assert form not in output and (output["reduced_to"], output["text"]) == ("text", WHOLE["text"])


def test_verbose_json_has_openais_fields_with_the_times_of_the_json():
    found = delivered(2**30, replace(WORDS, output_format="verbose_json"))["verbose_json"]
    sentences = delivered(2**30, replace(WORDS, segment_level="sentence"))["segments"]
    assert (found["task"], found["language"], found["duration"], found["text"]) == (
        "transcribe",
        "english",
        3600,
        WHOLE["text"],
    )
    assert [(w["word"], w["start"], w["end"]) for w in found["words"]] == [
        (w["text"], w["start"], w["end"]) for w in WHOLE["segments"]
    ]
    assert [(s["id"], s["text"], s["start"], s["end"]) for s in found["segments"]] == [
        (i, s["text"], s["start"], s["end"]) for i, s in enumerate(sentences)
    ]


def test_a_text_over_the_limit_is_an_error_never_a_shorter_text():
    with pytest.raises(ResultTooLarge, match="send the recording in parts"):
        delivered(10_000)


@given(st.integers(1, 20), st.integers(10_000, 400_000))
@settings(max_examples=30)
def test_a_result_is_never_larger_than_allowed_and_never_without_its_text(minutes, max_bytes):
    chunks = HOUR[:minutes]
    try:
        output = delivered(max_bytes, chunks=chunks)
    except ResultTooLarge:
        assert len(merge(chunks, 3600).text) > max_bytes - 1000
    else:
        assert size_of(output) <= max_bytes and output["text"] == merge(chunks, 3600).text


def test_the_size_is_that_of_the_bytes_the_sdk_sends():
    output = {"text": "天 👍 é"}
    assert size_of(output) == len(json.dumps({"output": output}, ensure_ascii=False).encode())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"], ids=repr)
def test_a_value_that_is_not_valid_json_is_refused(value):
    with pytest.raises(ValueError):
        size_of({"value": value})


@pytest.mark.parametrize("max_bytes", [2**30, SMALLER, len(WHOLE["text"]) + 1000])
@pytest.mark.parametrize("form", ["json", "srt", "verbose_json"])
def test_duration_and_usage_are_in_every_result_however_reduced(max_bytes, form):
    output = delivered(max_bytes, replace(WORDS, output_format=form))
    assert (output["duration"], output["usage"]) == (3600, USAGE)


# the bucket


def test_the_requests_own_bucket_comes_before_the_workers():
    own = replace(
        SETTINGS,
        bucket_endpoint_url="http://minio:9000",
        bucket_access_key_id="k",
        bucket_secret_access_key="s",
    )
    assert bucket_for({}, SETTINGS) is None
    assert bucket_for({}, own) == Bucket("http://minio:9000", "k", "s", "", trusted=True)
    assert bucket_for({"s3Config": S3}, own) == Bucket(
        "https://s3.example.com", "id", "secret", "talks"
    )


@pytest.mark.parametrize(
    "config", [None, [], "s3", {}, S3 | {"accessId": 7}, S3 | {"bucketName": ""}], ids=repr
)
def test_an_incomplete_s3_config_is_ignored(config):
    assert bucket_for({"s3Config": config}, SETTINGS) is None


def test_a_failed_upload_keeps_the_text_and_adds_a_warning():
    """A loopback address in a request is refused before anything is sent to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", raising=False)
        output = delivered(SMALLER, bucket=Bucket("http://127.0.0.1:9", "id", "secret", "talks"))
    assert (
        output["text"] == WHOLE["text"]
        and "result_url" not in output
        and "could not be uploaded" in output["warnings"][0]
    )


async def deliver_small(**more: object) -> dict:
    return await deliver(merge(HOUR, 3600), WORDS, USAGE, SMALLER, BUCKET, "job.json", **more)


@pytest.fixture
def hanging(monkeypatch) -> Iterator[list]:
    """Uploads hang until the end of the test; the names of their threads."""
    over, begun = threading.Event(), []

    def hang(*_: object) -> str:
        begun.append(threading.current_thread().name)
        over.wait(60)
        return "http://url"

    monkeypatch.setattr(delivery, "upload", hang)
    yield begun
    over.set()


async def test_an_upload_that_hangs_is_given_up_in_time_and_adds_a_warning_fault_injected(hanging):
    output = await deliver_small(upload_time=asyncio.timeout(0.2))
    assert output["text"] == WHOLE["text"] and "could not be uploaded" in output["warnings"][-1]
    assert hanging and "result_url" not in output


async def test_uploads_that_hang_take_no_thread_from_other_work_fault_injected(hanging):
    """The default executor has four threads more than the machine has cores."""
    count = (os.cpu_count() or 1) + 8
    delivery_of = lambda: deliver_small(upload_time=asyncio.timeout(60))
    uploads = [asyncio.create_task(delivery_of()) for _ in range(count)]
    async with asyncio.timeout(50):
        while len(hanging) < count:
            await asyncio.sleep(0.05)
        assert await asyncio.to_thread(lambda: "free") == "free"
    for upload in uploads:
        upload.cancel()
    ends = await asyncio.gather(*uploads, return_exceptions=True)
    assert {type(end) for end in ends} == {asyncio.CancelledError}


async def test_an_upload_that_succeeds_gives_its_url_text_injected(monkeypatch):
    monkeypatch.setattr(delivery, "upload", lambda *_: "http://url")
    assert (await deliver_small())["result_url"] == "http://url"


def test_a_process_ends_although_an_upload_hangs(tmp_path):
    """The bucket accepts the connection and never answers."""
    program = """
import asyncio
from functools import partial
from result import bucket as module, delivery
bucket = module.Bucket("http://127.0.0.1:%d", "id", "secret", "talks", trusted=True)
async def main():
    async with asyncio.timeout(1):
        upload = partial(module.upload, b"b" * 100_000, bucket, "job.json")
        await delivery._in_own_thread(upload)
try:
    asyncio.run(main())
except TimeoutError:
    print("given up", flush=True)
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", program % server.getsockname()[1]]
        out = subprocess.run(command, cwd=SRC, capture_output=True, text=True, timeout=60)
    assert out.stdout.endswith("given up\n") and out.returncode == 0


def test_a_result_that_fits_is_not_uploaded(monkeypatch):
    monkeypatch.setattr(delivery, "upload", lambda *_: pytest.fail("uploaded"))
    assert (
        delivered(2**30, bucket=Bucket("https://s3.example.com", "id", "secret", "talks")) == WHOLE
    )


# a client's bucket


class Received(http.server.BaseHTTPRequestHandler):
    """Answers each PUT with the next of the server's statuses, and keeps what it got."""

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path.partition("?")[0], self.headers["Host"], content))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def private_server() -> Iterator[http.server.ThreadingHTTPServer]:
    """A bucket on loopback: its address is private."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Received)
    server.received, server.statuses = [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def clients_bucket(server: http.server.ThreadingHTTPServer, host: str = "127.0.0.1") -> Bucket:
    return Bucket(f"http://{host}:{server.server_port}", "id", "secret", "talks")


@pytest.fixture
def dialled(monkeypatch) -> list[str]:
    """bucket.example is public when it is looked up first, and loopback from then on.

    The addresses that the process connects to; none of them is reached, because connections to
    other machines fail here.
    """
    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", raising=False)
    look_up, answers, addresses = socket.getaddrinfo, [PUBLIC], []
    connect = socket.socket.connect

    def answer(host: str, *args: object, **kwargs: object) -> list:
        if host == "bucket.example":
            host = answers.pop() if answers else "127.0.0.1"
        return look_up(host, *args, **kwargs)

    def watched(self: socket.socket, address: tuple) -> None:
        addresses.append(address[0])
        if address[0] == PUBLIC:
            raise ConnectionRefusedError
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(socket.socket, "connect", watched)
    return addresses


def test_a_name_whose_second_look_up_is_private_is_connected_at_its_first_address(
    dialled, private_server
):
    output = delivered(SMALLER, bucket=clients_bucket(private_server, "bucket.example"))
    assert dialled == [PUBLIC] and private_server.received == []
    assert "could not be uploaded" in output["warnings"][-1]


def test_a_clients_bucket_gets_the_whole_result_under_the_jobs_name(private_server):
    output = delivered(SMALLER, bucket=clients_bucket(private_server, "localhost"))
    ((path, host, content),) = private_server.received
    assert (path, host) == ("/talks/job.json", f"localhost:{private_server.server_port}")
    assert json.loads(content) == WHOLE
    assert output["result_url"].startswith(f"http://{host}{path}?X-Amz-Algorithm=")


def test_an_upload_is_repeated_after_a_5xx(private_server, monkeypatch):
    monkeypatch.setattr(bucket_module, "PAUSE_SECONDS", 0)
    private_server.statuses = [503, 500]
    output = delivered(SMALLER, bucket=clients_bucket(private_server))
    assert "result_url" in output and len(private_server.received) == 3


def test_a_bucket_that_refuses_is_asked_once_and_gives_a_warning(private_server):
    private_server.statuses = [403]
    output = delivered(SMALLER, bucket=clients_bucket(private_server))
    assert "could not be uploaded" in output["warnings"][-1] and "result_url" not in output
    assert len(private_server.received) == 1
