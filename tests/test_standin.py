"""The stand-in platform with the real SDK in a toy worker, the Python client and the JavaScript
client.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
import requests
import runpod
from runpod.serverless.utils.rp_upload import upload_in_memory_object
from standin import ENDPOINT, KEY, REPLY_LIMIT, WORKER, Platform, running_worker, until

ROOT = Path(__file__).parent.parent
NODE = shutil.which("node")
CLIENT = ROOT / "tests" / "clients" / "client.mjs"
JAVASCRIPT = ROOT / ".venv" / "node" / "node_modules" / "runpod-sdk"  # put there by tests/run.sh

TOY = """
import asyncio, os, runpod

stopped = []

async def handler(job):
    do = job["input"]
    for step in do.get("steps", []):
        runpod.serverless.progress_update(job, step)
        await asyncio.sleep(0.5)
    try:
        while not os.path.exists(do.get("until", "/")):
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        stopped.append(job["id"])
        raise
    if do.get("raise"):
        raise ValueError("raised")
    if do.get("late"):
        asyncio.get_running_loop().call_later(0.5, runpod.serverless.progress_update, job, "late")
    return do.get("return", {"job": job, "stopped": stopped})

runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda _: 4})
"""

STREAMER = """
import asyncio, runpod

async def handler(job):
    for word in job["input"]["words"]:
        yield word
        await asyncio.sleep(0.1)

runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
print("after start()", flush=True)
"""


def connected(platform: Platform, folder: Path, program: str) -> Iterator[subprocess.Popen]:
    """A worker process that has asked for a job."""
    script, log = folder / "toy.py", folder / "toy.log"
    script.write_text(program)
    asked = len(platform.takes)
    with running_worker(platform, [sys.executable, "-u", script], log) as process:
        until(lambda: process.poll() is not None or len(platform.takes) > asked, 60)
        assert process.poll() is None, log.read_text()
        yield process


def last_ping(platform: Platform) -> set[str]:
    """The jobs that the worker last said it knows of."""
    return set(platform.pings[-1].jobs) if platform.pings else set()


@pytest.fixture(scope="module")
def served() -> Iterator[Platform]:
    platform = Platform()
    yield platform
    platform.close()


@pytest.fixture(scope="module")
def worker(served, tmp_path_factory) -> Iterator[subprocess.Popen]:
    yield from connected(served, tmp_path_factory.mktemp("toy"), TOY)


@pytest.fixture
def platform(served, worker) -> Platform:
    """The platform with its toy worker and its default limits."""
    served.reply_limit, served.fail_results, served.outage = REPLY_LIMIT, 0, None
    return served


@pytest.fixture
def alone() -> Iterator[Platform]:
    """A platform without a worker; the test may start one."""
    platform = Platform()
    yield platform
    platform.close()


@pytest.fixture
def hold(tmp_path) -> Iterator[tuple[dict, Callable]]:
    """(input of a job that runs until it is released, function that releases it)."""
    gate = tmp_path / "gate"
    yield {"until": str(gate)}, gate.touch
    gate.touch()


# -- one job


def test_a_webhook_gets_what_status_shows_once_the_job_has_ended(platform, hook):
    url, bodies, _ = hook
    job_id = platform.submit({"return": {"text": "ü"}}, webhook=url)
    shown = platform.wait(job_id)
    until(lambda: bodies)
    assert bodies == [shown] and shown["output"] == {"text": "ü"}


@pytest.mark.parametrize(("answers", "posts"), [([500], 2), ([404, 500], 3), ([500, 500, 500], 3)])
def test_a_webhook_is_posted_up_to_three_times(platform, hook, answers, posts):
    url, bodies, statuses = hook
    statuses += answers
    platform.wait(platform.submit({}, webhook=url))
    until(lambda: len(bodies) == posts and not platform._webhooks)


def test_the_worker_gets_the_request_and_the_client_its_result(platform):
    beside = {
        "policy": {"executionTimeout": 60_000},
        "s3Config": {"bucketName": "b"},
        "webhook": "http://127.0.0.1:9/",
    }
    job_id = platform.submit({"a": ["ü", None]}, **beside)
    body = platform.wait(job_id)
    assert body.keys() == {"id", "status", "output", "delayTime", "executionTime", "workerId"}
    assert body["status"] == "COMPLETED" and body["workerId"] == WORKER
    assert body["output"]["job"] == {"id": job_id, "input": {"a": ["ü", None]}} | beside
    job = platform.jobs[job_id]
    assert job.answers == 1 and len(job.results) == 1 and not job.stop_pod
    assert job.submitted <= job.taken <= job.finished
    assert {take.key for take in platform.takes} == {KEY}  # not that of a config.toml


def test_an_error_makes_a_job_failed_and_the_rest_its_output(platform):
    body = platform.wait(platform.submit({"return": {"error": "no", "code": 7}}))
    assert (body["status"], body["error"], body["output"]) == ("FAILED", "no", {"code": 7})


def test_what_a_handler_raises_reaches_the_client(platform):
    body = platform.wait(platform.submit({"raise": True}))
    assert body["status"] == "FAILED" and "output" not in body
    assert json.loads(body["error"])["error_message"] == "raised"


def test_refresh_worker_is_recorded_and_not_shown(platform):
    job_id = platform.submit({"return": {"a": 1, "refresh_worker": True}})
    assert platform.wait(job_id)["output"] == {"a": 1}
    assert platform.jobs[job_id].stop_pod


def test_progress_is_shown_until_there_is_a_result(platform, hold):
    do, let_go = hold
    job_id = platform.submit({"steps": ["one", {"two": 2}], **do})
    until(lambda: len(platform.jobs[job_id].progress) == 2)
    shown = requests.get(f"{platform.url}/status/{job_id}", timeout=10).json()
    assert shown["status"] == "IN_PROGRESS" and shown["output"] == {"two": 2}
    let_go()
    assert platform.wait(job_id)["output"]["job"]["id"] == job_id
    assert [post.body["output"] for post in platform.jobs[job_id].progress] == ["one", {"two": 2}]


def test_progress_that_comes_after_the_result_is_recorded_and_changes_nothing(platform):
    job_id = platform.submit({"late": True, "return": {"a": 1}})
    body = platform.wait(job_id)
    job = platform.jobs[job_id]
    until(lambda: job.progress)
    assert job.progress[0].at > job.results[0].at and job.body() == body


def test_a_result_over_the_limit_is_completed_without_output(platform):
    platform.reply_limit = 1000
    job_id = platform.submit({"return": {"text": "x" * 1000}})
    body = platform.wait(job_id)
    assert body["status"] == "COMPLETED" and "output" not in body
    assert [post.answer for post in platform.jobs[job_id].results] == [400]


def test_a_result_that_is_not_json_is_refused_and_the_job_never_answered(platform):
    """The SDK writes NaN as json.dumps does; the toy hands back what Python's json reads as NaN."""
    job_id = platform.submit({"return": {"a": float("nan")}})
    (post,) = until(lambda: platform.jobs[job_id].results)
    assert (post.body, post.answer) == ('{"output": {"a": NaN}}', 400)
    assert platform.jobs[job_id].status == "IN_PROGRESS"
    assert platform.cancel(job_id)["status"] == "CANCELLED"


