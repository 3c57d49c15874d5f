"""The bank of utterances, the recordings made of it, and the sizes of what lies in tests/models."""

import json
from pathlib import Path

import bank
import clips
import numpy as np
import pytest
import utterance

MODELS = Path(__file__).parent / "models"
DEMO = Path(__file__).parent / "recordings" / "demo.json"


@pytest.fixture(scope="module")
def utterances():
    return bank.load(MODELS / "bank")


@pytest.fixture(scope="module")
def english(utterances):
    return [u for u in utterances if u.language == "English"]


def size(folder):
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def assert_in_order(words, duration):
    edges = [t for w in words for t in (w.start, w.end)]
    assert all(0 <= t <= duration for t in edges)
    assert edges == sorted(edges)
    assert all(w.start < w.end for w in words)


def test_the_bank_holds_both_languages_and_silence(utterances):
    assert {u.language for u in utterances} == set(bank.SHARES)
    assert all(bool(u.words) == (u.language != "None") for u in utterances)


def test_utterances_are_int16_and_no_longer_than_the_clips_of_the_training(utterances):
    assert all(u.pcm.dtype == np.int16 and u.pcm.ndim == 1 for u in utterances)
    assert all(0.5 <= u.duration <= utterance.LONGEST for u in utterances)


def test_words_are_in_order_and_inside_their_utterance(utterances):
    for u in utterances:
        assert_in_order(u.words, u.duration)


def test_the_bank_is_read_back_sample_for_sample(utterances, tmp_path):
    some = utterances[:3] + utterances[-3:]
    bank.write(some, tmp_path)
    for before, after in zip(some, bank.load(tmp_path), strict=True):
        assert (before.language, before.words) == (after.language, after.words)
        assert np.array_equal(before.pcm, after.pcm)


def test_a_missing_bank_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        bank.load(tmp_path)


def test_a_recording_keeps_its_utterances_words_at_their_offsets(english):
    whole = clips.recording(english, seconds=30, seed=5)
    by_start = {u.pcm[:4000].tobytes(): u for u in english}
    position, k, texts = 0, 0, []
    while k < len(whole.words):
        u = by_start.get(whole.pcm[position : position + 4000].tobytes())
        if u is None:  # still in the pause
            position += 1
            continue
        assert np.array_equal(whole.pcm[position : position + len(u.pcm)], u.pcm)
        for own, there in zip(u.words, whole.words[k : k + len(u.words)], strict=True):
            offset = position / utterance.SAMPLE_RATE
            assert there.text == own.text
            assert (there.start, there.end) == pytest.approx(
                (own.start + offset, own.end + offset), abs=1e-6
            )
        texts.append(u.text)
        position, k = position + len(u.pcm), k + len(u.words)
    assert whole.text == " ".join(texts)
    assert whole.duration >= 30
    assert_in_order(whole.words, whole.duration)


def test_the_same_seed_gives_the_same_recording(english):
    a, b, other = (clips.recording(english, seconds=10, seed=s) for s in (1, 1, 2))
    assert a.words == b.words and np.array_equal(a.pcm, b.pcm)
    assert a.words != other.words


def test_a_recording_needs_utterances():
    with pytest.raises(IndexError):
        clips.recording([], seconds=1, seed=0)


def test_the_demo_recording_is_made_of_the_bank(english):
    told = json.loads(DEMO.read_text(encoding="utf-8"))
    words = [utterance.Word(**w) for w in told["words"]]
    assert told["text"] == utterance.join(told["language"], words)
    assert {w.text for w in words} <= {w.text for u in english for w in u.words}
    assert_in_order(words, told["duration"])


def test_bank_and_checkpoints_stay_small():
    assert size(MODELS / "bank") < 6_000_000
    assert size(MODELS / "asr") + size(MODELS / "aligner") < 12_000_000
