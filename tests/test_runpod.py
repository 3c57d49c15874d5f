"""The real worker under the real SDK in production mode, with the real clients; only the platform
is a stand-in.

Jobs that must be slow are long recordings.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import clips
import psutil
import pytest
import requests
import runpod
import soundfile
from conftest import FileServer, _QuietFiles
from material import ENGLISH
from recording.chunk import SAMPLE_RATE
from standin import ENDPOINT, Platform, running_worker, until
from test_entry_points import HANDLER, START_SECONDS, members
from test_shutdown import failed_with, half_a_file
from test_standin import CLIENT, JAVASCRIPT, NODE

LONG_SECONDS = 3600
PAUSE_SECONDS = 5  # the README's client asks every 2 s
RESULT_BYTES = 12_000  # MAX_RESULT_BYTES of the worker: a recording of some minutes is over it


class Worker:
    """A worker process of a platform of its own, ready and waiting for jobs."""

    def __init__(self, platform: Platform, process: subprocess.Popen, temporary: str, log: Path):
        self.platform, self.process, self.temporary, self._log = platform, process, temporary, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def files(self) -> list[str]:
        """Temp folders of jobs."""
        return [name for name in os.listdir(self.temporary) if name.startswith("job-")]

    def decoders(self) -> list[psutil.Process]:
        return [
            p for p in self.children() if any(part.endswith("/decoder") for part in _command(p))
        ]

    def engine(self) -> psutil.Process:
        return next(
            p
            for p in self.children()
            if "EngineCore" in p.name() or any("EngineCore" in part for part in _command(p))
        )

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@contextmanager
def started(folder: Path, **environment: str) -> Iterator[Worker]:
    """A worker process of a platform of its own, both ended with the context."""
    # a short path: the engine's sockets live in it
    with closing(Platform()) as platform, tempfile.TemporaryDirectory() as temporary:
        environment = (
            {"MAX_CONCURRENCY": "4", "MAX_RESULT_BYTES": str(RESULT_BYTES)}
            | environment
            | {"TMPDIR": temporary}
        )
        with running_worker(
            platform, [sys.executable, "-u", HANDLER], folder / "log", **environment
        ) as process:
            worker = Worker(platform, process, temporary, folder / "log")
            until(lambda: process.poll() is not None or platform.takes, START_SECONDS)
            assert process.poll() is None, worker.log
            yield worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory) -> Iterator[Worker]:
    with started(tmp_path_factory.mktemp("worker")) as worker:
        yield worker


@pytest.fixture
def platform(worker) -> Platform:
    return worker.platform


@pytest.fixture(scope="module")
def recordings(file_server) -> dict[str, str]:
    """URLs of a few seconds, of two minutes and of an hour of speech."""
    minutes = clips.recording(ENGLISH, 120, 5).pcm
    soundfile.write(file_server.folder / "short.wav", SHORT.pcm, SAMPLE_RATE)
    soundfile.write(file_server.folder / "minutes.wav", minutes, SAMPLE_RATE)
    with soundfile.SoundFile(file_server.folder / "long.flac", "w", SAMPLE_RATE, 1) as file:
        for _ in range(LONG_SECONDS * SAMPLE_RATE // len(minutes)):
            file.write(minutes)
    return {
        name: file_server.url(f"{name}.{suffix}")
        for name, suffix in (("short", "wav"), ("minutes", "wav"), ("long", "flac"))
    }


SHORT = min((u for u in ENGLISH if 4.5 < u.duration < 5.5), key=lambda u: u.duration)


@pytest.fixture
def short(recordings) -> dict:
    return {"audio_url": recordings["short"]}


@pytest.fixture
def long(recordings) -> dict:
    return {"audio_url": recordings["long"]}


@pytest.fixture
def running_long(worker, long) -> Iterator[str]:
    """An hour's job on its way; cancelled at the end."""
    job_id = worker.platform.submit(long)
    until(lambda: len(worker.platform.jobs[job_id].progress) > 2)
    yield job_id
    worker.platform.cancel(job_id)
    until(lambda: not worker.files())


# readiness


def test_the_engine_is_up_and_has_passed_the_fitness_check_before_the_first_take(worker):
    """`started` returns once the worker has asked the platform for a job."""
    log = worker.log
    assert "ready after" in log and log.index("ready after") < log.index(
        "Running 1 fitness check"
    ) < log.index("All fitness checks passed")


