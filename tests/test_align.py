"""The real aligner: its batches, its encoder's attention window, its word times, and its failures."""

import asyncio
import os
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import align
from align import LANGUAGES, MAX_BATCH, Aligner, next_batch
from audio import SAMPLE_RATE, AudioChunk, waveform
from errors import AlignError
from material import CHINESE, ENGLISH, chunk_of, silence


def chunk_lasting(seconds: float, offset: int = 0) -> AudioChunk:
    return chunk_of(silence(seconds), offset)


def task_lasting(seconds: float, index: int = 0) -> align._Task:
    return align._Task(replace(chunk_lasting(seconds), index=index), "", [], {}, Future())


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), min_size=1, max_size=60), st.integers(1, 60))
def test_a_batch_holds_the_clips_of_nearest_length_within_its_limits_of_audio_and_count(clips, seconds):
    waiting = [task_lasting(tenths / 10, index) for tenths, index in clips]
    left, taken = list(waiting), []
    while left:
        batch = next_batch(left, seconds)
        durations = [t.chunk.duration for t in batch]
        assert len(batch) <= MAX_BATCH and (len(batch) == 1 or len(batch) * max(durations) <= seconds)
        lengths, others = [len(t.chunk.pcm) for t in batch], [len(t.chunk.pcm) for t in left]
        nearest = sorted(abs(n - lengths[0]) for n in [*lengths[1:], *others])
        assert [abs(n - lengths[0]) for n in lengths[1:]] == nearest[: len(batch) - 1]
        taken += batch
    assert sorted(map(id, taken)) == sorted(map(id, waiting))


def test_the_earliest_chunk_of_any_recording_goes_first():
    rest_of_a_long_one = [task_lasting(8, index) for index in range(3, 40)]
    short = task_lasting(2, 0)
    assert next_batch([*rest_of_a_long_one, short], seconds=16)[0] is short


@pytest.fixture
def tower(worker):
    """The real aligner's audio encoder."""
    return worker.aligner._model.model.thinker.audio_tower


def spectrum(worker, pool, seconds: float) -> torch.Tensor:
    """(128, 100 * seconds) of utterances one after another."""
    pcm = np.resize(np.concatenate([u.pcm for u in pool]), round(seconds * SAMPLE_RATE)).astype(np.float32) / 32768
    return worker.aligner._model.processor.feature_extractor(pcm, sampling_rate=SAMPLE_RATE, padding=False, return_tensors="pt").input_features[0]


def features(tower, mel: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return tower(mel, feature_lens=torch.tensor([mel.shape[1]])).last_hidden_state


def full_attention(tower, mel: torch.Tensor) -> torch.Tensor:
    """The features without a window, as the package computes them."""
    tower.set_attn_implementation("sdpa")
    try:
        return features(tower, mel)
    finally:
        tower.set_attn_implementation("windowed")


def test_the_features_of_the_first_8_s_do_not_change_with_what_is_said_after_second_20(worker, tower):
    one, other = spectrum(worker, ENGLISH[:20], 40), spectrum(worker, CHINESE[:20], 40)
    spliced = torch.cat([one[:, :2000], other[:, 2000:]], dim=1)
    first = lambda encoded: encoded[:104]
    assert torch.equal(first(features(tower, one)), first(features(tower, spliced)))
    assert not torch.allclose(first(full_attention(tower, one)), first(full_attention(tower, spliced)), atol=1e-3)


@pytest.mark.parametrize("seconds", [0.5, 1, 3.21, 7.99, 8])
def test_clips_up_to_8_s_have_the_same_features_with_and_without_a_window(worker, tower, seconds):
    mel = spectrum(worker, ENGLISH[:4], seconds)
    assert torch.equal(features(tower, mel), full_attention(tower, mel))


@pytest.mark.parametrize("seconds", [8.01, 16, 28.3, 60])
def test_the_windows_are_those_of_the_packages_own_mask(worker, tower, seconds):
    """The package makes that mask for attention that does not read `cu_seqlens`, and never applies it."""
    mel = spectrum(worker, ENGLISH[:40], seconds)
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | {"attention_mask": tower._prepare_attention_mask(kwargs["hidden_states"], kwargs["cu_seqlens"])}), with_kwargs=True
        )
        for layer in tower.layers
    ]  # fmt: skip
    try:
        masked = full_attention(tower, mel)
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.allclose(features(tower, mel), masked, atol=1e-4)


def test_word_times_equal_those_of_the_package(worker):
    """For every word whose marks need no repair. The others are estimated, which the package does in another way."""
    package, compared = worker.aligner._model, 0
    for u in [*ENGLISH[:6], *CHINESE[:6]]:
        chunk = chunk_of(u.pcm)
        ours = asyncio.run(worker.aligner.align(chunk, u.text, u.language))
        theirs = package.align((waveform(chunk), SAMPLE_RATE), u.text, u.language)[0]
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            if not a.estimated:
                assert (a.start, a.end) == (b.start_time, b.end_time)
                compared += 1
    assert compared > 50


