"""Seconds to align one chunk of 60 s and of 180 s, by qwen-asr and by this worker; and to repair
the marks alone.
"""

import asyncio
import functools
import json
import os
import random
import statistics
import sys
import time

import measure
from measure import cost_of, table

SECONDS = (60, 180)
WORDS_PER_SECOND = {"words": 2.5, "characters": 5}


def run(quick: bool) -> None:
    _, found = cost_of([__file__, 2 if quick else 5])
    rows = [
        [name, f["upstream"], f["ours"], f["upstream"] / f["ours"]] for name, f in found.items()
    ]
    print(
        table("aligner, one chunk, tiny checkpoint", ["", "qwen-asr s", "ours s", "ratio"], rows),
        flush=True,
    )
    measure.write("aligner", found, quick)


def _clip(seconds: int):
    """A chunk of the bank's utterances one after another, and what is said in it."""
    import numpy as np
    from material import ENGLISH, chunk_of
    from recording.chunk import SAMPLE_RATE

    parts, texts, length = [], [], 0
    for u in ENGLISH * 99:
        if length + len(u.pcm) > seconds * SAMPLE_RATE:
            break
        parts, texts, length = [*parts, u.pcm], [*texts, u.text], length + len(u.pcm)
    return chunk_of(np.concatenate(parts)), " ".join(texts)


def _align(aligner, chunk, text: str) -> None:
    asyncio.run(aligner.align(chunk, text, "English"))


def _timed(work, repeats: int) -> float:
    walls = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        walls.append(time.perf_counter() - began)
    return statistics.median(walls)


def _measured(repeats: int) -> dict[str, dict[str, float]]:
    import numpy as np
    import torch
    from qwen_asr import Qwen3ForcedAligner
    from recording.chunk import SAMPLE_RATE
    from speech.models.aligner import Aligner
    from speech.word_times import repair

    aligner = Aligner(os.environ["ALIGNER_NAME"], "cpu", "float32", 480, 180)
    aligner.start()
    package = Qwen3ForcedAligner.from_pretrained(os.environ["ALIGNER_NAME"], dtype=torch.float32)
    found = {}
    for seconds in SECONDS:
        chunk, text = _clip(seconds)
        wave = chunk.pcm.astype(np.float32) / 32768
        theirs = functools.partial(package.align, (wave, SAMPLE_RATE), text, "English")
        ours = functools.partial(_align, aligner, chunk, text)
        theirs(), ours()
        pairs = [(_timed(theirs, 1), _timed(ours, 1)) for _ in range(repeats)]
        found[f"{seconds} s chunk"] = dict(
            zip(("upstream", "ours"), map(statistics.median, zip(*pairs)))
        )
    for seconds in SECONDS:
        for unit, rate in WORDS_PER_SECOND.items():
            rng, count = random.Random(0), int(rate * seconds)
            marks = [
                max(
                    0,
                    int(1000 * seconds * i / (2 * count)) // 80 * 80
                    + 80 * rng.choice((0, 0, 0, 0, -5, 40)),
                )
                for i in range(2 * count)
            ]
            fix = package.aligner_processor.fix_timestamp
            upstream = functools.partial(fix, np.array(marks))
            ours = functools.partial(repair, marks, 1000 * seconds, [4] * count)
            found[f"repair, {count} {unit} of {seconds} s"] = {
                "upstream": _timed(upstream, repeats),
                "ours": _timed(ours, repeats),
            }
    aligner.close()
    return found


if __name__ == "__main__":
    print(json.dumps(_measured(int(sys.argv[1]))))
