"""Whole jobs with unusual input or injected faults: each has its own error or the right result, and
leaves nothing behind.
"""

import asyncio
import base64
import gc
import json
import os
import shutil
import signal
import tempfile
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import speech.health as health
import speech.models.aligner as align
import torch
from conftest import succeeded
from contract.errors import AlignError, RecognitionError
from material import ENGLISH, noise, silence
from recording import source
from recording.chunk import SAMPLE_RATE
from speech.admission import Gate
from speech.health import Health
from speech.models import recogniser
from speech.words import ChunkResult
from test_asr import Prompts
from vllm.v1.engine.exceptions import EngineDeadError

SRC = Path(__file__).parent.parent / "src"
NOTHING = {
    "language_detected": None,
    "language_code": None,
    "languages": [],
    "text": "",
    "segments": [],
}


def without_cost(output: dict) -> dict:
    """A result without its usage, whose seconds differ from run to run."""
    return {key: value for key, value in output.items() if key != "usage"}


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder in which every temp file of the test is made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def run(worker, temporary):
    """Run a job, and check that it leaves no temp file and no new child process."""

    def run(job_input) -> dict:
        before = {p.pid for p in psutil.Process().children(recursive=True)}
        output = asyncio.run(worker.handler({"id": "test", "input": job_input}))
        assert list(temporary.iterdir()) == []
        assert {p.pid for p in psutil.Process().children(recursive=True)} <= before
        json.dumps(output, allow_nan=False).encode()
        return output

    return run


@pytest.fixture
def serve(file_server):
    def serve(name: str, content: bytes | np.ndarray) -> str:
        path = file_server.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            soundfile.write(path, content, SAMPLE_RATE)
        return file_server.url(name)

    return serve


def test_a_url_a_data_url_base64_and_a_path_give_the_same_result_byte_by_byte(
    worker, run, serve, file_server, monkeypatch
):
    url = serve("same.flac", np.concatenate([u.pcm for u in ENGLISH[:4]]))
    encoded = base64.b64encode((file_server.folder / "same.flac").read_bytes()).decode()
    monkeypatch.setattr(worker, "settings", replace(worker.settings, allow_local_files=True))
    path = str(file_server.folder / "same.flac")
    inputs = [
        {"audio_url": url},
        {"audio_url": f"data:audio/flac;base64,{encoded}"},
        {"audio_base64": encoded},
        {"audio_url": path},
        {"audio_url": f"file://{path}"},
    ]
    first, *others = [json.dumps(without_cost(run(job_input))).encode() for job_input in inputs]
    assert len(json.loads(first)["segments"]) > 5 and others == [first] * 4
    assert Path(path).exists()


def test_without_timestamps_a_job_asks_the_aligner_for_nothing(run, serve):
    url = serve("chunks.flac", np.concatenate([u.pcm for u in ENGLISH[:4]]))
    timed, untimed = (run({"audio_url": url, "timestamps": flag}) for flag in (True, False))
    assert untimed["text"] == timed["text"]
    assert len(untimed["segments"]) == untimed["usage"]["chunks"] < len(timed["segments"])
    assert untimed["usage"]["alignment_seconds"] == 0 < timed["usage"]["alignment_seconds"]


def test_a_local_file_that_is_not_there_or_too_large_is_refused(worker, run, monkeypatch, tmp_path):
    (tmp_path / "large.wav").write_bytes(bytes(100))
    monkeypatch.setattr(
        worker, "settings", replace(worker.settings, allow_local_files=True, max_download_bytes=99)
    )
    assert run({"audio_url": str(tmp_path / "none.wav")})["error_code"] == "source_refused"
    assert run({"audio_url": str(tmp_path)})["error_code"] == "source_refused"
    assert run({"audio_url": str(tmp_path / "large.wav")})["error_code"] == "download_too_large"
    assert (
        run({"audio_base64": base64.b64encode(bytes(100)).decode()})["error_code"]
        == "download_too_large"
    )


