"""From the start of the process to a warm worker, step by step, beside vLLM's own start on the same machine."""

import asyncio
import json
import os
import sys
import time

import measure
from measure import cost_of, in_turn, table


def run(quick: bool) -> None:
    steps: dict[str, list[dict]] = {"ours": [], "vLLM alone": []}

    def side(name: str):
        def once():
            cost, said = cost_of([__file__, name])
            steps[name].append(said)
            return cost

        return once

    costs = in_turn({name: side(name) for name in steps}, 1 if quick else 3)
    walls = {name: sorted(said["ready"] for said in runs)[len(runs) // 2] for name, runs in steps.items()}
    print(table("cold start", ["", "ready after s", "CPU s", "peak MiB"], [[n, walls[n], c.cpu, c.peak] for n, c in costs.items()]))
    print(table("our steps", ["", "s"], [[step, seconds] for step, seconds in steps["ours"][-1].items()]))
    print(f"ours / vLLM alone: {walls['ours'] / walls['vLLM alone']:.2f} (wanted: <= 1.15)\n", flush=True)
    measure.write("cold_start", {"walls": walls, "steps": steps}, quick)


def _ours() -> dict[str, float]:
    began, steps, last = time.monotonic(), {}, time.monotonic()

    def step(name: str) -> None:
        nonlocal last
        steps[name], last = time.monotonic() - last, time.monotonic()

    import handler
    from align import Aligner
    from asr import Recogniser
    from engine import gpu_memory, plan
    from settings import load_settings

    step("import the worker and the SDK")
    settings = handler.settings = load_settings(os.environ)
    recogniser = handler.asr = Recogniser(plan(settings, settings.model_name, settings.aligner_name, gpu_memory))
    step("import vLLM, spawn its engine")
    aligner = handler.aligner = Aligner(settings.aligner_name, settings.device, settings.aligner_batch_seconds)
    step("load the aligner, while the engine boots")
    recogniser.wait_until_ready()
    step("wait for the engine")
    aligner.start()
    asyncio.run(handler.check())
    step("warm up")
    steps["ready"] = time.monotonic() - began
    aligner.close()
    recogniser.close()
    return steps


def _vllm() -> dict[str, float]:
    began = time.monotonic()

    async def up() -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from engine import plan
        from settings import load_settings

        settings = load_settings(os.environ)
        args = plan(settings, settings.model_name, settings.aligner_name, lambda: 0).engine_args()
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
        said["ready"] = time.monotonic() - began
        engine.shutdown()

    said: dict[str, float] = {}
    asyncio.run(up())
    return said


if __name__ == "__main__":
    print(json.dumps({"ours": _ours, "vLLM alone": _vllm}[sys.argv[1]]()))