def test_a_result_is_posted_again_after_a_500(platform):
    platform.fail_results = 1
    job_id = platform.submit({"return": {"a": 1}})
    assert platform.wait(job_id)["output"] == {"a": 1}
    assert [post.answer for post in platform.jobs[job_id].results] == [500, 200]


# -- several jobs, and their end


def test_four_jobs_run_at_once_and_the_pings_name_them(platform, hold):
    do, let_go = hold
    jobs = {platform.submit(do) for _ in range(4)}
    until(lambda: all(platform.jobs[job_id].taken for job_id in jobs))
    until(lambda: jobs == last_ping(platform))
    assert max(take.asked for take in platform.takes) == 4
    let_go()
    assert {platform.wait(job_id)["status"] for job_id in jobs} == {"COMPLETED"}


def test_a_queued_job_is_cancelled_before_any_worker_sees_it(alone):
    job_id = alone.submit({})
    assert alone.cancel(job_id) == {"id": job_id, "status": "CANCELLED"}
    assert alone.jobs[job_id].taken is None


def test_a_running_job_is_stopped_and_posts_nothing(platform, hold):
    do, _ = hold
    job_id, beside = platform.submit(do), platform.submit(do)
    until(lambda: {job_id, beside} <= last_ping(platform))
    assert platform.cancel(job_id)["status"] == "CANCELLED"
    until(lambda: job_id in platform.wait(platform.submit({}))["output"]["stopped"])
    assert platform.jobs[job_id].stopped and platform.jobs[job_id].results == []
    assert platform.jobs[beside].status == "IN_PROGRESS"
    platform.cancel(beside)


