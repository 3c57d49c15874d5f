"""`confidence` and `verbose_json` on the real engine: the model's own probabilities in a job's
output, and nothing else changed by them.
"""

import asyncio
import functools
import math
from dataclasses import replace

import clips
import pytest
from material import BANK, CHINESE, ENGLISH, chunk_of, noise
from openai.types.audio import TranscriptionVerbose
from recording.chunk import SAMPLE_RATE
from speech.tokens import confidence_of, tokens_in
from test_end_to_end import run, served


@pytest.fixture(scope="module")
def job(worker, file_server):
    """The output for a recording in two languages, with these fields of the request."""
    whole = clips.recording(ENGLISH + CHINESE, 12, 3)
    url = served(file_server, whole, "confidence")

    @functools.cache
    def output(**fields) -> dict:
        return run(worker, url, **fields)

    return output


def without_confidence(output: dict) -> dict:
    plain = {key: value for key, value in output.items() if key != "usage"}
    for level in ("segments", "sentences"):
        plain[level] = [
            {key: value for key, value in segment.items() if key != "confidence"}
            for segment in output[level]
        ]
    return plain


def test_with_confidence_everything_else_is_the_same(job):
    asked, plain = job(segment_level="both", confidence=True), job(segment_level="both")
    assert plain["text"] and without_confidence(asked) == without_confidence(plain)
    assert asked["usage"]["output_tokens"] == plain["usage"]["output_tokens"]


def test_every_word_and_sentence_has_a_confidence_from_0_to_1(job):
    output = job(segment_level="both", confidence=True)
    found = [segment["confidence"] for segment in output["segments"] + output["sentences"]]
    assert all(0 <= confidence <= 1 for confidence in found)
    assert max(found) > 0.9  # the words of the bank are known to the model
    plain = job(segment_level="both")
    assert "confidence" not in str(plain["segments"] + plain["sentences"])


def test_verbose_json_of_a_job_is_openais_type(job):
    found = job(output_format="verbose_json")["verbose_json"]
    TranscriptionVerbose.model_validate(found, strict=True)
    confident = job(output_format="verbose_json", confidence=True)["verbose_json"]
    for segment in confident["segments"]:
        assert segment["tokens"]
        assert segment["confidence"] == pytest.approx(math.exp(segment["avg_logprob"]), abs=0.001)


@pytest.fixture
def answers(worker, monkeypatch) -> list:
    """What vLLM gives for each call."""
    generate, seen = worker.asr._engine.generate, []

    async def watched(*args, **options):
        async for answer in generate(*args, **options):
            seen.append(answer.outputs[0])
            yield answer

    monkeypatch.setattr(worker.asr._engine, "generate", watched)
    return seen


def transcribe(worker, utterance, language=None, temperature=0.0, with_tokens=True):
    call = worker.asr.transcribe(
        chunk_of(utterance.pcm), language, "", temperature, with_tokens=with_tokens
    )
    return asyncio.run(call)


@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_the_tokens_of_an_answer_are_vllms_in_the_order_of_the_text(worker, answers, temperature):
    added = set(worker.asr._tokenizer.get_added_vocab().values())
    for utterance in (ENGLISH[0], CHINESE[0]):
        for language in (None, utterance.language):
            heard = transcribe(worker, utterance, language, temperature)
            ids, logprobs = answers[-1].token_ids, answers[-1].logprobs.logprobs
            assert len(ids) == len(logprobs)
            assert sum(logprobs) == pytest.approx(answers[-1].cumulative_logprob)
            given = list(zip(ids, logprobs))
            last = [pair for pair in given if pair[0] not in added][-len(heard.tokens) :]
            assert [(t.id, min(t.logprob, 0)) for t in heard.tokens] == [
                (i, min(p, 0)) for i, p in last
            ]
            assert all(tokens_in(heard.tokens, i, i + 1) for i in range(len(heard.text)))


def test_an_answer_that_was_not_asked_for_its_tokens_has_none(worker, answers):
    heard = transcribe(worker, ENGLISH[0], with_tokens=False)
    assert heard.tokens == () and answers[-1].logprobs is None


def test_the_start_asks_for_probabilities_so_that_no_job_waits_for_what_they_compile(
    worker, answers
):
    asyncio.run(worker.fitness_check())
    assert [answer.logprobs is None for answer in answers] == [True, False]


def test_speech_in_noise_has_less_confidence(worker):
    def mean_confidence(level: float) -> float:
        heard = []
        for u in BANK[:6]:
            noisy = u.pcm + noise(len(u.pcm) / SAMPLE_RATE, level)[: len(u.pcm)].astype(int)
            loud = replace(u, pcm=noisy.clip(-32768, 32767).astype(u.pcm.dtype))
            heard.append(confidence_of(transcribe(worker, loud).tokens) or 0.0)
        return sum(heard) / len(heard)

    assert mean_confidence(1) > mean_confidence(2000) + 0.05
