"""The real aligner: its batches, its word times, its failures, and its start on a GPU."""

import asyncio
import os
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import speech.models.aligner as align
import torch
from contract.errors import AlignError, SettingsError
from contract.languages import ALIGNED_LANGUAGES
from hypothesis import given
from hypothesis import strategies as st
from material import CHINESE, ENGLISH, chunk_of, silence
from recording.chunk import SAMPLE_RATE, AudioChunk, waveform
from speech.models.aligner import MAX_BATCH, Aligner, is_out_of_memory, next_batch
from speech.models.aligner_network import WINDOWED, predicted_classes
from speech.models.gpu_memory import MAX_UNITS_PER_SECOND
from test_aligner_network import the_packages_own_mask


def chunk_lasting(seconds: float, offset: int = 0) -> AudioChunk:
    return chunk_of(silence(seconds), offset)


def task_lasting(seconds: float, index: int = 0) -> align._Task:
    return align._Task(replace(chunk_lasting(seconds), index=index), "", [], None, None, Future())


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(1, 60),
)
def test_a_batch_holds_the_clips_of_nearest_length_within_its_limits_of_audio_and_count(
    clips, seconds
):
    waiting = [task_lasting(tenths / 10, index) for tenths, index in clips]
    left, taken = list(waiting), []
    while left:
        batch = next_batch(left, seconds)
        durations = [t.chunk.duration for t in batch]
        assert len(batch) <= MAX_BATCH and (
            len(batch) == 1 or len(batch) * max(durations) <= seconds
        )
        lengths, others = [len(t.chunk.pcm) for t in batch], [len(t.chunk.pcm) for t in left]
        nearest = sorted(abs(n - lengths[0]) for n in [*lengths[1:], *others])
        assert [abs(n - lengths[0]) for n in lengths[1:]] == nearest[: len(batch) - 1]
        taken += batch
    assert sorted(map(id, taken)) == sorted(map(id, waiting))


def test_the_earliest_chunk_of_any_recording_goes_first():
    rest_of_a_long_one = [task_lasting(8, index) for index in range(3, 40)]
    short = task_lasting(2, 0)
    assert next_batch([*rest_of_a_long_one, short], seconds=16)[0] is short


def test_word_times_equal_those_of_the_package(worker):
    """For every word that is measured. The package estimates the others by another rule."""
    package, compared = worker.aligner._model, 0
    tower = package.model.thinker.audio_tower
    for u in [*ENGLISH[:6], *CHINESE[:6]]:
        chunk = chunk_of(u.pcm)
        ours = asyncio.run(worker.aligner.align(chunk, u.text, u.language))
        tower.set_attn_implementation("sdpa")
        with the_packages_own_mask(tower):
            theirs = package.align((waveform(chunk), SAMPLE_RATE), u.text, u.language)[0]
        tower.set_attn_implementation(WINDOWED)
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            if not a.estimated:
                assert (a.start, a.end) == (b.start_time, b.end_time)
                compared += 1
    assert compared > 50


@pytest.mark.parametrize("samples", [8_000, 8_001, 51_360, 51_439, 128_000])
def test_inputs_made_from_the_recognisers_spectrum_equal_those_the_package_makes_from_samples(
    worker, samples
):
    """Every tensor, bit for bit, also where the last hop is incomplete."""
    chunk, text = chunk_of(np.concatenate([u.pcm for u in ENGLISH[:4]])[:samples]), ENGLISH[0].text
    heard = asyncio.run(worker.asr.transcribe(chunk, "English", ""))
    ours = worker.aligner._prepared(chunk, text, "English", heard.spectrum)
    model = worker.aligner._model
    _, prompt = model.aligner_processor.encode_timestamp(text, "English")
    theirs = model.processor(text=[prompt], audio=[waveform(chunk)], return_tensors="pt")
    assert torch.equal(ours.token_ids, theirs["input_ids"][0])
    assert torch.equal(ours.spectrum, theirs["input_features"][0])
    alone = worker.aligner._prepared(chunk, text, "English", None)
    assert torch.equal(alone.spectrum, theirs["input_features"][0])