def test_a_result_for_a_cancelled_job_is_recorded_and_changes_nothing(alone):
    job_id = alone.submit({})
    requests.get(f"{alone.url}/job-take/one?gpu=SIM", timeout=10)
    alone.cancel(job_id)
    done = f"{alone.url}/job-done/one/{job_id}?gpu=SIM&isStream=false"
    assert requests.post(done, data='{"output": 1}', timeout=10).ok
    assert alone.jobs[job_id].answers == 1
    assert alone.wait(job_id)["status"] == "CANCELLED" and "output" not in alone.wait(job_id)


def test_a_job_over_its_execution_timeout_is_stopped(platform, hold):
    do, _ = hold
    job_id = platform.submit(do, policy={"executionTimeout": 500})
    assert platform.wait(job_id)["status"] == "TIMED_OUT"
    until(lambda: job_id in platform.wait(platform.submit({}))["output"]["stopped"])


def test_a_purge_empties_the_queue_and_health_counts(alone):
    jobs = [alone.submit({}), alone.submit({})]
    assert requests.get(f"{alone.url}/health", timeout=10).json()["jobs"]["inQueue"] == 2
    assert requests.post(f"{alone.url}/purge-queue", timeout=10).json() == {
        "removed": 2,
        "status": "completed",
    }
    assert {alone.wait(job_id)["status"] for job_id in jobs} == {"CANCELLED"}


def test_waiting_for_a_job_that_does_not_end_is_bounded(alone):
    job_id = alone.submit({})
    with pytest.raises(TimeoutError, match="IN_QUEUE"):
        alone.wait(job_id, timeout=0.1)
    answer = requests.get(f"{alone.url}/status-sync/{job_id}?wait=1", timeout=10).json()
    assert answer == {"id": job_id, "status": "IN_QUEUE"}


def test_malformed_requests_are_refused(alone):
    assert requests.post(f"{alone.url}/run", json={"audio_url": "x"}, timeout=10).status_code == 400
    assert requests.get(f"{alone.url}/status/nobody", timeout=10).status_code == 404


def test_the_open_poll_of_a_dead_worker_takes_no_job(alone):
    with pytest.raises(requests.Timeout):
        requests.get(f"{alone.url}/job-take/dead?gpu=SIM", timeout=0.2)
    job_id = alone.submit({})
    with pytest.raises(TimeoutError, match="IN_QUEUE"):
        alone.wait(job_id, timeout=0.2)
    assert requests.get(f"{alone.url}/job-take/next?gpu=SIM", timeout=10).json()["id"] == job_id


def test_a_batch_holds_what_there_is_in_order_and_no_more_than_asked(alone):
    jobs = [alone.submit({}) for _ in range(3)]
    batch = f"{alone.url}/job-take-batch/one?gpu=SIM&batch_size=2"
    given = [[job["id"] for job in requests.get(batch, timeout=10).json()] for _ in range(2)]
    assert given == [jobs[:2], jobs[2:]]
    assert [(take.asked, len(take.given)) for take in alone.takes] == [(2, 2), (2, 1)]


def test_closing_leaves_no_thread_though_a_poll_is_open():
    before = threading.enumerate()
    platform = Platform()
    with socket.create_connection(
        ("127.0.0.1", int(platform.base_url.split(":")[2].split("/")[0])), 10
    ) as poll:
        poll.sendall(f"GET /v2/{ENDPOINT}/job-take/one HTTP/1.1\r\nHost: stand-in\r\n\r\n".encode())
        assert requests.get(f"{platform.url}/health", timeout=10).ok  # it serves others meanwhile
        platform.close()
    assert threading.enumerate() == before


def test_sigterm_lets_the_running_job_finish_and_ends_with_0(alone, tmp_path):
    with contextmanager(connected)(alone, tmp_path, TOY) as process:
        job_id = alone.submit({"until": str(tmp_path / "gate"), "return": {"a": 1}})
        until(lambda: alone.jobs[job_id].taken)
        until(lambda: job_id in last_ping(alone))
        taken = len(alone.takes)
        process.send_signal(signal.SIGTERM)
        # The poll that was open is answered, and the worker asks no more.
        until(lambda: len(alone.takes) > taken)
        (tmp_path / "gate").touch()
        assert alone.wait(job_id)["output"] == {"a": 1} and alone.jobs[job_id].answers == 1
        assert process.wait(30) == 0


# -- the real clients


