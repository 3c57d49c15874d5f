"""From the start of the process to a warm worker, step by step, beside vLLM's own start on the same
machine.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import measure
from measure import cost_of, in_turn, table

HANDLER = Path(__file__).parent.parent.parent / "src" / "handler.py"
REFUSED = '{"input": {"audio_url": "http://127.0.0.1/private.wav"}}'
STEPS = {  # what the log says at the end of each
    "starting the recogniser": "import the worker and the SDK",
    "loading the aligner": "import vLLM, spawn its engine",
    "waiting for the recogniser": "load the aligner, while the engine boots",
    "warming up": "wait for the engine",
    "ready after": "warm up",
}


def run(quick: bool) -> None:
    steps: dict[str, list[dict]] = {"ours": [], "vLLM alone": []}

    def side(name: str):
        def once():
            cost, said = cost_of([__file__, name])
            steps[name].append(said)
            return cost

        return once

    costs = in_turn({name: side(name) for name in steps}, 1 if quick else 3)
    walls = {
        name: sorted(said["ready"] for said in runs)[len(runs) // 2] for name, runs in steps.items()
    }
    print(
        table(
            "cold start",
            ["", "ready after s", "CPU s", "peak MiB"],
            [[n, walls[n], c.cpu, c.peak] for n, c in costs.items()],
        )
    )
    print(
        table(
            "our steps", ["", "s"], [[step, seconds] for step, seconds in steps["ours"][-1].items()]
        )
    )
    print(
        f"ours / vLLM alone: {walls['ours'] / walls['vLLM alone']:.2f} (wanted: <= 1.15)\n",
        flush=True,
    )
    measure.write("cold_start", {"walls": walls, "steps": steps}, quick)


def _ours() -> dict[str, float]:
    """The worker as it is started, by what its log says; its job has an address that is refused."""
    steps, last = {}, time.monotonic()
    command = [sys.executable, "-u", HANDLER, "--test_input", REFUSED]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RUNPOD_LOG_LEVEL": "INFO"},
    ) as worker:
        for line in worker.stderr:
            for beginning, step in STEPS.items():
                if beginning in line:
                    steps[step], last = time.monotonic() - last, time.monotonic()
    assert list(steps) == list(STEPS.values()), f"the worker did not come up: {steps}"
    return steps | {"ready": sum(steps.values())}


def _vllm() -> dict[str, float]:
    began = time.monotonic()

    async def up() -> None:
        from contract.settings import load_settings
        from speech.models.engine_args import plan
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        settings = load_settings(os.environ)
        args = plan(settings, settings.model_name, settings.aligner_name, None).engine_args()
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
        said["ready"] = time.monotonic() - began
        engine.shutdown()

    said: dict[str, float] = {}
    asyncio.run(up())
    return said


if __name__ == "__main__":
    print(json.dumps({"ours": _ours, "vLLM alone": _vllm}[sys.argv[1]]()))
