"""Stand-in for the RunPod Serverless platform on loopback, for a real worker and real clients.

Requests of a worker, GET where no method is named (runpod SDK 1.12.0: rp_job.py, rp_http.py,
rp_ping.py, rp_scale.py):
    job-take/{worker}                         long poll: 200 with a job, 204 without
    job-take-batch/{worker}?batch_size=N      long poll: 200 with up to N jobs, 204 without
    job-stop/{worker}                         long poll: {"jobsToStop": [id, …]} or 204
    POST job-done/{worker}/{job}              {"output", "error", "stopPod"}, each optional: the
                                              job's end. {"status": "IN_PROGRESS", "output"}:
                                              progress, shown by /status
    POST job-stream/{worker}/{job}            {"output"}: one value that a generator yielded
    ping/{worker}?job_id=a,b                  the jobs that the worker holds

Requests of a client (runpod SDK 1.12.0 endpoint/runner.py, npm runpod-sdk 1.1.2 src/index.ts,
RunPod's "operation reference"):
    POST run, POST runsync?wait=ms, status/{job}, status-sync/{job}?wait=ms, stream/{job},
    POST cancel/{job}, health, POST purge-queue.
A job's body is {id, status, delayTime, executionTime, output?, error?, workerId?}, times in ms.

Known behaviour of the platform, the same here: a job-done that is too large gets 400, and its job
is COMPLETED without output; an `error` makes a job FAILED; the worker takes 4xx as final and
repeats after 5xx (three attempts in all). Assumed, because it is not documented: a post about a job
that has ended is recorded, answered 200 and changes nothing; a body that is not JSON gets 400, and
its job stays IN_PROGRESS; a job whose worker dies stays IN_PROGRESS. Not implemented: `ttl`, rate
limits, request size limits.

When a job ends, its `webhook` is sent what /status shows. Without a 200 it is sent twice more, here
without the pause of 10 s.

Under bucket_url there is the part of S3 that boto3's put_object, upload_file, get_object and
presigned GETs need.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, web

# A worker's folder, as in the image. The test_input.json there is ignored on RunPod.
WORKDIR = Path(__file__).parent.parent / "src"
ENDPOINT = "ep1"
WORKER = "worker1"
KEY = "key1"  # the worker sends it; clients may send any
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
WORKER_CALLS = ("job-take", "job-take-batch", "job-stop", "job-done", "job-stream", "ping")
# RunPod holds a poll much longer. Here it is short, because a stopped worker ends only after its
# last polls.
POLL_SECONDS = 1.5
TICK_SECONDS = 0.02
CLIENT_WAIT_MS = 1_000, 90_000, 300_000  # least, default, most of ?wait
REPLY_LIMIT = (
    20_000_000  # bytes of a job-done body: about 20 MB, reported for /runsync; 10 MB for /run
)
WEBHOOK_ATTEMPTS, WEBHOOK_SECONDS = 3, 10  # seconds for each attempt
CALL_SECONDS = 10  # bound for a call into the server's thread that does not wait for a job


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker posted about a job: time (monotonic seconds), body (a str where it is not
    JSON), HTTP status of the answer.
    """

    at: float
    body: dict | str
    answer: int


@dataclass(frozen=True, slots=True)
class Take:
    """One answered job-take: how many jobs were asked for, the ids that were given; `key` is the
    Authorization header.
    """

    at: float
    worker: str
    asked: int
    given: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A worker's call during an outage, such as "job-take"; monotonic seconds."""

    at: float
    call: str


@dataclass(frozen=True, slots=True)
class Ping:
    at: float
    worker: str
    jobs: tuple[str, ...]


