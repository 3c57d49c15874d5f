"""The benchmark for a GPU from its start to a killed engine, with the tiny checkpoints.

    bash tests/run.sh tests/gpu_whole_run.py    a minute

It is not part of the first command, whose test_gpu_bench.py runs each part by itself.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "bench"))

import gpu


def test_a_whole_run_starts_a_worker_and_ends_with_a_killed_engine(tmp_path):
    command = [
        sys.executable,
        gpu.__file__,
        "--small",
        "--out",
        tmp_path,
        "--part",
        "start",
        "--part",
        "crowded",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    found = json.loads((tmp_path / "gpu.json").read_text())["worker"]
    assert run.returncode == 0, run.stdout + (tmp_path / "worker.log").read_text()[-3000:]
    assert found["start"]["ready_s"] > 0
    assert any("init engine" in line for line in found["start"]["vllm"])
    assert found["crowded"]["job beside it"].startswith("ok")
    assert found["crowded"]["job after the engine was killed"] == "engine_dead"
