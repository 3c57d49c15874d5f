"""500 short jobs of mixed kinds, 8 at once, on the real worker: bash tests/run.sh tests/soak.py -s

Every job is answered exactly once (a cancelled one never), and what the worker holds is the same
after 100 jobs and after 500: memory, file descriptors, threads, temp files, child processes. Takes
some minutes, so `bash tests/run.sh` leaves it out.
"""

import gc
import os
import random
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import psutil
import soundfile
from material import ENGLISH, silence
from recording.chunk import SAMPLE_RATE
from standin import until
from test_runpod import Worker, started

JOBS, EARLY, AT_ONCE = 500, 100, 8
# Growth allowed in the worker's process: allocators do not return all freed memory.
GROWTH_BYTES = 50 * 2**20
# Growth allowed in all processes together: on a CPU torch keeps kernels for each new batch shape,
# up to a few hundred.
GROWTH_OF_ALL = 1.15
# Percent of the jobs.
KINDS = {
    "short": 60,
    "big": 10,
    "silent": 5,
    "invalid": 5,
    "missing": 5,
    "web page": 5,
    "cancelled": 10,
}


@dataclass(frozen=True)
class Held:
    """What a worker holds when it has nothing to do."""

    own_memory: int  # bytes of the worker's process, without shared pages
    memory: int  # the same of all its processes together
    descriptors: int
    threads: int
    files: int
    children: int

    @classmethod
    def measured(cls, worker: Worker) -> "Held":
        own = psutil.Process(worker.process.pid)
        family = [own, *worker.children()]
        return cls(
            own.memory_full_info().uss,
            sum(p.memory_full_info().uss for p in family),
            own.num_fds(),
            own.num_threads(),
            sum(len(names) for _, _, names in os.walk(worker.temporary)),
            len(family) - 1,
        )


def test_five_hundred_jobs_are_answered_once_each_and_nothing_grows(tmp_path, file_server):
    folder = file_server.folder
    for i, u in enumerate(ENGLISH[:6]):
        soundfile.write(folder / f"short-{i}.wav", u.pcm, SAMPLE_RATE)
    soundfile.write(folder / "big.wav", np.concatenate([u.pcm for u in ENGLISH[:12]]), SAMPLE_RATE)
    soundfile.write(folder / "silent.wav", silence(5), SAMPLE_RATE)
    (folder / "page.html").write_text("<!DOCTYPE html><html></html>")
    rng = random.Random(10)
    inputs = {
        "short": lambda: {"audio_url": file_server.url(f"short-{rng.randrange(6)}.wav")},
        "big": lambda: {"audio_url": file_server.url("big.wav")},
        "silent": lambda: {"audio_url": file_server.url("silent.wav")},
        "invalid": lambda: {"audio_url": 7},
        "missing": lambda: {"audio_url": file_server.url("missing.wav")},
        "web page": lambda: {"audio_url": file_server.url("page.html")},
        "cancelled": lambda: {"audio_url": file_server.url("big.wav")},
    }
    codes = {
        "invalid": "input_invalid",
        "missing": "source_refused",
        "web page": "audio_undecodable",
    }
    kinds = rng.choices(list(KINDS), KINDS.values(), k=JOBS)

    with started(tmp_path, MAX_CONCURRENCY=str(AT_ONCE)) as worker:
        platform, sent, held, began = worker.platform, {}, {}, time.monotonic()

        def open_jobs() -> int:
            return sum(
                platform.jobs[job_id].status in ("IN_QUEUE", "IN_PROGRESS") for job_id in sent
            )

        def settled() -> Held:
            until(lambda: open_jobs() == 0 and not worker.files(), 300)
            time.sleep(3)  # until the last cancelled job has ended and the SDK polls idly
            gc.collect()
            return Held.measured(worker)

        for number, kind in enumerate(kinds, 1):
            until(lambda: open_jobs() < 2 * AT_ONCE, 300)
            job_id = platform.submit(inputs[kind]())
            sent[job_id] = kind
            if kind == "cancelled":
                time.sleep(rng.random() / 2)  # some are still in the queue, some are running
                platform.cancel(job_id)
            if number % EARLY == 0:
                held[number] = settled()
        seconds = time.monotonic() - began

        for job_id, kind in sent.items():
            job = platform.jobs[job_id]
            if kind == "cancelled" and job.status == "CANCELLED":
                # Its result may have been on its way when it was cancelled.
                assert job.answers == 0 or job.results[0].at > job.finished
                continue
            assert job.answers == 1 and len(job.results) == 1, (kind, job)
            assert job.shown["output"].get("error_code") == codes.get(kind), (kind, job.shown)
        print(
            f"\n{JOBS} jobs in {seconds:.0f} s: "
            f"{dict(Counter(platform.jobs[i].status for i in sent))}"
        )
        for number, what in held.items():
            print(
                f"after {number}: {what.own_memory / 2**20:.0f} MiB in its process, "
                f"{what.memory / 2**20:.0f} MiB in all, {what.descriptors} descriptors, "
                f"{what.threads} threads, "
                f"{what.files} temp files, {what.children} children"
            )
        early, late = held[EARLY], held[JOBS]
        assert (
            late.own_memory - early.own_memory < GROWTH_BYTES
            and late.memory < GROWTH_OF_ALL * early.memory
        )
        assert late.descriptors <= early.descriptors + 2 and late.threads <= early.threads + 2
        assert (late.files, late.children) == (early.files, early.children)