@pytest.fixture
def endpoint(monkeypatch) -> Callable[[Platform], runpod.Endpoint]:
    def of(platform: Platform) -> runpod.Endpoint:
        monkeypatch.setattr(runpod, "endpoint_url_base", platform.base_url)
        return runpod.Endpoint(ENDPOINT, api_key="any")

    return of


def javascript(platform: Platform, action: str, payload: object = None) -> object:
    if not NODE or not JAVASCRIPT.is_dir():
        pytest.skip("no node" if not NODE else f"no {JAVASCRIPT}")
    command = [NODE, CLIENT, platform.base_url, ENDPOINT, action, json.dumps(payload)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    (line,) = out.stdout.splitlines()
    return json.loads(line)


def test_the_python_client_runs_follows_and_cancels(platform, endpoint, hold):
    do, _ = hold
    client = endpoint(platform)
    assert client.run_sync({"input": {"return": {"a": 1}}}, timeout=30) == {"a": 1}
    job = client.run({"input": {"return": {"b": 2}}})
    assert job.output(timeout=30) == {"b": 2} and job.status() == "COMPLETED"
    held = client.run({"input": do})
    assert held.cancel()["status"] == "CANCELLED" and held.status() == "CANCELLED"
    assert client.health()["jobs"]["completed"] >= 2
    # The client drops the reason.
    assert client.run_sync({"input": {"return": {"error": "no"}}}, timeout=30) is None


def test_the_javascript_client_runs_follows_and_cancels(platform, hold):
    do, _ = hold
    body = javascript(platform, "runSync", {"input": {"return": {"a": 1}}})
    assert (body["output"], body["succeeded"]) == ({"a": 1}, True)
    body = javascript(platform, "runSync", {"input": {"return": {"error": "no", "code": 7}}})
    assert (body["status"], body["error"], body["succeeded"]) == ("FAILED", "no", False)
    job_id = javascript(platform, "run", {"input": do, "policy": {"lowPriority": True}})["id"]
    assert platform.jobs[job_id].request["policy"] == {"lowPriority": True}
    assert javascript(platform, "cancel", job_id)["status"] == "CANCELLED"
    assert javascript(platform, "status", job_id)["completed"]
    assert "404" in javascript(platform, "status", "nobody")["thrown"]
    assert (
        javascript(platform, "health")["workers"]["idle"]
        + javascript(platform, "health")["workers"]["running"]
        == 1
    )


def test_what_a_generator_yields_streams_and_its_worker_ends_on_sigterm(alone, endpoint, tmp_path):
    words = ["one", "two"]
    for process in connected(alone, tmp_path, STREAMER):
        assert list(endpoint(alone).run({"input": {"words": words}}).stream()) == words
        job_id = alone.submit({"words": words})
        assert alone.wait(job_id)["output"] == words  # return_aggregate_stream
        assert [post.body["output"] for post in alone.jobs[job_id].chunks] == words
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert "after start()" in (tmp_path / "toy.log").read_text()
    if NODE and JAVASCRIPT.is_dir():
        assert javascript(alone, "stream", job_id) == [{"output": word} for word in words]


# -- S3


def test_boto3_puts_and_presigned_addresses_get(alone, tmp_path):
    credentials = {
        "aws_access_key_id": "a",
        "aws_secret_access_key": "s",
        "region_name": "us-east-1",
    }
    client = boto3.client("s3", endpoint_url=alone.bucket_url, **credentials)
    client.put_object(
        Bucket="b", Key="job 1/text.srt", Body=b"1\n", ContentType="application/x-subrip"
    )
    assert alone.store.objects == {"b/job 1/text.srt": b"1\n"}
    url = client.generate_presigned_url(
        "get_object", Params={"Bucket": "b", "Key": "job 1/text.srt"}
    )
    answer = requests.get(url, timeout=10)
    assert (answer.content, answer.headers["Content-Type"]) == (b"1\n", "application/x-subrip")
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    client.upload_file(str(tmp_path / "file"), "b", "file")
    assert client.head_object(Bucket="b", Key="file")["ContentLength"] == 100_000
    assert requests.get(f"{alone.bucket_url}/b/nothing", timeout=10).status_code == 404


def test_the_sdk_uploads_in_one_piece_and_in_parts(alone):
    credentials = {"endpointUrl": alone.bucket_url, "accessId": "a", "accessSecret": "s"}
    for name, data in {"small": b"x", "large": bytes(range(256)) * 24_000}.items():
        url = upload_in_memory_object(name, data, credentials, "b", "job1")
        assert (
            alone.store.objects[f"b/job1/{name}"] == data == requests.get(url, timeout=10).content
        )
