"""Whole jobs on the tiny checkpoints: against the engine alone, against the reference worker, and
four against one.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import inputs
import measure
from measure import cost_of, table

TICK_SECONDS = 0.005  # that the ticker sleeps; what it takes beyond is a stall of the event loop
IN_FLIGHT = (
    24  # chunks in one engine step; with 8, as in the tests, the engine has two thirds of its speed
)


def run(quick: bool) -> None:
    seconds, repeats = (240, 2) if quick else (1200, 3)  # the reference takes most of the time
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole, quarter = (
            inputs.recording(folder, seconds, "mp3"),
            inputs.recording(folder, seconds / 4, "mp3"),
        )
        with inputs.served(folder) as address:
            sides = [__file__, f"{address}/{whole.name}", f"{address}/{quarter.name}", repeats]
            _, found = cost_of(sides, MAX_NUM_SEQS=str(IN_FLIGHT))
    ratios = {
        "ours / the engine alone": (found["ours"] / found["engine alone"], "<= 1.10"),
        "reference / ours": (found["reference"] / found["ours"], ">= 3"),
        "4 jobs / their work as one": (found["4 jobs of a quarter"] / found["ours"], "<= 1.05"),
    }
    print(
        table(
            f"whole jobs, {seconds / 60:.0f} min of MP3",
            ["", "wall s", "x real time"],
            [[n, s, seconds / s] for n, s in found.items() if n != "stall"],
        )
    )
    print(
        table("ratios", ["", "ratio", "wanted"], [[name, *ratio] for name, ratio in ratios.items()])
    )
    print(
        f"longest stall of the event loop in our job: {1000 * found['stall']:.0f} ms\n", flush=True
    )
    measure.write("whole_job", {"seconds": seconds, **found}, quick)


async def _sides(handler, whole: str, quarter: str, repeats: int) -> dict[str, float]:
    import models
    import reference
    from recording.download import download
    from recording.pcm_stream import decode
    from recording.vad import CutRules, split_at_pauses

    s = handler.settings
    rules = CutRules(s.chunk_target_seconds, s.chunk_limit_seconds, s.vad_mode)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            download(whole, Path(folder), max_bytes=2**40, timeout=3600) as file,
            decode(file.path, 1e6, file.size, file.complete_marker) as pcm,
        ):
            chunks = [chunk async for chunk in split_at_pauses(pcm, rules)]
    stalls = [0.0]

    async def ours() -> None:
        ticker = asyncio.create_task(_record_stalls(stalls))
        output = await handler.handler({"id": "ours", "input": {"audio_url": whole}})
        ticker.cancel()
        assert output["text"]

    async def four() -> None:
        outputs = await asyncio.gather(
            *(handler.handler({"id": str(i), "input": {"audio_url": quarter}}) for i in range(4))
        )
        assert all(output["text"] for output in outputs)

    async def one_by_one() -> None:
        with tempfile.TemporaryDirectory() as folder:
            assert await reference.transcribe(handler, whole, Path(folder), s.chunk_target_seconds)

    sides = {
        "engine alone": lambda: models.direct(
            handler, chunks, handler.STEPS_ADMITTED * handler.asr.capacity
        ),
        "ours": ours,
        "4 jobs of a quarter": four,
        "reference": one_by_one,
    }
    walls: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            began = time.monotonic()
            await side()
            walls[name].append(time.monotonic() - began)
    return {name: statistics.median(runs) for name, runs in walls.items()} | {"stall": max(stalls)}


async def _record_stalls(stalls: list[float]) -> None:
    """Append, at every tick, the seconds by which the running event loop was late."""
    while True:
        began = time.monotonic()
        await asyncio.sleep(TICK_SECONDS)
        stalls.append(time.monotonic() - began - TICK_SECONDS)


if __name__ == "__main__":
    import models

    with models.worker() as handler:
        result = asyncio.run(_sides(handler, sys.argv[1], sys.argv[2], int(sys.argv[3])))
    print(json.dumps(result))
