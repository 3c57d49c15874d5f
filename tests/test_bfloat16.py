"""Whole jobs with both models in bfloat16, as on every GPU, on the CPU.

The checkpoints were trained in float32.
"""

from collections.abc import Iterator

import pytest
import torch
from conftest import other_models
from scoring import matched
from test_end_to_end import (
    MEAN_OFF_MS,
    Case,
    assert_words_are_whole_at_every_cut,
    boundaries_off_ms,
    case_of,
    per_language,
)

MAX_ERRORS = 0.02  # a share of the words said
SECONDS = 100  # the length of each recording
MAX_FURTHER_OFF = 1.25  # times the mean distance of word boundaries in float32


@pytest.fixture(scope="module")
def bfloat16_worker(worker) -> Iterator:
    with other_models(worker, dtype="bfloat16") as in_bfloat16:
        yield in_bfloat16


@pytest.fixture(scope="module")
def cases(bfloat16_worker, file_server) -> dict[str, Case]:
    return {
        language: case_of(bfloat16_worker, file_server, language, SECONDS)
        for language in MEAN_OFF_MS
    }


def test_both_models_compute_in_bfloat16(bfloat16_worker):
    assert bfloat16_worker.aligner._model.model.dtype == torch.bfloat16
    assert bfloat16_worker.asr._engine.model_config.dtype == torch.bfloat16


@per_language
def test_words_and_times_are_those_that_were_said(cases, language):
    case = cases[language]
    errors = matched(case.said, case.heard)[0] / len(case.said)
    off = boundaries_off_ms(case)
    print(f"\n{language}: {100 * errors:.2f} % errors, boundaries off by {off.mean():.1f} ms")
    assert errors <= MAX_ERRORS and off.mean() <= MAX_FURTHER_OFF * MEAN_OFF_MS[language]


@per_language
def test_no_word_is_lost_or_doubled_at_any_cut(cases, language):
    assert_words_are_whole_at_every_cut(cases[language])


@per_language
def test_healthy_audio_costs_one_engine_call_a_chunk(cases, language):
    assert cases[language].engine_calls == len(cases[language].chunks)


@per_language
def test_no_chunk_fails_in_the_aligner(cases, language):
    """Then its times would be estimated, and a warning would say so."""
    assert "warnings" not in cases[language].output