@dataclass(slots=True)
class Job:
    """One job and all that is posted about it. Times: monotonic seconds, None until the event."""

    id: str
    request: dict  # {"input": …} and the client's fields beside it: policy, s3Config, webhook
    status: str = "IN_QUEUE"
    submitted: float = field(default_factory=time.monotonic)
    taken: float | None = None
    stopped: float | None = None  # when the worker was told through job-stop
    finished: float | None = None
    worker: str | None = None
    shown: dict = field(default_factory=dict)  # the output and the error that /status shows
    progress: list[Post] = field(default_factory=list)
    results: list[Post] = field(default_factory=list)
    chunks: list[Post] = field(default_factory=list)
    streamed: int = 0  # chunks that /stream has handed out

    @property
    def answers(self) -> int:
        """Results that were accepted: 1 for a job answered exactly once."""
        return sum(post.answer == 200 for post in self.results)

    @property
    def stop_pod(self) -> bool:
        """The worker asked to be replaced: refresh_worker."""
        return any(
            isinstance(post.body, dict) and post.body.get("stopPod") for post in self.results
        )

    def body(self) -> dict:
        body = {"id": self.id, "status": self.status} | self.shown
        if self.taken is not None:
            body |= {
                "delayTime": round(1000 * (self.taken - self.submitted)),
                "workerId": self.worker,
            }
        if self.taken is not None and self.finished is not None:
            body["executionTime"] = round(1000 * (self.finished - self.taken))
        return body

    def finish(self, status: str, shown: dict) -> None:
        if self.status not in FINAL:
            self.status, self.shown, self.finished = status, shown, time.monotonic()


