"""Paths, the one real engine of the test session, and a file server on loopback."""

import asyncio
import ctypes
import functools
import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import real_models

ROOT = Path(__file__).parent.parent
# The decoder is a process of its own, so its folder is on the path as well.
FOLDERS = ("src", "src/recording/decoder", "builder", "tests/models/recipe")
sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]

# What builder/setup.sh exports, for a plain `pytest`. test_conftest.py holds the two equal.
SETTINGS = {
    "MODEL_NAME": str(ROOT / "tests/models/asr"),
    "ALIGNER_NAME": str(ROOT / "tests/models/aligner"),
    "DEVICE": "cpu",
    "CHUNK_TARGET_SECONDS": "4.8",
    "CHUNK_LIMIT_SECONDS": "8",
    "MAX_NUM_SEQS": "8",
    "ALIGNER_BATCH_SECONDS": "32",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "GPU_MEMORY_UTILIZATION": "0.3",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CACHE_ROOT": str(ROOT / ".venv/cache"),
    "RUNPOD_LOG_LEVEL": "INFO",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def set_up_environment() -> None:
    """Must run before the worker, vLLM or the SDK is imported. Variables already set stay."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # The recordings are served on loopback.
    os.environ["RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS"] = "true"
    sys.dont_write_bytecode = True
    load_libnuma()


def load_libnuma() -> None:
    """vLLM's CPU build needs it. On a system without it setup.sh has put it into .venv."""
    folder = ROOT / ".venv" / "libnuma"
    libraries = os.environ.get("LD_LIBRARY_PATH", "")
    if folder.is_dir() and str(folder) not in libraries.split(":"):
        # This process finds it because it is loaded, and its children find it by the variable.
        ctypes.CDLL(str(folder / "libnuma.so.1"), mode=ctypes.RTLD_GLOBAL)
        os.environ["LD_LIBRARY_PATH"] = f"{folder}:{libraries}".rstrip(":")


set_up_environment()

# A machine under load is slow, and nothing is wrong.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

# Several processes run the tests (run.sh). One of them has the engine, and begins with it. For the
# others the files that take longest come first, so that all end at about the same time.
ENGINE = "engine"
LONG = (
    "test_runpod.py",
    "test_entry_points.py",
    "test_audio.py",
    "test_shutdown.py",
    "test_cuda_platform.py",
    "test_runpod_sdk.py",
    "test_engine.py",
)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests with the session's engine go to one process, which starts it once.

    The other tests of a file stay together.
    """
    for item in items:
        group = ENGINE if uses_engine(item) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=place)


def uses_engine(item: pytest.Item) -> bool:
    """A file with a fixture of the same name has a worker of its own."""
    own = hasattr(item.module, "worker")
    return "worker" in item.fixturenames and not own


def place(item: pytest.Item) -> int:
    """The rank of an item's group. Those of one rank keep their order."""
    (group,) = item.get_closest_marker("xdist_group").args
    first = (ENGINE, *LONG)
    return first.index(group) if group in first else len(first)


class _QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class FileServer:
    """Serves one folder on 127.0.0.1, on a port that the system chose."""

    def __init__(self, folder: Path, handler: type = _QuietFiles):
        self.folder = folder
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="session")
def file_server(tmp_path_factory) -> Iterator[FileServer]:
    server = FileServer(tmp_path_factory.mktemp("served"))
    yield server
    server.close()


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict], list[int]]]:
    """(URL, the bodies posted to it, the statuses that it answers next; 200 after those)."""
    bodies, statuses = [], []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses.pop(0) if statuses else 200)
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", bodies, statuses
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def real_checkpoints(tmp_path_factory) -> Path:
    """A folder with 0.6B, 1.7B and aligner: the real tokenizer and configurations, empty weights of
    the real size.
    """
    folder = tmp_path_factory.mktemp("real")
    real_models.write_checkpoints(folder)
    return folder


@pytest.fixture(scope="session")
def published(real_checkpoints):
    """The real recogniser's tokenizer as the model's authors use it: the class for its files,
    without any patch.
    """
    from transformers import Qwen2TokenizerFast

    return Qwen2TokenizerFast.from_pretrained(real_checkpoints / "tokenizer")


@pytest.fixture(scope="session")
def worker() -> Iterator:
    """The real handler module with its models loaded: vLLM on the CPU, the aligner, the tiny
    checkpoints. Before each test an engine that has died is replaced.

    Its libraries make the process flush subnormal floats to zero, so the tests' strategies for
    floats exclude these.
    """
    import handler
    from contract.settings import load_settings

    handler.settings = load_settings(os.environ)
    load_and_check(handler)
    yield handler
    handler.asr.close()
    handler.aligner.close()


def load_and_check(worker: ModuleType) -> None:
    worker.load_models()
    asyncio.run(worker.fitness_check())


@pytest.fixture(autouse=True)
def _living_engine(request) -> None:
    """One killed process would else fail every later test that uses the worker."""
    if "worker" not in request.fixturenames:
        return
    worker = request.getfixturevalue("worker")
    if isinstance(worker, ModuleType):
        replace_dead_engine(worker)


def replace_dead_engine(worker: ModuleType) -> None:
    """Load both models anew where the engine's process has ended."""
    if not worker.asr.dead:
        return
    worker.asr.close()
    worker.aligner.close()
    load_and_check(worker)


def succeeded(output: dict) -> dict:
    """The output of a job that must not have failed: its error is shown, not a missing key."""
    assert "error" not in output, output
    return output


@contextmanager
def other_models(worker: ModuleType, **settings) -> Iterator[ModuleType]:
    """The handler module with models of its own, loaded with these settings, in the context."""
    before = {name: getattr(worker, name) for name in ("settings", "asr", "aligner", "gate")}
    try:
        worker.settings = replace(worker.settings, **settings)
        try:
            worker.load_models()
        except ValueError as error:
            # With an engine already running here, vLLM may register its own configuration while
            # the aligner is imported. A worker has one engine, so it cannot happen there.
            if "Qwen3ASRConfig" not in str(error):
                raise
            worker.load_models()
        yield worker
        worker.aligner.close()
        worker.asr.close()
    finally:
        for name, value in before.items():
            setattr(worker, name, value)