@pytest.mark.parametrize(
    "pcm",
    [silence(5), noise(5, 20), noise(1, 2000), noise(6, 2000), silence(0.1), noise(0.1)],
    ids=["silence", "hiss", "noise", "much noise", "0.1 s", "0.1 s of noise"],
)
def test_a_recording_without_speech_gives_an_empty_result_not_an_error(run, serve, pcm):
    output = run({"audio_url": serve("nothing.wav", pcm)})
    assert output.pop("warnings")[-1].startswith("No words were recognised. The audio has ")
    assert without_cost(output) == NOTHING | {"duration": len(pcm) / SAMPLE_RATE}


def test_silence_in_a_forced_language_has_no_language(run, serve):
    output = run({"audio_url": serve("silence.wav", silence(5)), "language": "English"})
    assert len(output.pop("warnings")) == 1
    assert without_cost(output) == NOTHING | {"duration": 5}


def test_a_tenth_of_a_second_of_speech_is_a_result_within_its_bounds(run, serve):
    start = round(ENGLISH[0].words[0].start * SAMPLE_RATE)
    output = succeeded(run({"audio_url": serve("short.wav", ENGLISH[0].pcm[start : start + 1600])}))
    assert all(0 <= s["start"] < s["end"] <= 0.1 for s in output["segments"])


@pytest.mark.parametrize(
    "content, code, part",
    [
        (b"", "audio_empty", "empty (0 bytes)"),
        (b"<!DOCTYPE html><html><body>Not here</body></html>", "audio_undecodable", "web page"),
        (b"just some words, no sound" * 100, "audio_undecodable", "known format"),
    ],
)
def test_a_file_that_is_not_audio_has_its_own_error(run, serve, content, code, part):
    output = run({"audio_url": serve("file.mp3", content)})
    assert output["error_code"] == code and part in output["error"] and output["retryable"] is False


def test_a_404_is_reported_without_the_query_of_the_url(run, file_server):
    output = run({"audio_url": file_server.url("missing.wav?token=secret")})
    assert (
        output["error_code"] == "source_refused"
        and "404" in output["error"]
        and "secret" not in output["error"]
    )


def test_a_host_that_does_not_resolve_is_named(run):
    output = run({"audio_url": "http://no-such-host.invalid/a.wav"})
    assert output["error_code"] == "host_not_found" and "no-such-host.invalid" in output["error"]


def test_a_private_address_is_refused_where_the_operator_has_not_allowed_it(
    run, serve, monkeypatch
):
    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS")
    assert run({"audio_url": serve("private.wav", silence(1))})["error_code"] == "address_refused"


