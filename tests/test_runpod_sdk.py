"""What the worker changes in RunPod's SDK, on the worker's process with scripted models."""

import asyncio
import inspect
import json
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import runpod
import runpod_sdk
import soundfile
from recording.chunk import SAMPLE_RATE
from runpod.serverless import worker as sdk_worker
from runpod.serverless.modules import rp_http, rp_job, rp_scale
from scripted_worker import spoken
from shutdown import Shutdown
from standin import REPLY_LIMIT, Platform, until
from test_shutdown import ScriptedWorker, scripted

PARTITION_SECONDS = 20
TAKES = ("job-take", "job-take-batch")


@pytest.fixture(scope="module")
def worker(tmp_path_factory) -> Iterator[ScriptedWorker]:
    with scripted(tmp_path_factory.mktemp("worker")) as worker:
        yield worker


@pytest.fixture
def platform(worker) -> Iterator[Platform]:
    """The platform of the worker, without an outage before and after the test."""
    yield worker.platform
    worker.platform.outage, worker.platform.reply_limit = None, REPLY_LIMIT
    worker.platform.fail_results = worker.platform.lose_answers = 0


@pytest.fixture
def short(file_server) -> dict:
    soundfile.write(file_server.folder / "short.wav", spoken(10), SAMPLE_RATE)
    return {"audio_url": file_server.url("short.wav")}


def sends_begun(platform: Platform) -> int:
    return sum(refusal.call == "job-done" for refusal in platform.refused)


# results


@pytest.mark.parametrize("outage", ["reset", 429, 503])
def test_a_result_is_delivered_after_an_outage(platform, short, outage):
    """Four attempts fail. The SDK makes one after a lost connection or a 429, three after a 503."""
    platform.refused.clear()
    job_id = platform.submit(short)
    until(lambda: platform.jobs[job_id].taken)
    platform.outage = outage
    until(lambda: sends_begun(platform) >= 4, 60)
    platform.outage = None
    assert platform.wait(job_id, 60)["output"]["text"] and platform.jobs[job_id].answers == 1


def test_a_partition_of_twenty_seconds_loses_no_result(platform, short):
    jobs = [platform.submit(short) for _ in range(4)]
    until(lambda: all(platform.jobs[job_id].taken for job_id in jobs))
    platform.outage = "reset"
    time.sleep(PARTITION_SECONDS)
    platform.outage = None
    assert {platform.wait(job_id, 60)["status"] for job_id in jobs} == {"COMPLETED"}
    assert platform.wait(platform.submit(short), 60)["status"] == "COMPLETED"


def test_other_jobs_are_taken_while_a_result_waits(platform, short):
    platform.fail_results = 1000
    first = platform.submit(short)
    until(lambda: len(platform.jobs[first].results) >= 4, 60)
    second = platform.submit(short)
    until(lambda: platform.jobs[second].results)
    platform.fail_results = 0
    assert {platform.wait(job_id, 60)["status"] for job_id in (first, second)} == {"COMPLETED"}


def test_a_result_whose_answer_was_lost_is_posted_again_unchanged(platform, short):
    platform.lose_answers = 1
    job_id = platform.submit(short)
    first, second = until(
        lambda: len(platform.jobs[job_id].results) == 2 and platform.jobs[job_id].results, 60
    )
    assert first.body == second.body and platform.jobs[job_id].status == "COMPLETED"


def test_a_result_that_the_platform_refuses_is_posted_once(platform, short):
    platform.reply_limit = 10
    job_id = platform.submit(short)
    until(lambda: platform.jobs[job_id].results)
    platform.reply_limit = REPLY_LIMIT
    time.sleep(4)  # the first pause is MIN_PAUSE_SECONDS
    assert [post.answer for post in platform.jobs[job_id].results] == [400]


def test_cancelling_a_job_ends_the_attempts_to_send_its_result(platform, short):
    platform.fail_results = 1000
    job_id = platform.submit(short)
    job = platform.jobs[job_id]
    until(lambda: job.results)
    platform.cancel(job_id)
    until(lambda: job.stopped)
    sent = until(lambda: job_id not in platform.pings[-1].jobs and len(job.results))
    time.sleep(4)
    assert len(job.results) == sent


async def test_a_platform_that_never_answers_ends_the_attempts_in_time_fault_injected(monkeypatch):
    async def never(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(rp_http, "_transmit", never)
    monkeypatch.setattr(runpod_sdk, "MAX_ATTEMPT_SECONDS", 0.05)
    monkeypatch.setattr(runpod_sdk, "MIN_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(runpod_sdk, "MAX_SEND_SECONDS", 0.5)
    await runpod_sdk.send_result(Shutdown(), SimpleNamespace(headers={}), {}, {"id": "1"})


# taking jobs


@pytest.mark.parametrize("outage", ["reset", 500])
def test_the_worker_pauses_between_attempts_to_take_a_job_during_an_outage(platform, short, outage):
    platform.outage = outage
    until(lambda: any(refusal.call in TAKES for refusal in platform.refused))
    platform.refused.clear()
    time.sleep(5)
    calls = Counter(refusal.call for refusal in list(platform.refused))
    platform.outage = None
    assert 1 <= sum(calls[call] for call in TAKES) <= 20  # the SDK alone makes thousands
    assert platform.wait(platform.submit(short), 60)["status"] == "COMPLETED"


# the SDK's functions that are called or replaced: a new version may change them


def test_the_sdk_is_the_version_whose_functions_are_replaced():
    assert runpod.__version__ == "1.12.0"


def test_the_sdk_calls_what_is_replaced():
    assert "await send_result(session, job_result, job, is_stream=is_stream)" in inspect.getsource(
        rp_job.handle_job
    )
    assert "rp_scale.JobScaler(config)" in inspect.getsource(sdk_worker.run_worker)
    assert "self.jobs_fetcher(session, jobs_needed)" in inspect.getsource(
        rp_scale.JobScaler.get_jobs
    )
    assert "signal.signal(signal.SIGTERM, self.handle_shutdown)" in inspect.getsource(
        rp_scale.JobScaler.start
    )


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_result_is_posted_as_the_sdk_posts_it(is_stream, monkeypatch):
    async def transmit(session, url, job_data):
        posts.append((dict(session.headers), url, job_data))

    posts = []
    monkeypatch.setattr(rp_http, "_transmit", transmit)
    result, job = {"output": {"text": "größer 東京"}, "stopPod": True}, {"id": "job-1", "input": {}}
    await rp_http.send_result(SimpleNamespace(headers={}), result, job, is_stream)
    await runpod_sdk.send_result(Shutdown(), SimpleNamespace(headers={}), result, job, is_stream)
    assert posts[0] == posts[1] and json.loads(posts[0][2]) == result


def test_transmit_takes_a_session_an_address_and_a_body_and_raises_for_a_status():
    assert list(inspect.signature(rp_http._transmit).parameters) == [
        "client_session",
        "url",
        "job_data",
    ]
    assert '"raise_for_status": True' in inspect.getsource(rp_http._transmit)
