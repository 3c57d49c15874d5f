"""The worker as users start it: --test_input in the demo, a test_input.json, --rp_serve_api.

The engine is started twice here: by the demo, and by the server.
"""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import requests
import soundfile
from contract.request import parse_request
from contract.settings import load_settings
from material import ENGLISH
from recording.chunk import SAMPLE_RATE
from scoring import matched
from standin_hub import COMMIT, MODELS, Hub
from utterance import plain

ROOT = Path(__file__).parent.parent
HANDLER = ROOT / "src" / "handler.py"
SCRIPTED = [sys.executable, "-u", str(ROOT / "tests" / "scripted_worker.py")]
START_SECONDS = 400  # a bound for a slow machine, not a figure


def members(session: int) -> list[str]:
    """Processes left of a session; those that are ending get 10 s."""
    for _ in range(100):
        left = [
            f"{p.pid} {p.name()}" for p in psutil.process_iter() if _session_of(p.pid) == session
        ]
        if not left:
            break
        time.sleep(0.1)
    return left


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


@pytest.fixture(scope="module")
def speech_url(file_server) -> str:
    soundfile.write(file_server.folder / "entry.wav", ENGLISH[0].pcm, SAMPLE_RATE)
    return file_server.url("entry.wav")


def test_importing_the_handler_loads_no_model_library():
    loaded = (
        "import handler, sys; print(sorted({'torch', 'vllm', 'transformers', 'qwen_asr', "
        "'librosa', 'av'} & {*sys.modules}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", loaded],
        cwd=HANDLER.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert out.stdout.strip().splitlines()[-1] == "[]"