@pytest.mark.parametrize(
    "job_input, part",
    [
        (None, "input is None"),
        ({}, "audio_url is missing"),
        ({"audio_url": 7}, "audio_url is 7"),
        ({"audio_url": "file:///etc/passwd"}, "http or https"),
        ({"audio_url": "http://a/b", "language": "Klingon"}, "'Klingon'"),
        ({"audio_url": "http://a/b", "language": 1}, "language is 1"),
        ({"audio_url": "http://a/b", "initial_context": ["x"]}, "initial_context is a list"),
        (
            {"audio_url": "http://a/b", "use_previous_context": "yes"},
            "use_previous_context is 'yes'",
        ),
        ({"audio_url": "http://a/b", "vocabulary": ["Žižek", 7]}, "vocabulary[1] is 7"),
        (
            {"audio_url": "http://a/b", "vocabulary": ["Kubernetes Łukasz Żółć " * 4] * 200},
            "longer than the 512 tokens",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_value_before_any_download(run, job_input, part):
    output = run(job_input)
    assert output["error_code"] == "input_invalid" and part in output["error"]


def test_audio_over_the_limit_is_refused(run, serve, worker, monkeypatch):
    monkeypatch.setattr(worker, "settings", replace(worker.settings, max_audio_seconds=2.0))
    assert run({"audio_url": serve("long.wav", noise(5))})["error_code"] == "audio_too_long"


def test_a_file_over_the_limit_is_refused(run, serve, worker, monkeypatch):
    monkeypatch.setattr(worker, "settings", replace(worker.settings, max_download_bytes=1000))
    assert run({"audio_url": serve("large.wav", noise(5))})["error_code"] == "download_too_large"


def test_a_dead_engine_fails_the_job_and_asks_for_a_new_worker_fault_injected(
    run, serve, worker, monkeypatch
):
    monkeypatch.setattr(
        worker.asr._engine, "generate", Prompts(worker.asr, [EngineDeadError()] * 9)
    )
    output = run({"audio_url": serve("speech.wav", ENGLISH[0].pcm)})
    assert (output["error_code"], output["retryable"], output["refresh_worker"]) == (
        "engine_dead",
        True,
        True,
    )


def test_a_failed_alignment_keeps_the_text_with_estimated_times_fault_injected(
    run, serve, worker, monkeypatch
):
    async def fails(*_):
        raise AlignError("injected")

    monkeypatch.setattr(worker.aligner, "align", fails)
    u = ENGLISH[0]
    output = succeeded(run({"audio_url": serve("unaligned.wav", u.pcm)}))
    assert output["text"] == u.text and len(output["segments"]) == len(u.words)


async def never(*_, **__):
    await asyncio.sleep(3600)
    yield


def test_a_chunk_without_an_answer_times_out_fault_injected(run, serve, worker, monkeypatch):
    async def passes() -> None:
        pass

    monkeypatch.setattr(worker, "health", Health(passes, lambda: None))
    monkeypatch.setattr(worker, "settings", replace(worker.settings, chunk_timeout_seconds=1.0))
    monkeypatch.setattr(worker.asr._engine, "generate", never)
    output = run({"audio_url": serve("hangs.wav", ENGLISH[0].pcm)})
    assert output["error_code"] == "transcript_incomplete" and [
        s["reason"] for s in output["failed_spans"]
    ] == ["timeout"]


def test_an_aligner_without_an_answer_costs_times_not_text_fault_injected(
    run, serve, worker, monkeypatch
):
    async def hangs(*_):
        await asyncio.sleep(3600)

    monkeypatch.setattr(worker, "settings", replace(worker.settings, chunk_timeout_seconds=1.0))
    monkeypatch.setattr(worker.aligner, "align", hangs)
    monkeypatch.setattr(
        worker.asr._engine,
        "generate",
        Prompts(worker.asr, [(f"language English<asr_text>{ENGLISH[0].text}", "stop")]),
    )
    output = succeeded(run({"audio_url": serve("hangs.wav", ENGLISH[0].pcm)}))
    assert output["text"] == ENGLISH[0].text and all(s["estimated"] for s in output["segments"])
    assert output["warnings"] == ["Times are estimated. The aligner did not answer in time."]


@pytest.fixture
def gave_up(worker, monkeypatch) -> list[str]:
    """Fresh counts of failures.

    Giving up adds to this list, and does not end the engine that all tests share.
    """
    told = []
    monkeypatch.setattr(
        worker, "health", Health(worker.fitness_check, lambda: told.append("given up"))
    )
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.2)
    return told


def test_a_stuck_engine_is_noticed_at_the_first_timeout_fault_injected(
    run, serve, worker, monkeypatch, gave_up
):
    monkeypatch.setattr(worker, "settings", replace(worker.settings, chunk_timeout_seconds=1.0))
    monkeypatch.setattr(worker.asr._engine, "generate", never)
    job = {"audio_url": serve("stuck.wav", ENGLISH[0].pcm)}
    assert run(job)["error_code"] == "engine_dead"
    assert gave_up == ["given up"]


def test_a_broken_gpu_is_noticed_at_the_third_aligner_error_fault_injected(
    run, serve, worker, monkeypatch, gave_up
):
    def sticky(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(align, "predicted_classes", sticky)
    job = {"audio_url": serve("broken.wav", ENGLISH[0].pcm)}
    outputs = [run(job) for _ in range(3)]
    assert [o.get("error_code") for o in outputs] == [None, None, "engine_dead"] and outputs[2][
        "refresh_worker"
    ]
    assert outputs[0]["text"] == ENGLISH[0].text and gave_up == ["given up"]


def test_an_aligner_that_has_no_memory_for_a_single_chunk_is_noticed_fault_injected(
    run, serve, worker, monkeypatch, gave_up
):
    def starved(*_):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(align, "predicted_classes", starved)
    job = {"audio_url": serve("memory.wav", ENGLISH[0].pcm)}
    outputs = [run(job) for _ in range(3)]
    assert [o.get("error_code") for o in outputs] == [None, None, "engine_dead"]
    assert gave_up == ["given up"]


def test_aligner_errors_with_a_known_reason_do_not_count_fault_injected(
    run, serve, worker, monkeypatch, gave_up
):
    def unreadable(*_):
        raise KeyError("injected")

    monkeypatch.setattr(worker.aligner._model.aligner_processor, "encode_timestamp", unreadable)
    job = {"audio_url": serve("unreadable.wav", ENGLISH[0].pcm)}
    assert not [o for o in (run(job) for _ in range(4)) if "error" in o] and gave_up == []


def test_an_engine_that_refuses_every_chunk_is_noticed_fault_injected(
    run, serve, worker, monkeypatch, gave_up
):
    """A chunk is refused twice before its job fails, so the third refusal comes with the second
    job.
    """

    def refuses(*_, **__):
        raise ValueError("injected")

    monkeypatch.setattr(worker.asr._engine, "generate", refuses)
    job = {"audio_url": serve("refused.wav", ENGLISH[0].pcm)}
    assert [run(job)["error_code"] for _ in range(2)] == ["transcript_incomplete", "engine_dead"]
    assert gave_up == ["given up"]


def test_the_process_that_is_killed_on_giving_up_is_the_engines(worker):
    assert [type(p).__name__ for p in worker.asr._processes] == ["SpawnProcess"]
    assert all(p.is_alive() and "EngineCore" in p.name for p in worker.asr._processes)


def test_the_engines_process_is_started_by_spawn(worker):
    assert recogniser.ENVIRONMENT["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_the_fitness_check_fails_where_an_answer_does_not_end_fault_injected(worker, monkeypatch):
    asyncio.run(worker.fitness_check())
    monkeypatch.setattr(
        worker.asr._engine,
        "generate",
        Prompts(worker.asr, [("language English<asr_text>" + "!" * 200, "length")]),
    )
    with pytest.raises(RecognitionError, match="did not come to an end"):
        asyncio.run(worker.fitness_check())


def test_the_gate_lets_in_twice_what_the_engine_takes_in_one_step(worker):
    assert worker.gate._free == 2 * worker.asr.capacity


def test_all_jobs_together_have_no_more_chunks_in_flight_than_the_gate_lets_in(
    serve, worker, monkeypatch
):
    in_flight = most = 0

    async def counted(chunk, *_):
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.02)
        in_flight -= 1
        return [ChunkResult(chunk.start, chunk.end, chunk.speech_seconds)]

    monkeypatch.setattr(worker, "transcribe_chunk", counted)
    monkeypatch.setattr(worker, "gate", Gate(3))
    url = serve("long.wav", np.concatenate([u.pcm for u in ENGLISH[:12]]))

    async def jobs():
        return await asyncio.gather(
            *(worker.handler({"id": str(i), "input": {"audio_url": url}}) for i in range(4))
        )

    assert [succeeded(output)["text"] for output in asyncio.run(jobs())] == [""] * 4 and most == 3


def test_a_job_with_a_chunk_whose_results_are_lost_fails_fault_injected(
    run, serve, worker, monkeypatch
):
    transcribe, chunks = worker.transcribe_chunk, []

    async def loses_the_second(chunk, *more):
        chunks.append(chunk)
        return [] if len(chunks) == 2 else await transcribe(chunk, *more)

    monkeypatch.setattr(worker, "transcribe_chunk", loses_the_second)
    output = run({"audio_url": serve("lost.wav", np.concatenate([u.pcm for u in ENGLISH[:6]]))})
    assert output["error_code"] == "internal_error" and len(chunks) > 2


def test_a_job_whose_chunk_waits_at_the_gate_decodes_no_further(serve, worker, monkeypatch):
    gate, streams, decode = Gate(1), [], source.decode

    @asynccontextmanager
    async def watched(*args, **part):
        async with decode(*args, **part) as pcm:
            streams.append(pcm)
            yield pcm

    monkeypatch.setattr(source, "decode", watched)
    monkeypatch.setattr(worker, "gate", gate)
    url = serve("waits.wav", np.tile(np.concatenate([u.pcm for u in ENGLISH]), 4))

    async def wait_and_go() -> list[float]:
        async with gate.holder() as other:
            await gate.enter(other, 0)
            job = asyncio.create_task(worker.handler({"id": "test", "input": {"audio_url": url}}))
            decoded = []
            for _ in range(3):
                await asyncio.sleep(1)
                decoded.append(streams[0].duration)
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
        return decoded

    first, *later = asyncio.run(wait_and_go())
    assert 0 < first < 30 and later == [first, first]


def test_garbage_collection_skips_the_loaded_modules_and_models(worker):
    assert gc.get_freeze_count() > 10 * len(gc.get_objects()) and gc.isenabled()


def test_a_jobs_files_are_removed_outside_the_event_loop(worker, monkeypatch):
    removing, remove = [], shutil.rmtree

    def watched(folder: Path, **options: bool) -> None:
        removing.append(threading.current_thread())
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", watched)

    async def use() -> Path:
        async with worker.temporary_folder() as folder:
            (folder / "source").write_bytes(b"\0")
        return folder

    assert not asyncio.run(use()).exists()
    assert len(removing) == 1 and removing[0] is not threading.main_thread()


def test_with_a_dead_engine_the_worker_takes_no_job_and_ends_itself_fault_injected(
    worker, monkeypatch
):
    assert worker.jobs_at_once(1) == max(2, worker.asr.capacity // 4)
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("SIGTERM"))
    try:
        monkeypatch.setattr(type(worker.asr), "dead", True)
        assert worker.jobs_at_once(16) == 0 and told == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_unexpected_error_is_reported_and_logged_without_its_message_fault_injected(
    run, serve, worker, monkeypatch, capfd
):
    message = "secret words"

    def breaks(*_):
        raise KeyError(message)

    monkeypatch.setattr(worker, "merge_channels", breaks)
    output = run({"audio_url": serve("speech.wav", ENGLISH[0].pcm)})
    assert output["error_code"] == "internal_error"
    logged = "".join(capfd.readouterr())
    assert "secret" not in output["error"] + logged and "KeyError" in logged


def test_logs_hold_no_text_no_context_and_no_url(run, serve, capfd):
    url = serve("logged.wav", ENGLISH[0].pcm)
    output = succeeded(run({"audio_url": f"{url}?token=abc", "initial_context": "hush"}))
    logged = "".join(capfd.readouterr())
    assert output["text"] and "done in" in logged
    assert not [
        secret for secret in (output["text"], "token", "logged.wav", "hush") if secret in logged
    ]


def test_a_cancelled_job_leaves_nothing_behind(worker, serve, temporary):
    async def cancel():
        url = serve("cancelled.wav", np.concatenate([u.pcm for u in ENGLISH]))
        job = asyncio.create_task(worker.handler({"id": "test", "input": {"audio_url": url}}))
        await asyncio.sleep(0.5)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    before = {p.pid for p in psutil.Process().children(recursive=True)}
    asyncio.run(cancel())
    assert list(temporary.iterdir()) == []
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


def test_jobs_side_by_side_have_the_results_that_they_have_alone(worker, serve):
    inputs = [
        {"audio_url": serve(f"side-{i}.wav", np.concatenate([u.pcm for u in ENGLISH[i : i + 4]]))}
        for i in range(0, 16, 4)
    ]

    async def together():
        return await asyncio.gather(
            *(worker.handler({"id": str(i), "input": x}) for i, x in enumerate(inputs))
        )

    alone = [asyncio.run(worker.handler({"id": "alone", "input": x})) for x in inputs]
    assert [*map(without_cost, asyncio.run(together()))] == [*map(without_cost, alone)]