# clients


def test_the_python_client_gets_a_transcript_an_error_and_a_cancellation(
    platform, short, long, monkeypatch
):
    monkeypatch.setattr(runpod, "endpoint_url_base", platform.base_url)
    client = runpod.Endpoint(ENDPOINT, api_key="any")
    assert client.run_sync({"input": short}, timeout=60)["text"] == SHORT.text
    job = client.run({"input": {"language": "English"}})
    assert job.output(timeout=60)["error_code"] == "input_invalid" and job.status() == "FAILED"
    job = client.run({"input": long})
    until(lambda: job.status() == "IN_PROGRESS")
    job.cancel()
    assert job.status() == "CANCELLED"
    assert client.health()["jobs"]["inProgress"] == 0


@pytest.mark.skipif(
    not NODE or not JAVASCRIPT.exists(), reason="Node.js or its runpod-sdk is not installed"
)
def test_the_javascript_client_gets_a_transcript_an_error_and_a_cancellation(
    platform, short, recordings, file_server
):
    """The cancelled job cannot end by itself: half of its recording never comes."""

    def ask(action: str, payload: object) -> dict:
        command = [NODE, CLIENT, platform.base_url, ENDPOINT, action, json.dumps(payload)]
        return json.loads(
            subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        )

    done = ask("runSync", {"input": short})
    assert done["status"] == "COMPLETED" and done["output"]["text"] == SHORT.text
    failed = ask("runSync", {"input": {"language": "English"}})
    assert failed["status"] == "FAILED" and "audio_url is missing" in failed["error"]
    with half_a_file(file_server.folder / "minutes.wav") as endless:
        job = ask("run", {"input": {"audio_url": endless}})
        seen = until(lambda: (body := ask("status", job["id"])).get("output") and body, 60)
        assert seen["status"] == "IN_PROGRESS", seen
        ask("cancel", job["id"])
        seen = ask("status", job["id"])
        assert seen["status"] == "CANCELLED", seen