WORDS = {
    "English": ("it...maybe.Right? Yes!No—C++ at -5 °C", "it maybe Right Yes No C++ at -5 °C"),
    "Chinese": ("我用Python，Java，Go。涨了5%", "我 用 Python Java Go 涨 了 5%"),
    "Cantonese": ("好OK，Yes！$5", "好 OK Yes $5"),
    "French": ("C'est l'été—oui! «Non»,dit-il.", "C'est l'été oui Non dit-il"),
    "Japanese": ("彼はJava，C++で$5だ", "彼 は Java C++ で $5 だ"),
    "Korean": ("저는 Python，Java를 봐요! 5%예요", "저는 Python Java를 봐요 5%예요"),
}


def test_the_packages_units_are_divided_at_marks_and_the_words_keep_their_signs(worker):
    chunk = chunk_lasting(20)
    for language, (text, words) in WORDS.items():
        units = worker.aligner._prepared(chunk, text, language, None).units
        marks = [ms for i in range(len(units)) for ms in (1000 * i, 1000 * i + 900)]
        found = align.aligned_words(chunk, text, units, marks)
        assert [word.text for word in found] == words.split(), language
        assert not any(word.estimated for word in found), language


def test_clips_aligned_at_the_same_time_each_get_their_own_words(worker):
    async def together():
        pool = [*ENGLISH[:10], *CHINESE[:10]]
        return pool, await asyncio.gather(
            *(worker.aligner.align(chunk_of(u.pcm), u.text, u.language) for u in pool)
        )

    for u, found in zip(*asyncio.run(together())):
        assert len(found) == len(u.words)
        assert all(abs(a.start - b.start) < 1 for a, b in zip(found, u.words))


def test_a_language_that_the_aligner_does_not_know_is_refused(worker):
    assert "Hindi" not in ALIGNED_LANGUAGES
    with pytest.raises(AlignError, match="Hindi"):
        asyncio.run(worker.aligner.align(chunk_lasting(1), "नमस्ते", "Hindi"))


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
)
OTHER_ERRORS = (
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ValueError("out of memory"),
)


def test_out_of_memory_is_told_apart_from_other_errors():
    assert [str(e) for e in OUT_OF_MEMORY if not is_out_of_memory(e)] == []
    assert [str(e) for e in OTHER_ERRORS if is_out_of_memory(e)] == []


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_batch_until_it_fits_fault_injected(worker, monkeypatch, error):
    """A clip that does not fit by itself fails by itself, and counts against the aligner."""
    sizes, longest = [], max(ENGLISH[:8], key=lambda u: u.duration)

    def fits_two_but_not_the_longest(thinker, token_ids, spectra, timestamp_id):
        sizes.append(len(token_ids))
        if sizes[-1] > 2 or max(mel.shape[1] for mel in spectra) > 100 * longest.duration - 2:
            raise error
        return predicted_classes(thinker, token_ids, spectra, timestamp_id)

    monkeypatch.setattr(align, "predicted_classes", fits_two_but_not_the_longest)

    async def together():
        clips = (worker.aligner.align(chunk_of(u.pcm), u.text, u.language) for u in ENGLISH[:8])
        return await asyncio.gather(*clips, return_exceptions=True)

    for u, found in zip(ENGLISH[:8], asyncio.run(together())):
        if u is longest:
            assert (
                isinstance(found, AlignError)
                and "out of memory" in str(found)
                and found.unexplained
            )
        else:
            assert len(found) == len(u.words)
    assert max(sizes) > 2


def test_a_text_that_the_packages_splitter_cannot_read_fails_for_a_known_reason_fault_injected(
    worker, monkeypatch
):
    def breaks(*_):
        raise KeyError("injected")

    monkeypatch.setattr(worker.aligner._model.aligner_processor, "encode_timestamp", breaks)
    with pytest.raises(AlignError, match="KeyError") as failed:
        asyncio.run(worker.aligner.align(chunk_of(ENGLISH[0].pcm), ENGLISH[0].text, "English"))
    # The fault is in the text, so it does not count against the GPU.
    assert not failed.value.unexplained


