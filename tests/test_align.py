"""Times: upstream's repair, faster; the contract of the times, whatever the marks; the aligner's words in the text."""

import asyncio
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import align
from align import LANGUAGES, MAX_BATCH, estimated_words, locate, longest_non_decreasing, next_batch, repair, words
from audio import SAMPLE_RATE, AudioChunk
from errors import AlignError
from material import CHINESE, ENGLISH, chunk_of, silence


def chunk_lasting(seconds: float, offset: int = 0) -> AudioChunk:
    return chunk_of(silence(seconds), offset)


def upstream_indices(data: list[int]) -> list[int]:
    """qwen-asr 0.0.6, Qwen3ForceAlignProcessor.fix_timestamp: its quadratic search, kept to compare with."""
    n = len(data)
    length, parent = [1] * n, [-1] * n
    for i in range(1, n):
        for j in range(i):
            if data[j] <= data[i] and length[j] + 1 > length[i]:
                length[i], parent[i] = length[j] + 1, j
    found, i = [], length.index(max(length)) if n else -1
    while i != -1:
        found.append(i)
        i = parent[i]
    return found[::-1]


marks_of_any_kind = st.one_of(
    st.lists(st.integers(0, 5), max_size=60),  # ties
    st.lists(st.integers(-1000, 400_000), max_size=60),
    st.lists(st.integers(0, 20_000), max_size=60).map(sorted),
    st.lists(st.integers(0, 20_000), max_size=60).map(lambda x: sorted(x, reverse=True)),
    st.lists(st.sampled_from([0, 0, 0, 80, 160, 8000, 399_920]), max_size=60),  # zeros, plateaus, the last class
)


@given(marks_of_any_kind)
@settings(max_examples=1500, deadline=None)
def test_the_fast_search_finds_the_indices_that_the_quadratic_one_finds(data):
    assert longest_non_decreasing(data) == upstream_indices(data)


@given(marks_of_any_kind, st.integers(60, 180_000), st.data())
@settings(max_examples=3000, deadline=None)
def test_times_keep_their_contract_whatever_the_marks_are(marks, duration, data):
    marks = marks[: len(marks) // 2 * 2]
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=len(marks) // 2, max_size=len(marks) // 2))
    times = repair(marks, duration, lengths)
    assert len(times) == len(lengths)
    end_before = 0
    for (start, end, estimated), a, b in zip(times, marks[::2], marks[1::2]):
        assert end_before <= start < end <= duration
        assert estimated or (start, end) == (a, b)
        end_before = end


def test_good_marks_are_not_touched():
    assert repair([80, 400, 400, 960], 1000, [3, 5]) == [(80, 400, False), (400, 960, False)]


def test_a_word_without_length_is_given_the_gap_to_the_next():
    assert repair([80, 80, 400, 960], 1000, [3, 5]) == [(80, 400, True), (400, 960, False)]


def test_words_piled_on_one_time_share_the_gap_by_their_characters():
    times = repair([0, 800, 800, 800, 800, 800, 800, 1400], 2000, [4, 2, 2, 6])
    assert times[0] == (0, 800, False)
    assert [e for *_, e in times[1:]] == [True] * 3 and times[-1][1] == 1400
    assert [end - start for start, end, _ in times[1:]] == [128, 128, 344]  # 20 ms each and the rest 2:2:6


def test_marks_beyond_the_chunk_are_spread_within_it():
    assert repair([0, 400, 399_920, 399_920], 1000, [1, 1]) == [(0, 400, False), (400, 1000, True)]


@pytest.mark.parametrize(
    "text, units, slices",
    [
        ("Alpha, bravo.", ["Alpha", "bravo"], ["Alpha", "bravo"]),
        ("Don't stop-gap it!", ["Don't", "stopgap", "it"], ["Don't", "stop-gap", "it"]),
        ("十三，天。", ["十", "三", "天"], ["十", "三", "天"]),
        ("用 GPU 算", ["用", "GPU", "算"], ["用", "GPU", "算"]),
        ("５つのガラス", ["5", "つ", "の", "ガラス"], ["５", "つ", "の", "ガラス"]),  # nagisa normalises
        ("ｶﾞﾗｽ", ["ガラス"], ["ｶﾞﾗｽ"]),
        ("नमस्ते दुनिया", ["नमसत", "दनय"], ["नमस्ते", "दुनिया"]),  # its units lose the marks; ours keep them
        ("Cafe\u0301 au lait", ["Cafe", "au", "lait"], ["Cafe\u0301", "au", "lait"]),
        ("👍 one", ["one"], ["one"]),
    ],
)
def test_units_are_found_again_in_the_text_with_their_marks(text, units, slices):
    assert [text[a:b] for a, b in locate(text, units)] == slices


@pytest.mark.parametrize("units", [["alpha", "charlie"], ["alpha"], ["alpha", "bravo", "bravo"], ["", "alpha", "bravo"]])
def test_units_that_are_not_the_texts_are_refused(units):
    with pytest.raises(AlignError):
        locate("alpha bravo", units)


def test_word_times_are_the_chunks_own_plus_its_offset():
    (word,) = words(chunk_lasting(2, offset=480 * 1001), "alpha", ["alpha"], [80, 560])
    assert (word.start, word.end) == (30.11, 30.59)


def test_as_many_marks_as_two_a_unit_are_required():
    with pytest.raises(AlignError):
        words(chunk_lasting(2), "alpha bravo", ["alpha", "bravo"], [0, 80])


def test_estimated_words_fill_the_chunk_by_characters_and_say_so():
    found = estimated_words(chunk_lasting(1), "ab, cdefgh.")
    assert [(w.text, w.start, w.end, w.estimated) for w in found] == [("ab", 0.0, 0.26, True), ("cdefgh", 0.26, 1.0, True)]


def test_more_words_than_milliseconds_still_lose_no_text():
    (word,) = estimated_words(chunk_lasting(0.004), "a b c d e f")
    assert word.text == "a b c d e f" and word.start < word.end


def task_lasting(seconds: float, index: int = 0) -> align._Task:
    return align._Task(replace(chunk_lasting(seconds), index=index), "", "English", Future())


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), min_size=1, max_size=60), st.integers(1, 60))
def test_batches_hold_like_lengths_within_their_audio_and_count(clips, seconds):
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


