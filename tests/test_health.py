"""After a call that hung, or three unexplained failures in a row, the worker checks itself.

It gives up where the check fails.
"""

import asyncio
from types import SimpleNamespace

import pytest
import speech.health as health
from contract.errors import EngineDead, RecognitionError
from material import chunk_of, silence
from result.usage import Usage
from speech.health import Health
from speech.models.recogniser import EMPTY_VOCABULARY, Hypothesis
from speech.watched_models import WatchedModels

CHUNK = chunk_of(silence(1))


class Worker:
    """Counts the checks; `broken` makes them fail."""

    def __init__(self):
        self.checks, self.given_up, self.broken = 0, 0, False
        self.health = Health(self.check, self.give_up)

    async def check(self) -> None:
        self.checks += 1
        await asyncio.sleep(0)
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def give_up(self) -> None:
        self.given_up += 1


@pytest.fixture
def worker() -> Worker:
    return Worker()


async def fail(worker: Worker, part: str = "engine", times: int = 3) -> None:
    for _ in range(times):
        await worker.health.failed(part)


async def test_two_failures_in_a_row_start_no_check(worker):
    await fail(worker, times=2)
    worker.health.worked("engine")
    await fail(worker, times=2)
    assert worker.checks == 0


async def test_the_third_failure_starts_a_check_and_a_check_that_passes_resets_the_count(worker):
    await fail(worker, times=5)
    assert worker.checks == 1
    await fail(worker, times=1)
    assert (worker.checks, worker.given_up) == (2, 0)


async def test_one_call_that_hung_starts_a_check(worker):
    await worker.health.failed("engine", hung=True)
    assert (worker.checks, worker.given_up) == (1, 0)
    await worker.health.failed("engine")
    assert worker.checks == 1


async def test_an_engine_that_does_not_answer_in_time_is_checked_at_once_fault_injected(worker):
    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    asr = SimpleNamespace(transcribe=hang)
    models = WatchedModels(asr, None, worker.health, 0.01, Usage())
    with pytest.raises(TimeoutError):
        await models.recognise(None, None, "", 0.0, EMPTY_VOCABULARY)
    assert worker.checks == 1


def models_that_answer(worker: Worker, text: str, finish_reason: str) -> WatchedModels:
    async def transcribe(*_: object) -> Hypothesis:
        return Hypothesis(text, "English", finish_reason, 9)

    asr = SimpleNamespace(transcribe=transcribe)
    return WatchedModels(asr, None, worker.health, 1.0, Usage())


async def test_the_rows_of_marks_of_a_gpu_that_computes_nan_fail_and_start_a_check(worker):
    models = models_that_answer(worker, "!" * 500, "length")
    for _ in range(3):
        with pytest.raises(RecognitionError, match="exclamation marks"):
            await models.recognise(CHUNK, None, "", 0.0, EMPTY_VOCABULARY)
    assert worker.checks == 1


@pytest.mark.parametrize("text", ["。", "...", ".", "!", "— “”", "♪♪", "👍", "%", ""])
async def test_an_answer_without_letters_and_numbers_is_silence(worker, text):
    models = models_that_answer(worker, text, "stop")
    for _ in range(4):
        found = await models.recognise(CHUNK, None, "", 0.0, EMPTY_VOCABULARY)
        assert (found.text, found.language) == ("", None)
    assert worker.checks == 0


@pytest.mark.parametrize("text", ["5", "Yes!", "½", "好。", "٣"])
async def test_a_letter_or_a_number_is_text(worker, text):
    models = models_that_answer(worker, text, "stop")
    found = await models.recognise(CHUNK, None, "", 0.0, EMPTY_VOCABULARY)
    assert (found.text, found.language) == (text, "English")


async def test_a_success_of_one_part_does_not_reset_the_count_of_the_other(worker):
    for _ in range(3):
        worker.health.worked("engine")
        await worker.health.failed("aligner")
    assert worker.checks == 1


async def test_a_failed_check_raises_engine_dead_and_gives_up_the_worker(worker):
    worker.broken = True
    with pytest.raises(EngineDead):
        await fail(worker)
    assert (worker.checks, worker.given_up) == (1, 1)


async def test_a_check_that_times_out_has_failed(worker, monkeypatch):
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.01)
    worker.health = Health(lambda: asyncio.sleep(3600), worker.give_up)
    with pytest.raises(EngineDead):
        await fail(worker)
    assert worker.given_up == 1


async def test_failures_at_the_same_time_share_one_check(worker):
    worker.broken = True
    answers = await asyncio.gather(
        *(worker.health.failed("engine") for _ in range(100)), return_exceptions=True
    )
    assert worker.checks == 1 and [type(a) for a in answers] == [type(None)] * 2 + [EngineDead] * 98
