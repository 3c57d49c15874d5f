"""Whole jobs in chunks of up to 28 s, with the checkpoints in models/long, which were trained
further for that length.

    bash tests/run.sh tests/long_chunks.py -s    a minute

They are not part of the first command, because they start the engine once more.

Their accuracy is given in models/README.md. These tests show that long chunks, each with several
windows of the encoder, are cut, recognised and merged whole.
"""

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import speech.models.engine_args as engine
from conftest import ROOT, other_models
from scoring import matched
from test_end_to_end import (
    Case,
    assert_words_are_whole_at_every_cut,
    boundaries_off_ms,
    case_of,
    per_language,
)

MODELS = ROOT / "tests" / "models"
TARGET_SECONDS, LIMIT_SECONDS = 20, 28
BLOCKS_CONVOLVED = 9  # seconds
MAX_ERRORS = 0.04  # a share of the words, as in the recordings of models/README.md
MEAN_OFF_MS = {"English": 210, "Chinese": 320}


@pytest.fixture(scope="module")
def long_worker(worker, tmp_path_factory) -> Iterator:
    """The handler module with the long checkpoints, which differ from the others in their weights
    only.
    """
    folder = tmp_path_factory.mktemp("long")
    for kind in ("asr", "aligner"):
        shutil.copytree(MODELS / kind, folder / kind)
        shutil.copy(MODELS / "long" / kind / "model.safetensors", folder / kind)
    settings = dict(
        model_name=str(folder / "asr"),
        aligner_name=str(folder / "aligner"),
        chunk_target_seconds=TARGET_SECONDS,
        chunk_limit_seconds=LIMIT_SECONDS,
    )
    with pytest.MonkeyPatch.context() as patched:
        # The encoder convolves these chunks in several parts, as it does on a GPU with many chunks.
        patched.setattr(engine, "RECOGNISER_BLOCKS_CONVOLVED", BLOCKS_CONVOLVED)
        with other_models(worker, **settings) as with_long_models:
            yield with_long_models


@pytest.fixture(scope="module")
def cases(long_worker, file_server) -> dict[str, Case]:
    return {
        language: case_of(long_worker, file_server, language) for language in ("English", "Chinese")
    }


@per_language
def test_chunks_are_long_and_each_costs_one_decode(cases, language):
    """A second decode is for a tail, where this aligner cannot place the last words."""
    durations = [chunk.duration for chunk in cases[language].chunks]
    assert np.median(durations) > 16 and max(durations) <= LIMIT_SECONDS
    again = cases[language].output.get("retries", [])
    assert cases[language].engine_calls == len(durations) + len(again) and len(again) <= 2
    assert {(*r["reasons"], r["outcome"]) for r in again} <= {("tail_missing", "mended")}


@per_language
def test_no_word_is_lost_or_doubled_at_any_cut_between_long_chunks(cases, language):
    assert_words_are_whole_at_every_cut(cases[language])


@per_language
def test_words_and_times_are_as_good_as_these_checkpoints_allow(cases, language):
    case = cases[language]
    errors, off = matched(case.said, case.heard)[0] / len(case.said), boundaries_off_ms(case)
    print(
        f"\n{language}: {len(case.chunks)} chunks, {len(case.said)} words, "
        f"{100 * errors:.2f} % errors, boundaries off by mean {off.mean():.1f} ms, median "
        f"{np.median(off):.0f}"
    )
    assert errors <= MAX_ERRORS and off.mean() <= MEAN_OFF_MS[language]