def test_an_invalid_setting_ends_the_start_before_anything_is_loaded():
    environment = os.environ | {"CHUNK_LIMIT_SECONDS": "400"}
    out = subprocess.run(
        [sys.executable, HANDLER, "--rp_serve_api"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (
        out.returncode == 1 and "CHUNK_LIMIT_SECONDS is 400; it must be from 2 to 180" in out.stderr
    )
    assert "Traceback" not in out.stderr


def test_a_device_that_vllm_cannot_run_on_ends_the_start_with_one_sentence():
    out = subprocess.run(
        [sys.executable, HANDLER, "--rp_serve_api"],
        env=os.environ | {"DEVICE": "cuda"},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert out.returncode == 1 and out.stderr.splitlines()[-1].startswith(
        "error: DEVICE is 'cuda', but vLLM is installed in its build for CPUs"
    )
    assert "Traceback" not in out.stderr


NOBODYS_UID = "12345"  # without an entry in /etc/passwd
# Root's Python may be readable by root alone. With this capability the user reads all, and writes
# nothing more than any other.
AS_NOBODY = ("setpriv", f"--reuid={NOBODYS_UID}", f"--regid={NOBODYS_UID}", "--clear-groups")
AS_NOBODY += ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
MAY_CHANGE_USER = os.geteuid() == 0 and shutil.which("setpriv")
as_root = pytest.mark.skipif(not MAY_CHANGE_USER, reason="needs root and setpriv")


@pytest.fixture(scope="module")
def nobodys_environment(tmp_path_factory) -> dict[str, str]:
    """As in a container that was started with another user: no name, no home, one cache that all
    may write to.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.endswith("_CACHE_DIR")
    }
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "TMPDIR"):
        environment.pop(name, None)
    cache = tmp_path_factory.mktemp("cache")
    cache.chmod(0o777)
    return environment | {"HOME": "/", "VLLM_CACHE_ROOT": str(cache)}


class Closing:
    """Stand-in for recogniser and aligner; records how it was ended."""

    capacity = 1

    def __init__(self, closed: list | None = None):
        self.ended = ""
        self.closed = [] if closed is None else closed  # in the order of their end

    def close(self) -> None:
        self.ended = "closed"
        self.closed.append(self)

    def kill(self) -> None:
        self.ended = "killed"


def test_a_warm_up_that_fails_ends_the_engine(monkeypatch):
    """Otherwise the worker would hang: the interpreter waits for the engine's process."""
    import handler

    async def broken():
        raise RuntimeError("no memory")

    closed = []
    recogniser, aligner = Closing(closed), Closing(closed)
    # the real one would end the tests' process
    unwatched = SimpleNamespace(watch=lambda: None, begin=lambda seconds: None)
    monkeypatch.setattr(handler, "shutdown", unwatched)
    for name, value in {
        "single_job": lambda: None,
        "settings": None,
        "asr": recogniser,
        "aligner": aligner,
        "load_models": lambda: None,
        "fitness_check": broken,
    }.items():
        monkeypatch.setattr(handler, name, value, raising=False)
    with pytest.raises(RuntimeError, match="no memory"):
        handler.main()
    assert closed == [recogniser, aligner]  # a stuck aligner must not keep the GPU's memory


def test_an_aligner_that_does_not_load_ends_the_engine(monkeypatch):
    import speech.models.startup as startup

    def broken(*_):
        raise RuntimeError("no memory")

    recogniser = Closing()
    for name, value in {
        "find_device": lambda _: None,
        "Recogniser": lambda _: recogniser,
        "Aligner": broken,
    }.items():
        monkeypatch.setattr(startup, name, value)
    with pytest.raises(RuntimeError, match="no memory"):
        startup.start_models(load_settings(os.environ))
    assert recogniser.ended == "killed"
    gc.enable()


def test_the_demo_prints_what_is_said_writes_its_page_and_leaves_nothing(tmp_path):
    demo = json.loads((ROOT / "tests" / "recordings" / "demo.json").read_text())
    command = ["bash", str(ROOT / "builder" / "demo.sh"), "--page", str(tmp_path / "page.html")]
    # a short path: the engine's sockets live in it, and a socket's name has 107 characters
    with tempfile.TemporaryDirectory() as temporary:
        status, printed, errors = ended(command, TMPDIR=temporary)
        assert status == 0, errors
        assert os.listdir(temporary) == []
    said, heard = words_of(demo["text"]), words_of(printed.split("\n\n")[1])
    assert matched(said, heard)[0] <= 0.02 * len(said)
    assert "Language   English" in printed and "00:00." in printed
    page = (tmp_path / "page.html").read_text()
    assert page.count('<span class="w') == len(heard) and 'src="data:audio/mpeg;base64,' in page
    assert "Exception ignored" not in errors  # as from a destructor of an engine that was kept


def words_of(text: str) -> list[str]:
    return [plain(word) for word in text.split()]


def ended(command: list[str], cwd: Path = ROOT, **environment: str) -> tuple[int, str, str]:
    """(status, stdout, stderr) of a command that has ended with all the processes it started."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    printed, errors = process.communicate(timeout=START_SECONDS)
    assert members(process.pid) == []
    return process.returncode, printed, errors


def test_a_failed_job_of_test_input_json_exits_with_1_and_leaves_nothing(tmp_path, file_server):
    """The models are scripted."""
    job = {"input": {"audio_url": file_server.url("missing.wav")}}
    (tmp_path / "test_input.json").write_text(json.dumps(job))
    with tempfile.TemporaryDirectory() as temporary:
        status, printed, _ = ended(SCRIPTED, cwd=tmp_path, TMPDIR=temporary)
        assert os.listdir(temporary) == []
    result = json.loads(printed)  # nothing else is on stdout
    assert result["error_code"] == "source_refused" and status == 1
    assert os.listdir(tmp_path) == ["test_input.json"]


def engine_of(pid: int) -> list[psutil.Process]:
    """The engine's processes below the worker `pid`, by the titles that vLLM gives them."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if "VLLM" in " ".join(child.cmdline())]
    return []


def test_the_test_input_beside_the_handler_is_a_job_with_a_sample_of_runpods():
    job = json.loads(HANDLER.with_name("test_input.json").read_text())
    assert parse_request(job["input"]).audio_url.startswith(
        "https://github.com/runpod-workers/sample-inputs/raw/main/audio/"
    )


@pytest.fixture(scope="module")
def cached_models(tmp_path_factory) -> Iterator[tuple[dict[str, str], Hub]]:
    """(environment of a worker that has both models in the hub's cache, the stand-in hub)."""
    cache = tmp_path_factory.mktemp("cache")
    for name in ("asr", "aligner"):
        snapshot = cache / f"models--tiny--{name}" / "snapshots" / COMMIT
        snapshot.parent.mkdir(parents=True)
        snapshot.symlink_to(MODELS / name)
    with Hub() as hub:
        names = {"MODEL_NAME": "tiny/asr", "ALIGNER_NAME": "tiny/aligner"}
        yield (
            names | {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"},
            hub,
        )


@contextmanager
def serving(
    command: list[str], log: Path, environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen, str]]:
    """(process, URL of /runsync) of a worker with --rp_serve_api, killed at the end.

    The SDK's server does not take port 0, so the system is asked for a free port first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ["--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *address],
            cwd="/",
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process, f"http://127.0.0.1:{port}/runsync"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


@pytest.fixture(scope="module")
def server_log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def local_server(nobodys_environment, cached_models, server_log) -> Iterator[tuple]:
    """The real worker as a server, run by a user without a name where root may."""
    user = AS_NOBODY if MAY_CHANGE_USER else ()
    command = [*user, sys.executable, "-u", str(HANDLER)]
    environment = nobodys_environment | cached_models[0] | {"DEVICE": "auto"}
    # A killed worker leaves its sockets. The folder of the tests is closed to other users.
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        Path(temporary).chmod(0o777)
        with serving(command, server_log, environment | {"TMPDIR": temporary}) as server:
            yield server


def test_rp_serve_api_answers_runsync(local_server, speech_url):
    process, url = local_server
    answer = _ask_until_up(process, url, {"input": {"audio_url": speech_url}})
    assert answer["status"] == "COMPLETED" and answer["output"]["text"] == ENGLISH[0].text
    bad = requests.post(url, json={"input": {"language": "English"}}, timeout=30).json()
    assert bad["status"] == "FAILED" and "audio_url is missing" in bad["error"]


@as_root
def test_a_user_without_a_name_and_a_home_gets_a_transcript(local_server, speech_url):
    process, url = local_server
    answer = _ask_until_up(process, url, {"input": {"audio_url": speech_url}})
    assert psutil.Process(process.pid).uids().effective == int(NOBODYS_UID)
    assert answer["output"]["text"] == ENGLISH[0].text


def test_without_a_gpu_the_log_says_that_the_cpu_is_used(local_server, server_log, speech_url):
    process, url = local_server
    _ask_until_up(process, url, {"input": {"audio_url": speech_url}})
    assert "no GPU that this vLLM can use: the models run on the CPU" in server_log.read_text()


def test_with_both_models_in_the_cache_nothing_is_requested_from_the_hub(
    local_server, cached_models, speech_url
):
    """By the worker or a library in its processes."""
    process, url = local_server
    _ask_until_up(process, url, {"input": {"audio_url": speech_url}})
    assert cached_models[1].requests == []


def test_the_engines_processes_end_with_a_worker_that_is_killed(local_server, speech_url):
    """The last test on this server."""
    process, url = local_server
    _ask_until_up(process, url, {"input": {"audio_url": speech_url}})
    engine = engine_of(process.pid)
    core_and_executor = 2
    assert len(engine) == core_and_executor
    process.kill()
    process.wait(60)
    _, alive = psutil.wait_procs(engine, timeout=60)
    assert alive == []


def test_rp_serve_api_ends_at_sigterm(tmp_path, speech_url):
    """The models are scripted."""
    with serving(SCRIPTED, tmp_path / "log", dict(os.environ)) as (process, url):
        _ask_until_up(process, url, {"input": {"audio_url": speech_url}})
        process.terminate()
        process.wait(60)
        assert members(process.pid) == []


def _ask_until_up(process: subprocess.Popen, url: str, body: dict) -> dict:
    for _ in range(START_SECONDS):
        assert process.poll() is None, "the server ended"
        try:
            return requests.post(url, json=body, timeout=60).json()
        except requests.ConnectionError:
            time.sleep(1)
    pytest.fail("the server did not come up")
