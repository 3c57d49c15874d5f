"""Seconds from a job's start until its first chunk is ready for the engine, by length of the
recording and speed of the network.
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

# Bytes a second. The server runs on the same cores.
NETWORKS = {
    "loopback": None,
    "1 Gbit/s": 125_000_000,
    "16 Mbit/s": 2_000_000,
}
REPEATS = 5


def run(quick: bool) -> None:
    lengths = (60, 1800) if quick else (60, 14_400)
    found: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for network, speed in NETWORKS.items():
            with inputs.served(folder, speed) as address:
                for _ in range(REPEATS):
                    for length in lengths:
                        path = inputs.recording(folder, length, "mp3")
                        _, said = cost_of([__file__, f"{address}/{path.name}"])
                        found.setdefault(network, {}).setdefault(length, []).append(said["seconds"])
    medians = {
        network: {length: statistics.median(runs) for length, runs in by_length.items()}
        for network, by_length in found.items()
    }
    rows = [
        [network, *by_length.values(), by_length[lengths[1]] / by_length[lengths[0]]]
        for network, by_length in medians.items()
    ]
    print(
        table(
            "seconds to the first chunk, MP3",
            ["", *(f"{n / 60:.0f} min" for n in lengths), "ratio"],
            rows,
        ),
        flush=True,
    )
    measure.write("first_chunk", medians, quick)


async def _first(url: str) -> float:
    from recording.download import download
    from recording.pcm_stream import decode
    from recording.vad import CutRules, split_at_pauses

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        async with (
            download(url, Path(folder), max_bytes=2**40, timeout=3600) as file,
            decode(file.path, 1e6, file.size, file.complete_marker) as pcm,
        ):
            async for _ in split_at_pauses(pcm, CutRules(30, 60, 2)):
                return time.monotonic() - began
    raise RuntimeError("no chunk")


if __name__ == "__main__":
    print(json.dumps({"seconds": asyncio.run(_first(sys.argv[1]))}))