def test_our_way_through_the_real_aligner_gives_the_packages_own_times(worker):
    """For every word whose marks needed no repair; what upstream would fill in is ours to estimate."""
    package, compared = worker.aligner._model, 0
    for u in [*ENGLISH[:6], *CHINESE[:6]]:
        chunk = chunk_of(u.pcm)
        ours = asyncio.run(worker.aligner.align(chunk, u.text, u.language))
        theirs = package.align((u.pcm.astype(np.float32) / 32768, SAMPLE_RATE), u.text, u.language)[0]
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            if not a.estimated:
                assert (a.start, a.end) == (b.start_time, b.end_time)
                compared += 1
    assert compared > 50


def test_the_real_aligner_takes_jobs_together_and_answers_each_with_its_own(worker):
    async def together():
        pool = [*ENGLISH[:10], *CHINESE[:10]]
        return pool, await asyncio.gather(*(worker.aligner.align(chunk_of(u.pcm), u.text, u.language) for u in pool))

    for u, found in zip(*asyncio.run(together())):
        assert len(found) == len(u.words)
        assert all(abs(a.start - b.start) < 1 for a, b in zip(found, u.words))


def test_a_language_without_an_aligner_is_refused_not_guessed(worker):
    assert "Hindi" not in LANGUAGES
    with pytest.raises(AlignError, match="Hindi"):
        asyncio.run(worker.aligner.align(chunk_lasting(1), "नमस्ते", "Hindi"))


def test_out_of_memory_halves_the_batch_until_it_fits_fault_injected_in_the_model(worker, monkeypatch):
    """What still doesn't fit alone fails alone."""
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
            assert isinstance(found, AlignError) and "out of memory" in str(found)
        else:
            assert len(found) == len(u.words)
    assert max(sizes) > 2


def test_a_broken_batch_fails_its_own_clips_and_the_aligner_goes_on_fault_injected_in_the_model(worker, monkeypatch):
    def breaks(**_):
        raise RuntimeError("injected")

    u = ENGLISH[0]
    chunk = chunk_of(u.pcm)
    with monkeypatch.context() as broken:
        broken.setattr(worker.aligner._model.model.thinker, "forward", breaks)
        with pytest.raises(AlignError):
            asyncio.run(worker.aligner.align(chunk, u.text, u.language))
    assert asyncio.run(worker.aligner.align(chunk, u.text, u.language))
