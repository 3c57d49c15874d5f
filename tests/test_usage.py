"""What a job cost: counts that add up, and seconds of every stage."""

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import speech.tail as tail
from contract.errors import RecognitionError
from contract.settings import Settings
from contract.version import VERSION
from material import ENGLISH, silence
from recording.chunk import SAMPLE_RATE
from result.usage import STAGES, Usage
from speech.health import Health
from speech.models.recogniser import EMPTY_VOCABULARY
from speech.watched_models import WatchedModels
from test_asr import Prompts

SETTINGS = Settings(
    model_name="Qwen/Qwen3-ASR-0.6B",
    aligner_name="Qwen/Qwen3-ForcedAligner-0.6B",
    model_revision="v1",
)
PCM = np.concatenate([part for u in ENGLISH[:5] for part in (u.pcm, silence(0.5))])


@pytest.fixture
def job(worker, file_server, monkeypatch):
    """Run a job on five utterances; gives (output, [(prompt tokens, answer tokens)] of the engine's
    calls).
    """
    soundfile.write(file_server.folder / "usage.wav", PCM, SAMPLE_RATE)
    monkeypatch.setattr(tail, "TAIL_SECONDS", 1e9)

    def run(*answers, **fields):
        prompts, decodes = Prompts(worker.asr, answers), []

        async def generate(prompt, sampling, request_id, priority):
            async for result in prompts(prompt, sampling, request_id, priority):
                decodes.append((len(result.prompt_token_ids), len(result.outputs[0].token_ids)))
                yield result

        monkeypatch.setattr(worker.asr._engine, "generate", generate)
        output = asyncio.run(
            worker.handler(
                {"id": "test", "input": {"audio_url": file_server.url("usage.wav"), **fields}}
            )
        )
        return output, decodes

    return run


def test_the_counts_of_a_job_are_those_of_the_engine_and_of_the_recording(job):
    output, decodes = job()
    usage = output["usage"]
    assert usage["audio_seconds"] == output["duration"] == round(len(PCM) / SAMPLE_RATE, 3)
    assert usage["speech_seconds"] == pytest.approx(
        sum(language["seconds"] for language in output["languages"])
    )
    assert usage["chunks"] == usage["recognitions"] == len(decodes) > 2 and usage["retries"] == 0
    # The audio alone takes 13 tokens a second.
    assert (
        usage["input_tokens"] == sum(given for given, _ in decodes) > 13 * (len(PCM) // SAMPLE_RATE)
    )
    assert usage["output_tokens"] == sum(said for _, said in decodes) > len(output["text"].split())


def test_a_further_decode_is_a_retry(job):
    output, decodes = job(("language English<asr_text>" + "and so I think. " * 100, "stop"))
    usage = output["usage"]
    assert usage["recognitions"] == usage["chunks"] + usage["retries"] > usage["chunks"] and usage[
        "retries"
    ] == len(output["retries"])
    assert usage["recognitions"] == len(decodes)


def test_a_job_spends_time_in_every_stage_and_its_factor_is_the_total_by_the_audio(job):
    usage = job()[0]["usage"]
    assert (
        all(usage[f"{stage}_seconds"] > 0 for stage in STAGES if stage != "waiting")
        and usage["waiting_seconds"] >= 0
    )
    assert max(usage["download_seconds"], usage["decoding_seconds"]) <= usage["total_seconds"]
    assert usage["real_time_factor"] == pytest.approx(
        usage["total_seconds"] / usage["audio_seconds"], abs=1e-3
    )


def test_models_have_their_name_and_revision_and_a_local_folder_its_last_part(
    tmp_path, worker, job
):
    usage = Usage().to_output(1, SETTINGS)
    assert (usage["model"], usage["model_revision"]) == ("Qwen/Qwen3-ASR-0.6B", "v1")
    assert (usage["aligner"], usage["aligner_revision"]) == (
        "Qwen/Qwen3-ForcedAligner-0.6B",
        "main",
    )
    assert usage["worker_version"] == VERSION
    usage = job()[0]["usage"]
    assert (usage["model"], usage["aligner"]) == ("asr", "aligner")


def test_seconds_of_one_stage_add_up_while_its_calls_run_side_by_side():
    usage, began = Usage(), time.monotonic()

    async def work() -> None:
        with usage.time("alignment"):
            await asyncio.sleep(0.05)

    async def side_by_side():
        await asyncio.gather(*(work() for _ in range(10)))

    asyncio.run(side_by_side())
    told = usage.to_output(1, SETTINGS)
    assert told["alignment_seconds"] >= 0.5 and told["recognition_seconds"] == 0
    assert told["total_seconds"] <= round(time.monotonic() - began, 3) + 0.001


def test_a_failed_call_counts_with_its_time_and_as_a_recognition():
    async def refuse(*_):
        await asyncio.sleep(0.01)
        raise RecognitionError("refused")

    usage = Usage()
    health = Health(lambda: asyncio.sleep(0), pytest.fail)
    models = WatchedModels(SimpleNamespace(transcribe=refuse), None, health, 60, usage)
    with pytest.raises(RecognitionError):
        asyncio.run(models.recognise(None, None, "", 0.0, EMPTY_VOCABULARY))
    told = usage.to_output(1, SETTINGS)
    assert (told["recognitions"], told["output_tokens"]) == (1, 0)
    assert told["recognition_seconds"] >= 0.01


def test_a_failed_job_has_no_usage(job):
    assert "usage" not in job(vocabulary=7)[0]
