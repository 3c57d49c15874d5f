"""Every fault in the first, a middle, the last and every chunk: text is delivered where there is
any, and a gap is never a success.

The faults are injected at `engine.generate`; the other chunks go to the real engine.
"""

import asyncio
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import succeeded
from material import ENGLISH, silence
from recording.chunk import SAMPLE_RATE
from recording.pcm_stream import decode
from recording.vad import CutRules, split_at_pauses
from speech.admission import Gate
from speech.health import Health
from utterance import plain

LOOP = "language English<asr_text>" + "one two " * 30
ANSWERS = {
    "cut_off": ("language English<asr_text>One", "length"),
    "loop": (LOOP, "length"),
    "too_much": ("language English<asr_text>" + " ".join(u.text for u in ENGLISH), "stop"),
    "engine_error": ValueError("refused"),
}
POSITIONS = {
    "first": lambda i, n: i == 0,
    "middle": lambda i, n: i == n // 2,
    "last": lambda i, n: i == n - 1,
    "all": lambda i, n: True,
}


@pytest.fixture(scope="module")
def recording(worker, file_server):
    """(url, its chunks, what is said in each): five or more chunks with over 4 s of speech each."""
    long = [u for u in ENGLISH if u.words[-1].end - u.words[0].start > 4.2][:6]
    pcm = np.concatenate([part for u in long for part in (u.pcm, silence(0.6))])
    path = file_server.folder / "faults.wav"
    soundfile.write(path, pcm, SAMPLE_RATE)

    async def chunks():
        rules = CutRules(
            worker.settings.chunk_target_seconds,
            worker.settings.chunk_limit_seconds,
            worker.settings.vad_mode,
        )
        async with decode(path, 3600) as stream:
            return [c async for c in split_at_pauses(stream, rules)]

    return file_server.url(path.name), asyncio.run(chunks())


class Faulty:
    """Replaces the engine's first `times` answers for each chosen chunk and its pieces; counts all
    calls for each chunk.
    """

    def __init__(self, worker, chunks, chosen, answer, times):
        self._real, self._render = worker.asr._engine.generate, worker.asr._rendered
        self._chunks = chunks
        self._left = {i: times for i in range(len(chunks)) if chosen(i, len(chunks))}
        self._answer, self.calls = answer, [0] * len(chunks)

    async def rendered(self, chunk, prompt_ids):
        """((index of the chunk that `chunk` is or is a piece of, vLLM's input), spectrum)."""
        i = next(
            i for i, whole in enumerate(self._chunks) if whole.start <= chunk.start < whole.end
        )
        prompt, spectrum = await self._render(chunk, prompt_ids)
        return (i, prompt), spectrum

    def __call__(self, prompt, sampling, request_id, priority):
        i, prompt = prompt
        self.calls[i] += 1
        if self._left.get(i, 0) == 0:
            return self._real(prompt, sampling, request_id=request_id, priority=priority)
        self._left[i] -= 1
        return self._faulty()

    async def _faulty(self):
        if isinstance(self._answer, Exception):
            raise self._answer
        text, finish_reason = self._answer
        yield SimpleNamespace(
            prompt_token_ids=[],
            outputs=[SimpleNamespace(text=text, finish_reason=finish_reason, token_ids=[])],
        )


@pytest.fixture
def run(worker, recording, monkeypatch):
    url, chunks = recording

    def run(position=None, fault="cut_off", times=0, **fields):
        faulty = Faulty(
            worker, chunks, POSITIONS.get(position, lambda i, n: False), ANSWERS[fault], times
        )
        # The self-check of the worker would be answered by `faulty` as well.
        monkeypatch.setattr(worker, "health", Health(partial(asyncio.sleep, 0), pytest.fail))
        monkeypatch.setattr(worker.asr, "_rendered", faulty.rendered)
        monkeypatch.setattr(worker.asr._engine, "generate", faulty)
        output = asyncio.run(worker.handler({"id": "test", "input": {"audio_url": url, **fields}}))
        # The requests of a failed job end before the next test.
        worker.asr._submit(asyncio.sleep(0.05)).result()
        return output, faulty.calls

    return run


@pytest.fixture(scope="module")
def healthy_text(worker, recording):
    job = {"id": "test", "input": {"audio_url": recording[0]}}
    return succeeded(asyncio.run(worker.handler(job)))["text"]


def test_a_healthy_recording_costs_no_extra_call(run, recording):
    output, calls = run()
    assert calls == [1] * len(recording[1]) and len(calls) >= 5 and "retries" not in output


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("fault", ANSWERS)
def test_a_fault_that_occurs_once_is_mended_and_reported(run, healthy_text, position, fault):
    output, calls = run(position, fault, times=1)
    succeeded(output)
    assert max(calls) <= 3
    assert {reason for r in output["retries"] for reason in r["reasons"]} == {fault}
    said, heard = [[plain(w) for w in text.split()] for text in (healthy_text, output["text"])]
    # In halves a word may be recognised differently.
    assert abs(len(said) - len(heard)) <= 0.1 * len(said)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(
    "fault, delivered", [("cut_off", "One"), ("loop", "one two"), ("too_much", ENGLISH[0].text)]
)
def test_a_text_that_stays_faulty_is_delivered_and_marked(
    run, recording, position, fault, delivered
):
    output, calls = run(position, fault, times=9)
    chunks = [c for i, c in enumerate(recording[1]) if POSITIONS[position](i, len(recording[1]))]
    assert succeeded(output)["text"].count(delivered) == len(chunks) and max(calls) == 2
    marked = [
        {"start": c.start, "end": c.end, "reasons": [fault], "outcome": "kept"} for c in chunks
    ]
    assert output["retries"] == marked


@pytest.mark.parametrize("position", POSITIONS)
def test_a_chunk_without_any_answer_fails_the_job_at_once_with_its_span(run, recording, position):
    output, calls = run(position, "engine_error", times=9)
    assert (
        output["error_code"] == "transcript_incomplete" and "text" not in output and max(calls) == 2
    )
    assert output["retryable"] is False  # the engine would refuse it again
    chunks = [c for i, c in enumerate(recording[1]) if POSITIONS[position](i, len(recording[1]))]
    (span,) = output["failed_spans"]
    assert span in [
        {"start": round(c.start, 3), "end": round(c.end, 3), "reason": "engine_error"}
        for c in chunks
    ]
    assert f"{span['start']:.3f}" in output["error"] and "engine_error" in output["error"]


@pytest.mark.parametrize("position", ["first", "middle", "last"])
def test_with_allow_partial_the_rest_is_delivered_with_its_failed_spans(
    run, recording, healthy_text, position
):
    output, _ = run(position, "engine_error", times=9, allow_partial=True)
    assert 0 < len(succeeded(output)["text"]) < len(healthy_text)
    assert [s["reason"] for s in output["failed_spans"]] == ["engine_error"]
    assert [r["outcome"] for r in output["retries"]] == ["failed"]


def test_with_allow_partial_a_job_without_any_text_fails(run, recording):
    output, _ = run("all", "engine_error", times=9, allow_partial=True)
    assert output["error_code"] == "transcript_incomplete" and len(output["failed_spans"]) == len(
        recording[1]
    )


def test_a_failed_chunk_ends_the_job_before_the_others_are_decoded(
    worker, recording, run, monkeypatch
):
    monkeypatch.setattr(worker, "gate", Gate(1))
    output, calls = run("first", "engine_error", times=9)
    assert calls[0] == 2 and sum(calls[1:]) <= 1 and output["error_code"] == "transcript_incomplete"
