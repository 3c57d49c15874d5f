"""Every fault at every chunk of a job: no job says success with text missing and nothing said.

The faults are injected at `engine.generate`; chunks that are not meant go to the real engine.
"""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from audio import SAMPLE_RATE, decode, waveform
from material import ENGLISH, silence
from speech import plain
from vad import CutRules, split_at_pauses

LOOP = "language English<asr_text>" + "one two " * 30
ANSWERS = {
    "cut_off": ("language English<asr_text>One", "length"),
    "loop": (LOOP, "stop"),
    "too_little": ("language None<asr_text>", "stop"),
    "too_much": ("language English<asr_text>" + " ".join(u.text for u in ENGLISH), "stop"),
    "engine_error": ValueError("refused"),
}
POSITIONS = {"first": lambda i, n: i == 0, "middle": lambda i, n: i == n // 2, "last": lambda i, n: i == n - 1, "all": lambda i, n: True}


@pytest.fixture(scope="module")
def recording(worker, file_server):
    """(url, its chunks, what is said in each): five or more chunks with over 4 s of speech each."""
    long = [u for u in ENGLISH if u.words[-1].end - u.words[0].start > 4.2][:6]
    pcm = np.concatenate([part for u in long for part in (u.pcm, silence(0.6))])
    path = file_server.folder / "faults.wav"
    soundfile.write(path, pcm, SAMPLE_RATE)

    async def chunks():
        rules = CutRules(worker.settings.chunk_target_seconds, worker.settings.chunk_limit_seconds, worker.settings.vad_mode)
        async with decode(path, 3600) as stream:
            return [c async for c in split_at_pauses(stream, rules)]

    return file_server.url(path.name), asyncio.run(chunks())


class Faulty:
    """Answers in the engine's stead for some chunks and their pieces, the first `times` times each, and counts all calls."""

    def __init__(self, worker, chunks, meant, answer, times):
        self._real = worker.asr._engine.generate
        self._waves = [waveform(c) for c in chunks]
        self._left = {i: times for i in range(len(chunks)) if meant(i, len(chunks))}
        self._answer, self.calls = answer, [0] * len(chunks)

    def __call__(self, prompt, sampling, request_id, priority):
        wave = prompt["multi_modal_data"]["audio"][0][0]
        i = next(i for i, whole in enumerate(self._waves) if _is_piece(wave, whole))
        self.calls[i] += 1
        if self._left.get(i, 0) == 0:
            return self._real(prompt, sampling, request_id=request_id, priority=priority)
        self._left[i] -= 1
        return self._faulty()

    async def _faulty(self):
        if isinstance(self._answer, Exception):
            raise self._answer
        text, finish_reason = self._answer
        yield SimpleNamespace(outputs=[SimpleNamespace(text=text, finish_reason=finish_reason, token_ids=[])])


def _is_piece(wave, whole):
    n = len(wave)
    return n <= len(whole) and (np.array_equal(wave, whole[:n]) or np.array_equal(wave, whole[-n:]))


@pytest.fixture
def run(worker, recording, monkeypatch):
    url, chunks = recording

    def run(position=None, fault="cut_off", times=0, **fields):
        faulty = Faulty(worker, chunks, POSITIONS.get(position, lambda i, n: False), ANSWERS[fault], times)
        monkeypatch.setattr(worker.asr._engine, "generate", faulty)
        return asyncio.run(worker.handler({"id": "test", "input": {"audio_url": url, **fields}})), faulty.calls

    return run


@pytest.fixture(scope="module")
def healthy_text(worker, recording):
    return asyncio.run(worker.handler({"id": "test", "input": {"audio_url": recording[0]}}))["text"]


def test_a_healthy_recording_costs_no_extra_call(run, recording):
    output, calls = run()
    assert calls == [1] * len(recording[1]) and len(calls) >= 5 and "retries" not in output


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("fault", ANSWERS)
def test_a_fault_that_comes_once_is_mended_and_noted(run, healthy_text, position, fault):
    output, calls = run(position, fault, times=1)
    assert max(calls) <= 3 and "error" not in output
    assert {reason for r in output["retries"] for reason in r["reasons"]} == {fault}
    said, heard = [[plain(w) for w in text.split()] for text in (healthy_text, output["text"])]
    assert abs(len(said) - len(heard)) <= 0.1 * len(said)  # halves may hear a word otherwise


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("fault", ["cut_off", "loop", "engine_error"])
def test_a_fault_that_stays_fails_the_job_with_its_spans(run, recording, position, fault):
    output, calls = run(position, fault, times=9)
    assert output["error_code"] == "transcript_incomplete" and "text" not in output and max(calls) <= 3
    chunks = [c for i, c in enumerate(recording[1]) if POSITIONS[position](i, len(recording[1]))]
    for chunk in chunks:
        covered = [s for s in output["failed_spans"] if chunk.start <= s["start"] and s["end"] <= chunk.end]
        assert sum(s["end"] - s["start"] for s in covered) == pytest.approx(chunk.duration, abs=0.002)
        assert {s["reason"] for s in covered} == {fault}
    assert f"{chunks[0].start:.3f}" in output["error"] and fault in output["error"]


@pytest.mark.parametrize("position", ["first", "middle", "last"])
@pytest.mark.parametrize("fault", ["cut_off", "loop", "engine_error"])
def test_with_allow_partial_the_rest_comes_with_what_failed(run, healthy_text, position, fault):
    output, _ = run(position, fault, times=9, allow_partial=True)
    assert output["text"] and len(output["text"]) < len(healthy_text) and "error" not in output
    assert {s["reason"] for s in output["failed_spans"]} == {fault}


def test_with_allow_partial_and_nothing_transcribed_the_job_fails_all_the_same(run):
    output, _ = run("all", "cut_off", times=9, allow_partial=True)
    assert output["error_code"] == "transcript_incomplete"


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("fault", ["too_little", "too_much"])
def test_a_doubtful_answer_that_stays_is_kept_and_said_to_be_doubtful(run, position, fault):
    output, calls = run(position, fault, times=9)
    assert "error" not in output and max(calls) <= 3
    assert fault in {reason for r in output["retries"] for reason in r["reasons"]}