@pytest.fixture(scope="module")
def slow_url(recordings, file_server) -> Iterator[str]:
    """The URL of two minutes of speech, from a server that pauses amid the file."""

    class Pausing(_QuietFiles):
        def copyfile(self, source, outputfile):
            content = source.read()
            outputfile.write(content[: len(content) // 2])
            outputfile.flush()
            time.sleep(PAUSE_SECONDS)
            outputfile.write(content[len(content) // 2 :])

    server = FileServer(file_server.folder, Pausing)
    yield server.url("minutes.wav")
    server.close()


README = (Path(__file__).parent.parent / "README.md").read_text()


def snippet(section: str, language: str, platform: Platform, audio_url: str) -> str:
    """The one block of that language in a section of the README, with the stand-in's addresses in
    the place of RunPod's.
    """
    (code,) = re.findall(
        rf"```{language}\n(.*?)```",
        README.split(f"\n## {section}\n")[1].split("\n## ")[0],
        re.DOTALL,
    )
    for named, meant in (
        ("https://api.runpod.ai/v2", platform.base_url),
        ("ENDPOINT_ID", ENDPOINT),
    ):
        code = code.replace(named, meant)
    return re.sub(r"https://[^\"]+\.(?:mp3|wav)", audio_url, code)


def printed(command: list[str], code: str, **environment: str) -> str:
    done = subprocess.run(
        command,
        input=code,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"RUNPOD_API_KEY": "any"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq")), reason="curl or jq is not installed"
)
def test_the_readmes_curl_commands_wait_and_ask(platform, recordings, slow_url):
    quick = json.loads(
        printed(["bash"], snippet("Quick start", "bash", platform, recordings["short"]))
    )
    assert quick["output"]["text"] == SHORT.text
    (example,) = re.findall(
        r"```json\n(.*?)```", README.split("\n## Quick start\n")[1].split("\n## ")[0], re.DOTALL
    )
    assert set(quick) == set(json.loads(example))
    *earlier, last = map(
        json.loads,
        printed(["bash"], snippet("Clients", "bash", platform, slow_url)).splitlines(),
    )
    assert last["status"] == "COMPLETED" and last["output"]["text"]
    assert any(isinstance(job.get("output"), dict) for job in earlier)


def test_the_readmes_python_waits_and_asks(platform, recordings):
    code = snippet("Clients", "python", platform, recordings["short"])
    lines = printed(
        [sys.executable, "-"], code, RUNPOD_ENDPOINT_BASE_URL=platform.base_url
    ).splitlines()
    assert (
        lines[0] == SHORT.text and lines[-1].startswith("COMPLETED {") and SHORT.text in lines[-1]
    )


@pytest.mark.skipif(
    not NODE or not JAVASCRIPT.exists(), reason="Node.js or its runpod-sdk is not installed"
)
def test_the_readmes_javascript_waits_and_asks(platform, recordings):
    """The client takes its address as an option only."""
    code = snippet("Clients", "javascript", platform, recordings["short"])
    code = code.replace(
        "process.env.RUNPOD_API_KEY)",
        f"process.env.RUNPOD_API_KEY, {{ baseUrl: {json.dumps(platform.base_url)} }})",
    )
    packages = (JAVASCRIPT.parent.parent / "package.json").as_uri()
    imported = (
        f'import {{ createRequire }} from "node:module";\nconst {{ default: runpodSdk }} = '
        f'await import(createRequire({json.dumps(packages)}).resolve("runpod-sdk"));'
    )
    code, found = re.subn(r'import runpodSdk from "runpod-sdk";.*', lambda _: imported, code)
    output = printed([NODE, "--input-type=module"], code)
    assert found == 1 and f"COMPLETED {SHORT.text}" in output and output.count("COMPLETED") >= 2


def test_the_readmes_clients_show_why_a_job_failed(platform, file_server):
    missing = file_server.url("missing.mp3")
    code = snippet("Clients", "python", platform, missing)
    lines = printed(
        [sys.executable, "-"], code, RUNPOD_ENDPOINT_BASE_URL=platform.base_url
    ).splitlines()
    assert "answered 404" in lines[0] and lines[-1].startswith("FAILED {")
    assert "answered 404" in lines[-1]
    if shutil.which("curl") and shutil.which("jq"):
        answer = printed(["bash"], snippet("Clients", "bash", platform, missing)).splitlines()[-1]
        assert "answered 404" in json.loads(answer)["output"]["error_message"]


def test_the_readmes_webhook_gets_what_status_shows(platform, recordings, hook):
    url, bodies, _ = hook
    (fragment,) = re.findall(r'`("webhook": "[^`]+")`', README)
    job_id = platform.submit(
        {"audio_url": recordings["short"]}, **json.loads(f"{{{fragment}}}") | {"webhook": url}
    )
    until(lambda: bodies)
    (body,) = bodies
    assert body["id"] == job_id and body["output"]["text"] == SHORT.text


def test_nothing_is_streamed_and_the_final_answer_is_a_plain_object(platform, short):
    """With a generator as handler, the output of every job would be a list."""
    job_id = platform.submit(short | {"stream": True})
    assert isinstance(platform.wait(job_id, 60)["output"], dict)
    assert requests.get(f"{platform.url}/stream/{job_id}", timeout=30).json() == {
        "status": "COMPLETED",
        "stream": [],
    }


# many jobs, one engine


def test_a_short_job_does_not_wait_for_a_long_one(platform, short, running_long):
    for _ in range(3):
        assert platform.wait(platform.submit(short), 120)["output"]["text"] == SHORT.text
    assert platform.jobs[running_long].status == "IN_PROGRESS"


def test_a_jobs_output_is_the_same_alone_and_beside_others(platform, recordings, running_long):
    job = {"audio_url": recordings["minutes"]}
    # The seconds in its usage differ.
    answered = lambda job_id: json.dumps(platform.wait(job_id, 120)["output"] | {"usage": None})
    beside = [platform.submit(job) for _ in range(2)]
    together = [answered(job_id) for job_id in beside]
    platform.cancel(running_long)
    assert {*together} == {answered(platform.submit(job))}


# progress


def test_progress_rises_at_most_once_a_second_and_ends_before_the_result(platform, recordings):
    # Chunk by chunk it takes some seconds.
    job_id = platform.submit({"audio_url": recordings["minutes"], "use_previous_context": True})
    platform.wait(job_id, 120)
    time.sleep(1.5)
    job = platform.jobs[job_id]
    posts = [post.body["output"] for post in job.progress]
    assert len(posts) >= 3 and set(posts[0]) == {
        "phase",
        "seconds_known",
        "seconds_done",
        "chunks_done",
    }
    phases = ["downloading", "decoding", "transcribing"]
    for a, b in zip(posts, posts[1:]):
        assert phases.index(a["phase"]) <= phases.index(b["phase"])
        assert (
            all(a[name] <= b[name] for name in ("seconds_known", "seconds_done", "chunks_done"))
            and a != b
        )
    assert all(post["seconds_done"] <= post["seconds_known"] + 0.1 for post in posts)
    assert all(b.at - a.at > 0.8 for a, b in zip(job.progress, job.progress[1:]))
    assert job.progress[-1].at < job.results[0].at and job.answers == 1


# cancel and deadline


def test_a_cancelled_job_leaves_no_file_and_no_decoder_and_another_job_completes(
    worker, platform, recordings, running_long
):
    other = platform.submit({"audio_url": recordings["minutes"]})
    until(lambda: platform.jobs[other].progress)
    platform.cancel(running_long)
    job = platform.jobs[running_long]
    until(lambda: job.stopped)
    until(lambda: len(worker.files()) <= (platform.jobs[other].status == "IN_PROGRESS"))
    print(f"\ngone {time.monotonic() - job.stopped:.2f} s after the stop signal")
    assert platform.wait(other, 120)["status"] == "COMPLETED" and job.results == []
    assert worker.files() == [] and worker.decoders() == []


def test_a_job_fails_with_deadline_exceeded_before_the_platform_kills_it(
    worker, platform, recordings, file_server
):
    """Half of its recording never comes."""
    with half_a_file(file_server.folder / "minutes.wav") as endless:
        job_id = platform.submit({"audio_url": endless}, policy={"executionTimeout": 10_000})
        body = platform.wait(job_id, 60)
    assert failed_with(body, "deadline_exceeded", retryable=True)
    assert "10000 ms" in body["error"]
    until(lambda: worker.files() == [] and worker.decoders() == [])


# the size of a result


def test_a_result_over_the_limit_is_reduced_not_dropped(platform, recordings):
    output = platform.wait(
        platform.submit({"audio_url": recordings["minutes"], "segment_level": "both"}), 120
    )["output"]
    assert (
        output["reduced_to"] == "sentences"
        and " ".join(s["text"] for s in output["segments"]) == output["text"]
    )


def test_with_a_bucket_the_whole_result_is_put_there(platform, recordings):
    config = {
        "accessId": "id",
        "accessSecret": "secret",
        "bucketName": "talks",
        "endpointUrl": platform.bucket_url,
    }
    job_id = platform.submit({"audio_url": recordings["minutes"]}, s3Config=config)
    output = platform.wait(job_id, 120)["output"]
    whole = requests.get(output["result_url"], timeout=30).json()
    assert whole["text"] == output["text"] and output["reduced_to"] == "compact"
    assert [s["start"] for s in whole["segments"]] == [
        s["start"] for s in output["segments"]
    ] and "offset" in whole["segments"][0]
    assert list(platform.store.objects) == [f"talks/{job_id}.json"]


# logs


def test_logs_hold_no_text_no_context_and_no_query(worker, platform, short):
    job = {"audio_url": short["audio_url"] + "?token=abc", "initial_context": "hush hush"}
    text = platform.wait(platform.submit(job), 60)["output"]["text"]
    assert text and not [
        part for part in (text, "token", "short.wav", "hush") if part in worker.log
    ]


# the end


def test_when_the_engine_is_killed_its_jobs_fail_at_once_and_the_worker_ends_to_be_replaced(
    worker, platform, long, recordings
):
    """The last test on this worker."""
    minutes = {"audio_url": recordings["minutes"]}
    jobs = [platform.submit(job) for job in (long, long, minutes)]
    until(lambda: all(platform.jobs[job_id].progress for job_id in jobs))
    worker.engine().kill()
    for job_id in jobs:
        body = platform.wait(job_id, 30)
        assert failed_with(body, "engine_dead", retryable=True)
        assert platform.jobs[job_id].stop_pod and platform.jobs[job_id].answers == 1
    assert worker.process.wait(60) == 0
    assert members(worker.process.pid) == [] and worker.files() == []