class Platform:
    """One endpoint with its queue, on a port that the system chose; a thread of its own serves it
    until close().

    Tests read jobs by id, as platform.jobs[id].results.
    reply_limit, fail_results, lose_answers and outage may be set at any time.
    """

    def __init__(self, reply_limit: int = REPLY_LIMIT):
        self.reply_limit = reply_limit  # bytes
        self.fail_results = 0  # how many of the next result posts get a 500
        # how many of the next result posts count, but their connection breaks before the answer
        self.lose_answers = 0
        # What workers are answered: an HTTP status, "reset", or "hang" until it is over.
        self.outage: int | str | None = None
        self.refused: list[Refusal] = []  # calls during outages
        self.jobs: dict[str, Job] = {}  # in the order of submission
        self.takes: list[Take] = []
        self.pings: list[Ping] = []
        self.store = ObjectStore()
        self._stops: dict[str, list[str]] = {}  # worker → jobs to stop
        self._webhooks: set[asyncio.Task] = set()
        self._home = tempfile.mkdtemp(prefix="standin-")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stand-in")
        self._thread.start()
        # handler_cancellation: the open poll of a worker that has died must not take a job
        self._runner = web.AppRunner(
            self._routes(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        self._origin = f"http://127.0.0.1:{self._call(self._serve())}"

    # -- for tests

    @property
    def base_url(self) -> str:
        """The API's address for clients; the endpoint is ENDPOINT."""
        return f"{self._origin}/v2"

    @property
    def url(self) -> str:
        return f"{self.base_url}/{ENDPOINT}"

    @property
    def bucket_url(self) -> str:
        """The S3 endpoint.

        Every bucket exists, all credentials are accepted; objects are in
        store.objects["bucket/key"].
        """
        return f"{self._origin}/s3"

    def worker_environment(self) -> dict[str, str]:
        """Environment of a worker:

        RunPod's variables, and those that switch off the SDK's checks and this machine's settings.
        """
        return {
            # the SDK appends &…: every address has its ? already
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID?gpu=SIM",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID?gpu=SIM",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=SIM",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID?gpu=SIM",
            # Milliseconds. Below 1000 it is 0 to the SDK, which then pings without pause.
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": KEY,
            "RUNPOD_POD_ID": WORKER,
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_LOG_LEVEL": "INFO",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",  # one of them connects to 8.8.8.8
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true",
            "HOME": self._home,  # a key in ~/.runpod/config.toml would win over RUNPOD_AI_API_KEY
        }

    def submit(self, input: Any, **top_level: Any) -> str:
        """Queue a job as POST /run does; `top_level`: fields beside the input (policy, s3Config,
        webhook). Returns its id.
        """
        return self._call(self._queue({"input": input} | top_level)).id

    def wait(self, job_id: str, timeout: float = 30) -> dict:
        """The job's body once it has ended.

        Raises TimeoutError, with the current body, after `timeout` seconds.
        """
        job = self.jobs[job_id]
        if not self._call(
            self._until(lambda: job.status in FINAL, timeout), timeout + CALL_SECONDS
        ):
            raise TimeoutError(f"after {timeout} s: {job.body()}")
        return job.body()

    def cancel(self, job_id: str) -> dict:
        """As POST /cancel: a queued job is removed, a running one is stopped by its worker.

        Returns its body.
        """
        return self._call(self._cancel(self.jobs[job_id]))

    def close(self) -> None:
        for task in list(self._webhooks):
            self._loop.call_soon_threadsafe(task.cancel)
        self._call(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_SECONDS)
        self._loop.close()
        shutil.rmtree(self._home, ignore_errors=True)

    # -- the server's thread; all state is changed there only

    def _call(self, coroutine, timeout: float = CALL_SECONDS):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    async def _serve(self) -> int:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self._runner.addresses[0][1]

    def _routes(self) -> web.Application:
        # no limit here: _on_done applies the platform's
        app = web.Application(client_max_size=2**30, middlewares=[self._break_during_outage])
        at = f"/v2/{ENDPOINT}"
        for path, handler in {
            "/job-take/{worker}": self._on_take,
            "/job-take-batch/{worker}": self._on_take_batch,
            "/job-stop/{worker}": self._on_stop,
            "/ping/{worker}": self._on_ping,
            "/status/{job}": self._on_status,
            "/status-sync/{job}": self._on_status_sync,
            "/stream/{job}": self._on_stream,
            "/health": self._on_health,
        }.items():
            app.router.add_get(at + path, handler)
        for path, handler in {
            "/job-done/{worker}/{job}": self._on_done,
            "/job-stream/{worker}/{job}": self._on_chunk,
            "/run": self._on_run,
            "/runsync": self._on_runsync,
            "/cancel/{job}": self._on_cancel,
            "/purge-queue": self._on_purge,
        }.items():
            app.router.add_post(at + path, handler)
        app.router.add_route("*", "/s3/{name:.+}", self.store.answer)
        return app

    @web.middleware
    async def _break_during_outage(
        self, request: web.Request, handler: Callable
    ) -> web.StreamResponse:
        call = request.path.removeprefix(f"/v2/{ENDPOINT}/").partition("/")[0]
        if self.outage is None or call not in WORKER_CALLS:
            return await handler(request)
        self.refused.append(Refusal(time.monotonic(), call))
        if isinstance(self.outage, int):
            return web.Response(status=self.outage)
        while self.outage == "hang":
            await asyncio.sleep(TICK_SECONDS)
        return _without_answer(request)

    async def _until(self, question: Callable[[], Any], seconds: float) -> Any:
        """The first truthy answer to `question`, or the last one after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (answer := question()) and time.monotonic() < deadline:
            await asyncio.sleep(TICK_SECONDS)
        return answer

    def _waiting(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.status == "IN_QUEUE"]

    def _job(self, request: web.Request) -> Job:
        try:
            return self.jobs[request.match_info["job"]]
        except KeyError:
            raise web.HTTPNotFound(text="no such job") from None

    # -- worker side

    async def _on_take(self, request: web.Request) -> web.Response:
        jobs = await self._take(request, 1)
        return web.json_response(jobs[0]) if jobs else web.Response(status=204)

    async def _on_take_batch(self, request: web.Request) -> web.Response:
        jobs = await self._take(request, int(request.query["batch_size"]))
        return web.json_response(jobs) if jobs else web.Response(status=204)

    async def _take(self, request: web.Request, asked: int) -> list[dict]:
        worker = request.match_info["worker"]
        await self._until(self._waiting, POLL_SECONDS)
        jobs = self._waiting()[:asked]
        for job in jobs:
            job.status, job.worker, job.taken = "IN_PROGRESS", worker, time.monotonic()
            if limit_ms := (job.request.get("policy") or {}).get("executionTimeout"):
                self._loop.call_later(limit_ms / 1000, self._end_running, job, "TIMED_OUT")
        given = tuple(job.id for job in jobs)
        self.takes.append(
            Take(time.monotonic(), worker, asked, given, request.headers.get("Authorization", ""))
        )
        return [job.request | {"id": job.id} for job in jobs]

    async def _on_stop(self, request: web.Request) -> web.Response:
        worker = request.match_info["worker"]
        await self._until(lambda: self._stops.get(worker), POLL_SECONDS)
        ids = self._stops.pop(worker, [])
        for job_id in ids:
            self.jobs[job_id].stopped = time.monotonic()
        return web.json_response({"jobsToStop": ids}) if ids else web.Response(status=204)

    async def _on_ping(self, request: web.Request) -> web.Response:
        jobs = request.query.get("job_id", "")
        self.pings.append(
            Ping(
                time.monotonic(), request.match_info["worker"], tuple(filter(None, jobs.split(",")))
            )
        )
        return web.Response()

    async def _on_done(self, request: web.Request) -> web.Response:
        job, body = self._job(request), await _posted(request)
        if isinstance(body, dict) and body.get("status") == "IN_PROGRESS":
            if job.status == "IN_PROGRESS":
                job.shown = {"output": body.get("output")}
            return _recorded(job.progress, body, 200)
        if self.fail_results > 0:
            self.fail_results -= 1
            return _recorded(job.results, body, 500)
        if not isinstance(body, dict):
            return _recorded(job.results, body, 400)
        if len(await request.read()) > self.reply_limit:
            job.finish("COMPLETED", {})
            return _recorded(job.results, body, 400)
        job.finish(
            "FAILED" if body.get("error") else "COMPLETED",
            {key: body[key] for key in ("output", "error") if key in body},
        )
        answer = _recorded(job.results, body, 200)
        if self.lose_answers > 0:
            self.lose_answers -= 1
            return _without_answer(request)
        return answer

    async def _on_chunk(self, request: web.Request) -> web.Response:
        body = await _posted(request)
        return _recorded(self._job(request).chunks, body, 200 if isinstance(body, dict) else 400)

    # -- client side

    async def _queue(self, body: Any, prefix: str = "") -> Job:
        if not isinstance(body, dict) or "input" not in body:
            raise web.HTTPBadRequest(text="input is missing")
        job = Job(f"{prefix}{uuid.uuid4()}", body)
        self.jobs[job.id] = job
        if webhook := body.get("webhook"):
            task = asyncio.create_task(self._post_webhook(job, webhook))
            self._webhooks.add(task)
            task.add_done_callback(self._webhooks.discard)
        return job

    async def _post_webhook(self, job: Job, webhook: str) -> None:
        while job.status not in FINAL:
            await asyncio.sleep(TICK_SECONDS)
        async with ClientSession(timeout=ClientTimeout(WEBHOOK_SECONDS)) as session:
            for _ in range(WEBHOOK_ATTEMPTS):
                with suppress(ClientError, TimeoutError):
                    async with session.post(webhook, json=job.body()) as answer:
                        if answer.status == 200:
                            return

    async def _cancel(self, job: Job) -> dict:
        if job.status == "IN_QUEUE":
            job.finish("CANCELLED", {})
        self._end_running(job, "CANCELLED")
        return job.body()

    def _end_running(self, job: Job, status: str) -> None:
        """End a running job and tell its worker to stop it; a job that has ended stays as it is."""
        if job.status == "IN_PROGRESS":
            job.finish(status, {})
            self._stops.setdefault(job.worker, []).append(job.id)

    async def _ended(self, job: Job, request: web.Request) -> web.Response:
        """The job's body when it ends or ?wait is over."""
        least, default, most = CLIENT_WAIT_MS
        wait_ms = min(max(int(request.query.get("wait", default)), least), most)
        await self._until(lambda: job.status in FINAL, wait_ms / 1000)
        return web.json_response(job.body())

    async def _on_run(self, request: web.Request) -> web.Response:
        return web.json_response((await self._queue(await request.json())).body())

    async def _on_runsync(self, request: web.Request) -> web.Response:
        return await self._ended(await self._queue(await request.json(), "sync-"), request)

    async def _on_status(self, request: web.Request) -> web.Response:
        return web.json_response(self._job(request).body())

    async def _on_status_sync(self, request: web.Request) -> web.Response:
        return await self._ended(self._job(request), request)

    async def _on_stream(self, request: web.Request) -> web.Response:
        """Values yielded since the last call.

        A long poll, because the JavaScript client asks again without a pause.
        """
        job = self._job(request)
        await self._until(
            lambda: job.status in FINAL or len(job.chunks) > job.streamed, POLL_SECONDS
        )
        new = [post.body for post in job.chunks[job.streamed :]]
        job.streamed = len(job.chunks)
        return web.json_response({"status": job.status, "stream": new})

    async def _on_cancel(self, request: web.Request) -> web.Response:
        return web.json_response(await self._cancel(self._job(request)))

    async def _on_purge(self, request: web.Request) -> web.Response:
        jobs = self._waiting()
        for job in jobs:
            job.finish("CANCELLED", {})
        return web.json_response({"removed": len(jobs), "status": "completed"})

    async def _on_health(self, request: web.Request) -> web.Response:
        states = [job.status for job in self.jobs.values()]
        names = {
            "completed": "COMPLETED",
            "failed": "FAILED",
            "inProgress": "IN_PROGRESS",
            "inQueue": "IN_QUEUE",
        }
        busy = {job.worker for job in self.jobs.values() if job.status == "IN_PROGRESS"}
        known = {take.worker for take in self.takes}
        workers = {
            "idle": len(known - busy),
            "running": len(busy),
            "initializing": 0,
            "throttled": 0,
        }
        return web.json_response(
            {
                "jobs": {name: states.count(s) for name, s in names.items()} | {"retried": 0},
                "workers": workers,
            }
        )


async def _posted(request: web.Request) -> dict | str:
    """The body parsed as strict JSON, else as a str:

    NaN and Infinity, which Python's json reads, are refused.
    """

    def refuse(constant: str):
        raise ValueError(constant)

    # Its Content-Type says form, yet it is JSON.
    text = (await request.read()).decode(errors="replace")
    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError:
        return text


def _without_answer(request: web.Request) -> web.Response:
    """Breaks the connection; the response that is returned reaches nobody."""
    if request.transport:
        request.transport.abort()
    return web.Response()


def _recorded(posts: list[Post], body: dict | str, answer: int) -> web.Response:
    posts.append(Post(time.monotonic(), body, answer))
    return web.Response(status=answer)


class ObjectStore:
    """S3 with path-style addresses and without signatures: PUT, GET, HEAD, and the three calls of a
    multipart upload.

    The SDK's rp_upload uses multipart uploads from 25 KB on.
    """

    def __init__(self):
        self.objects: dict[str, bytes] = {}  # "bucket/key" → bytes
        self.content_types: dict[str, str] = {}
        self._parts: dict[str, dict[int, bytes]] = {}  # upload → its parts
        self._answers = {
            "PUT": self._put,
            "POST": self._multipart,
            "GET": self._get,
            "HEAD": self._get,
        }

    async def answer(self, request: web.Request) -> web.Response:
        if request.method not in self._answers:
            raise web.HTTPMethodNotAllowed(request.method, list(self._answers))
        return self._answers[request.method](
            request.match_info["name"], request, await request.read()
        )

    def _put(self, name: str, request: web.Request, body: bytes) -> web.Response:
        if "uploadId" in request.query:
            self._parts[request.query["uploadId"]][int(request.query["partNumber"])] = body
        else:
            self.objects[name], self.content_types[name] = body, request.content_type
        return web.Response(headers={"ETag": '"0"'})

    def _multipart(self, name: str, request: web.Request, body: bytes) -> web.Response:
        if "uploads" in request.query:
            upload = uuid.uuid4().hex
            self._parts[upload], self.content_types[name] = {}, request.content_type
            answer = (
                f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>"
                "</InitiateMultipartUploadResult>"
            )
        else:
            parts = self._parts.pop(request.query["uploadId"])
            self.objects[name] = b"".join(parts[number] for number in sorted(parts))
            answer = "<CompleteMultipartUploadResult><ETag>0</ETag></CompleteMultipartUploadResult>"
        return web.Response(text=answer, content_type="application/xml")

    def _get(self, name: str, request: web.Request, body: bytes) -> web.Response:
        if name not in self.objects:
            raise web.HTTPNotFound
        return web.Response(body=self.objects[name], content_type=self.content_types[name])


@contextmanager
def running_worker(
    platform: Platform, command: Sequence[str | Path], log: Path, **environment: str
) -> Iterator[subprocess.Popen]:
    """A worker process of `platform` in its own session; processes that are left of that session at
    the end are killed.
    """
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command,
            env=os.environ | platform.worker_environment() | environment,
            cwd=WORKDIR,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            # The SDK's ping process outlives a worker that was killed.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(CALL_SECONDS)


def until(question: Callable[[], Any], seconds: float = 30) -> Any:
    """The first truthy answer to `question`; a failed assertion after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(TICK_SECONDS)
    return answer
