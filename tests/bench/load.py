"""Memory of the worker and of vLLM's processes with many long jobs at once, on the real engine and
chunks of a minute.

The tiny checkpoint's answers for a minute are nonsense. What counts is the memory of the chunks
that the gate of a 24 GB card admits.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import inputs
import measure
import psutil
import soundfile
from measure import cost_of, table
from recording.chunk import SAMPLE_RATE

CROWDS = (1, 16, 32)  # jobs of an hour at once
SECONDS = 60  # how long it measures; the gate is full after a few
ENGINE: list[psutil.Process] = []
SETTINGS = dict(
    MAX_NUM_SEQS="64",
    CHUNK_TARGET_SECONDS="60",
    CHUNK_LIMIT_SECONDS="180",
    VLLM_ALLOW_LONG_MAX_MODEL_LEN="1",
)


def run(quick: bool) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = folder / "hour.wav"
        soundfile.write(path, inputs.speech(3600), SAMPLE_RATE, "PCM_16")
        with inputs.served(folder) as address:
            for jobs in CROWDS[:2] if quick else CROWDS:
                _, found[jobs] = cost_of([__file__, f"{address}/{path.name}", jobs], **SETTINGS)
    rows = [[f"{jobs} jobs", f["inside"], f["worker"], f["engine"]] for jobs, f in found.items()]
    print(
        table(
            "memory over that of the idle worker",
            ["", "chunks admitted", "worker MiB", "vLLM's processes MiB"],
            rows,
        ),
        flush=True,
    )
    measure.write("load", found, quick)


def _resident() -> tuple[int, int]:
    """Bytes of this process, and of vLLM's."""
    return psutil.Process().memory_info().rss, sum(p.memory_info().rss for p in ENGINE)


async def _measured(handler, url: str, jobs: int) -> dict[str, float]:
    ENGINE[:] = psutil.Process().children(recursive=True)  # there are no decoders yet
    before, peaks = _resident(), (0, 0)
    places = handler.gate._free
    crowd = [
        asyncio.create_task(handler.handler({"id": str(i), "input": {"audio_url": url}}))
        for i in range(jobs)
    ]
    ends, inside = time.monotonic() + SECONDS, 0
    while time.monotonic() < ends:
        await asyncio.sleep(0.5)
        peaks = tuple(map(max, peaks, _resident()))
        inside = max(inside, places - handler.gate._free)
    for job in crowd:
        job.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    worker, engine = ((peak - b) / 2**20 for peak, b in zip(peaks, before))
    return {"inside": inside, "worker": worker, "engine": engine}


if __name__ == "__main__":
    import models

    with models.worker() as handler:
        result = asyncio.run(_measured(handler, sys.argv[1], int(sys.argv[2])))
    print(json.dumps(result))
