"""SIGTERM while the real engine works on jobs, as RunPod scales a worker down.

    bash tests/run.sh tests/sigterm.py    a minute

It is not part of the first command, whose test_shutdown.py does the same and more with scripted
models, and whose demo ends a living engine.
"""

import signal

from standin import until
from test_entry_points import members
from test_runpod import recordings, started
from utterance import plain

__all__ = ["recordings"]  # a fixture


def test_on_sigterm_running_jobs_are_answered_and_nothing_is_left(tmp_path, recordings):
    with started(tmp_path) as worker:
        platform = worker.platform
        jobs = [platform.submit({"audio_url": recordings["minutes"]}) for _ in range(2)]
        until(lambda: all(platform.jobs[job_id].progress for job_id in jobs))
        worker.process.send_signal(signal.SIGTERM)
        for job_id in jobs:
            assert [plain(w) for w in platform.wait(job_id, 120)["output"]["text"].split()][:3]
        assert worker.process.wait(120) == 0
        assert members(worker.process.pid) == [] and worker.files() == []