@pytest.mark.parametrize("samples", [8_000, 8_001, 51_360, 51_439, 128_000])
def test_inputs_made_from_the_recognisers_spectrum_equal_those_the_package_makes_from_samples(worker, samples):
    """Every tensor, bit for bit, also where the last hop is incomplete."""
    chunk, text = chunk_of(np.concatenate([u.pcm for u in ENGLISH[:4]])[:samples]), ENGLISH[0].text
    heard = asyncio.run(worker.asr.transcribe(chunk, "English", ""))
    ours = worker.aligner._prepared(chunk, text, "English", heard.spectrum)
    model = worker.aligner._model
    _, prompt = model.aligner_processor.encode_timestamp(text, "English")
    theirs = model.processor(text=[prompt], audio=[waveform(chunk)], return_tensors="pt")
    assert ours.inputs.keys() == theirs.keys()
    assert all(torch.equal(ours.inputs[name], theirs[name][0]) for name in theirs)
    assert torch.equal(worker.aligner._prepared(chunk, text, "English", None).inputs["input_features"], theirs["input_features"][0])


def test_clips_aligned_at_the_same_time_each_get_their_own_words(worker):
    async def together():
        pool = [*ENGLISH[:10], *CHINESE[:10]]
        return pool, await asyncio.gather(*(worker.aligner.align(chunk_of(u.pcm), u.text, u.language) for u in pool))

    for u, found in zip(*asyncio.run(together())):
        assert len(found) == len(u.words)
        assert all(abs(a.start - b.start) < 1 for a, b in zip(found, u.words))


def test_a_language_that_the_aligner_does_not_know_is_refused(worker):
    assert "Hindi" not in LANGUAGES
    with pytest.raises(AlignError, match="Hindi"):
        asyncio.run(worker.aligner.align(chunk_lasting(1), "नमस्ते", "Hindi"))


def test_out_of_memory_halves_the_batch_until_it_fits_fault_injected(worker, monkeypatch):
    """A clip that does not fit by itself fails by itself."""
    thinker, sizes = worker.aligner._model.model.thinker, []
    forward = thinker.forward
    longest = max(ENGLISH[:8], key=lambda u: u.duration)

    def fits_two_but_not_the_longest(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2 or inputs["feature_attention_mask"].sum(-1).max() > 100 * longest.duration - 2:
            raise torch.OutOfMemoryError("injected")
        return forward(**inputs)

    monkeypatch.setattr(thinker, "forward", fits_two_but_not_the_longest)

    async def together():
        return await asyncio.gather(
            *(worker.aligner.align(chunk_of(u.pcm), u.text, u.language) for u in ENGLISH[:8]), return_exceptions=True
        )

    for u, found in zip(ENGLISH[:8], asyncio.run(together())):
        if u is longest:
            assert isinstance(found, AlignError) and "out of memory" in str(found) and not found.unexplained
        else:
            assert len(found) == len(u.words)
    assert max(sizes) > 2


def test_a_text_that_the_packages_splitter_cannot_read_fails_for_a_known_reason_fault_injected(worker, monkeypatch):
    def breaks(*_):
        raise KeyError("injected")

    monkeypatch.setattr(worker.aligner._model.aligner_processor, "encode_timestamp", breaks)
    with pytest.raises(AlignError, match="KeyError") as failed:
        asyncio.run(worker.aligner.align(chunk_of(ENGLISH[0].pcm), ENGLISH[0].text, "English"))
    assert not failed.value.unexplained  # the fault is in the text, so it does not count against the GPU


def test_an_exception_in_a_batch_fails_its_clips_and_the_next_batch_is_aligned_fault_injected(worker, monkeypatch):
    def breaks(**_):
        raise RuntimeError("injected")

    u = ENGLISH[0]
    chunk = chunk_of(u.pcm)
    with monkeypatch.context() as broken:
        broken.setattr(worker.aligner._model.model.thinker, "forward", breaks)
        with pytest.raises(AlignError) as failed:
            asyncio.run(worker.aligner.align(chunk, u.text, u.language))
    assert failed.value.unexplained
    assert asyncio.run(worker.aligner.align(chunk, u.text, u.language))


def test_on_a_gpu_the_memory_share_is_set_before_the_weights_are_moved_device_injected(monkeypatch):
    steps = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share: steps.append(share))
    aligner = Aligner(os.environ["ALIGNER_NAME"], "cuda", 32, gpu_share=0.2)
    monkeypatch.setattr(aligner._model.model, "to", lambda device: steps.append(device.type))
    aligner.start()
    aligner.close()
    assert steps == [0.2, "cuda"]
