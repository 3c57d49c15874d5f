"""What vLLM's processes import as their main module, and that they end with the worker."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

SRC = Path(__file__).parent.parent / "src"
MAIN = """
import multiprocessing, os, time
from speech.models.engine_process import main_module_of_children

spawn = multiprocessing.get_context("spawn")
print("imported as", __name__, flush=True)
if __name__ == "__main__":
    with main_module_of_children():
        child = spawn.Process(target={target})
        child.start()
    child.join()
    print(child.exitcode, __file__, flush=True)
"""
FAMILY = """
import multiprocessing, os, time

def grandchild():
    print(os.getppid(), os.getpid(), flush=True)
    time.sleep(60)

def child():
    process = multiprocessing.get_context("spawn").Process(target=grandchild)
    process.start()
    time.sleep(60)
"""


def start(folder: Path, target: str) -> subprocess.Popen:
    """Run a program in `folder` that spawns a process with the function `target`."""
    script = folder / "main.py"
    script.write_text(MAIN.format(target=target).replace("import multi", "import family, multi"))
    (folder / "family.py").write_text(FAMILY)
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    return subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_the_processes_that_are_spawned_do_not_import_the_worker(tmp_path):
    process = start(tmp_path, "os.getpid")
    said, _ = process.communicate(timeout=60)
    assert said == f"imported as __main__\n0 {tmp_path / 'main.py'}\n"


def test_a_process_that_is_killed_takes_its_children_and_theirs_with_it(tmp_path):
    process = start(tmp_path, "family.child")
    with process.stdout:
        assert process.stdout.readline() == "imported as __main__\n"
        family = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    for left in alive:
        left.kill()
    assert len(family) == 2 and alive == []
