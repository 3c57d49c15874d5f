"""What conftest.py does for every test: the settings, and an engine that lives."""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import conftest
from conftest import ROOT, SETTINGS


def worker_with(dead: bool) -> tuple[ModuleType, list[str]]:
    """(A module with models that only count, what was called on them in order)."""
    worker, called = ModuleType("worker"), []

    async def fitness_check() -> None:
        called.append("check")

    worker.asr = SimpleNamespace(dead=dead, close=lambda: called.append("close asr"))
    worker.aligner = SimpleNamespace(close=lambda: called.append("close aligner"))
    worker.load_models = lambda: called.append("load")
    worker.fitness_check = fitness_check
    return worker, called


def test_a_dead_engine_is_replaced_before_the_next_test():
    worker, called = worker_with(dead=True)
    conftest.replace_dead_engine(worker)
    assert called == ["close asr", "close aligner", "load", "check"]


def test_a_living_engine_stays():
    worker, called = worker_with(dead=False)
    conftest.replace_dead_engine(worker)
    assert called == []


def test_the_files_that_come_first_exist():
    assert [name for name in conftest.LONG if not (ROOT / "tests" / name).is_file()] == []


def test_plain_pytest_has_the_settings_that_setup_sh_exports():
    before = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    printed = f"import os; print(*(os.environ.get(n) for n in {list(SETTINGS)}), sep='\\n')"
    script = f'source "{ROOT}/builder/setup.sh" && "$PYTHON" -c "$0"'
    out = subprocess.run(
        ["bash", "-c", script, printed], env=before, capture_output=True, text=True, timeout=120
    )
    assert dict(zip(SETTINGS, out.stdout.splitlines())) == SETTINGS, out.stderr


def test_plain_pytest_runs_from_the_checkout():
    """Without run.sh's environment it finds its configuration, its modules and the worker's."""
    names = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    before = {name: os.environ[name] for name in names if name in os.environ}
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_job.py"]
    out = subprocess.run(command, cwd=ROOT, env=before, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stdout + out.stderr