def test_a_text_whose_times_cannot_be_made_fails_alone_fault_injected(worker, monkeypatch):
    """The other clips of its batch keep their times, and it does not count against the GPU."""
    broken, aligned_words = ENGLISH[0], align.aligned_words

    def breaks_for_one(chunk, text, units, marks):
        if text == broken.text:
            raise IndexError("injected")
        return aligned_words(chunk, text, units, marks)

    monkeypatch.setattr(align, "aligned_words", breaks_for_one)

    async def together():
        clips = (worker.aligner.align(chunk_of(u.pcm), u.text, u.language) for u in ENGLISH[:4])
        return await asyncio.gather(*clips, return_exceptions=True)

    failed, *others = asyncio.run(together())
    assert isinstance(failed, AlignError) and not failed.unexplained
    assert [len(words) for words in others] == [len(u.words) for u in ENGLISH[1:4]]


def test_an_exception_in_a_batch_fails_its_clips_and_the_next_batch_is_aligned_fault_injected(
    worker, monkeypatch
):
    def breaks(*_):
        raise RuntimeError("injected")

    u = ENGLISH[0]
    chunk = chunk_of(u.pcm)
    with monkeypatch.context() as broken:
        broken.setattr(align, "predicted_classes", breaks)
        with pytest.raises(AlignError) as failed:
            asyncio.run(worker.aligner.align(chunk, u.text, u.language))
    assert failed.value.unexplained
    assert asyncio.run(worker.aligner.align(chunk, u.text, u.language))


# the start on a GPU


@pytest.fixture
def own_aligner():
    """A function: keyword arguments → an aligner with the tiny checkpoint, not yet started."""
    made = []

    def make(device="cpu", dtype="float32", batch_seconds=32, max_chunk_seconds=8, gpu_share=1.0):
        folder = os.environ["ALIGNER_NAME"]
        made.append(Aligner(folder, device, dtype, batch_seconds, max_chunk_seconds, gpu_share))
        return made[-1]

    yield make
    for aligner in made:
        aligner._preparers.shutdown()


def test_on_a_gpu_the_memory_share_is_set_before_the_weights_are_moved_device_injected(
    own_aligner, monkeypatch
):
    """Then the largest batches run, before the first job."""
    steps = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share: steps.append(share)
    )
    aligner = own_aligner("cuda", gpu_share=0.2)
    monkeypatch.setattr(aligner._model.model, "to", lambda device: steps.append(device.type))
    monkeypatch.setattr(aligner, "take_memory", lambda: steps.append("largest batches"))
    aligner.start()
    aligner.close()
    assert steps == [0.2, "cuda", "largest batches"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_start_runs_the_batch_of_most_chunks_and_that_of_the_longest(
    own_aligner, monkeypatch, dtype
):
    batches = []

    def watched(thinker, token_ids, spectra, timestamp_id):
        classes = predicted_classes(thinker, token_ids, spectra, timestamp_id)
        batches.append((len(spectra), spectra[0].shape[1] / 100, len(classes)))
        return classes

    monkeypatch.setattr(align, "predicted_classes", watched)
    own_aligner(dtype=dtype).take_memory()
    units = MAX_UNITS_PER_SECOND
    assert batches == [(16, 2.0, 2 * 16 * 2 * units), (4, 8.0, 2 * 4 * 8 * units)]


def test_where_the_largest_batch_does_not_fit_batches_are_halved_fault_injected(
    own_aligner, monkeypatch
):
    def fits_16_s(thinker, token_ids, spectra, timestamp_id):
        if sum(mel.shape[1] for mel in spectra) > 1600:
            raise torch.OutOfMemoryError("injected")
        return predicted_classes(thinker, token_ids, spectra, timestamp_id)

    monkeypatch.setattr(align, "predicted_classes", fits_16_s)
    aligner = own_aligner(batch_seconds=64)
    aligner.take_memory()
    assert aligner._batch_seconds == 16


def test_a_gpu_that_cannot_align_the_longest_chunk_is_refused_fault_injected(
    own_aligner, monkeypatch
):
    def fits_nothing(*_):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(align, "predicted_classes", fits_nothing)
    with pytest.raises(SettingsError, match="too little free memory to align 8 s"):
        own_aligner().take_memory()
