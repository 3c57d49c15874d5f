"""The splitter: chunks tile the recording, are cut in pauses, and never run over the limit."""

import asyncio

import clips
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from material import BANK, ENGLISH, noise, silence, voice
from recording.chunk import SAMPLE_RATE
from recording.vad import FRAME, MARGIN, CutRules, Splitter, split_at_pauses

RULES = CutRules(target_seconds=4.8, limit_seconds=8, vad_mode=2)


def split(pcm: np.ndarray, rules: CutRules = RULES, block: int = 8 * SAMPLE_RATE) -> list:
    splitter = Splitter(rules)
    chunks = [c for i in range(0, len(pcm), block) for c in splitter.push(pcm[i : i + block])]
    return chunks + splitter.finish()


@st.composite
def recordings(draw) -> np.ndarray:
    parts = st.one_of(
        st.builds(silence, st.floats(0, 12, allow_subnormal=False)),
        st.builds(noise, st.floats(0, 12, allow_subnormal=False), st.sampled_from([3, 300, 3000])),
        st.builds(voice, st.floats(0.01, 20, allow_subnormal=False)),
        st.sampled_from([u.pcm for u in BANK]),
    )
    return np.concatenate([silence(0), *draw(st.lists(parts, max_size=6))])


@given(recordings())
@settings(max_examples=60)
def test_chunks_are_slices_of_the_recording_in_order_without_overlap(pcm):
    position = 0
    for index, chunk in enumerate(split(pcm)):
        assert chunk.index == index and chunk.offset >= position
        assert len(chunk.pcm) and np.array_equal(
            chunk.pcm, pcm[chunk.offset : chunk.offset + len(chunk.pcm)]
        )
        position = chunk.offset + len(chunk.pcm)
    assert position <= len(pcm)


@given(recordings())
@settings(max_examples=60)
def test_no_chunk_is_longer_than_the_limit(pcm):
    assert all(chunk.duration <= RULES.limit_seconds for chunk in split(pcm))


@given(recordings())
@settings(max_examples=40)
def test_samples_in_no_chunk_are_silence_to_the_detector(pcm):
    chunks = split(pcm)
    splitter = Splitter(RULES)
    padded = np.pad(pcm, (0, -len(pcm) % FRAME))
    speech = [
        splitter._vad.is_speech(padded[i : i + FRAME].tobytes(), SAMPLE_RATE)
        for i in range(0, len(padded), FRAME)
    ]
    for i, heard in enumerate(speech):
        if heard:
            assert any(c.offset <= i * FRAME < c.offset + len(c.pcm) for c in chunks)


@given(recordings(), st.integers(1, 3 * SAMPLE_RATE))
@settings(max_examples=40)
def test_the_size_of_the_blocks_changes_nothing(pcm, block):
    def spans(chunks):
        return [(c.offset, len(c.pcm), c.speech) for c in chunks]

    assert spans(split(pcm, block=max(block, len(pcm) // 200 + 1))) == spans(
        split(pcm, block=len(pcm) + 1)
    )


def test_a_recording_of_utterances_is_cut_between_words_only():
    whole = clips.recording(ENGLISH, 120, seed=7)
    for chunk in split(whole.pcm)[:-1]:
        assert not [w.text for w in whole.words if w.start + 0.03 < chunk.end < w.end - 0.03]


def test_the_longest_pause_near_the_target_wins():
    first, second, third = (voice(s) for s in (3.0, 1.5, 6.0))
    pcm = np.concatenate([first, silence(0.4), second, silence(0.7), third])
    cut = split(pcm)[0].end
    assert 3.0 + 0.4 + 1.5 < cut < 3.0 + 0.4 + 1.5 + 0.7


def test_speech_without_a_pause_is_cut_at_its_quietest_point():
    pcm = voice(12)
    dip = slice(round(6.1 * SAMPLE_RATE), round(6.25 * SAMPLE_RATE))  # too short for a pause
    pcm[dip] //= 50
    first, *_ = split(pcm)
    assert 6.1 <= first.end <= 6.25


def test_silence_gives_no_chunk():
    assert split(silence(30)) == []
    assert split(silence(0)) == []


def test_an_hour_of_silence_is_not_held_in_memory():
    splitter = Splitter(RULES)
    for _ in range(450):
        assert splitter.push(silence(8)) == []
        assert len(splitter._held) <= (MARGIN + 1) * FRAME * 2


def test_long_silence_between_speech_is_left_out_and_later_times_stay_right():
    pcm = np.concatenate([voice(2), silence(60), voice(2)])
    first, second = split(pcm)
    assert first.end < 3 and 61 < second.start <= 62 and second.end == pytest.approx(64)


def test_long_silence_ends_a_chunk_long_before_the_target():
    assert len(split(np.concatenate([voice(1), silence(2), voice(1)]))) == 2


def test_speech_shorter_than_a_frame_at_the_very_end_is_kept():
    pcm = np.concatenate([voice(1), voice(0.02)])
    chunks = split(pcm)
    assert sum(len(c.pcm) for c in chunks) == len(pcm)


def test_a_tenth_of_a_second_of_speech_is_one_chunk():
    (chunk,) = split(voice(0.1))
    assert chunk.duration == pytest.approx(0.1)


def test_speech_seconds_tell_speech_from_pauses():
    (chunk,) = split(np.concatenate([voice(1), silence(0.6), voice(1)]))
    assert 2.0 <= chunk.speech_seconds < 2.5 < chunk.duration


def test_split_at_pauses_gives_the_chunks_of_the_splitter():
    async def blocks():
        for i in range(0, len(pcm), 5000):
            yield pcm[i : i + 5000]

    async def collect():
        return [(c.offset, len(c.pcm)) async for c in split_at_pauses(blocks(), RULES)]

    pcm = clips.recording(ENGLISH, 30, seed=5).pcm
    assert asyncio.run(collect()) == [(c.offset, len(c.pcm)) for c in split(pcm)]
