"""Text, units and marks → words: valid times for any marks, units located in the text."""

import pytest
from contract.errors import AlignError
from hypothesis import given, settings
from hypothesis import strategies as st
from material import chunk_of, silence
from recording.chunk import AudioChunk
from speech.locate import locate
from speech.word_times import (
    aligned_words,
    estimated_words,
    longest_non_decreasing,
    repair,
)


def chunk_lasting(seconds: float, offset: int = 0) -> AudioChunk:
    return chunk_of(silence(seconds), offset)


def upstream_indices(data: list[int]) -> list[int]:
    """The quadratic search of qwen-asr 0.0.6 (Qwen3ForceAlignProcessor.fix_timestamp)."""
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
    st.lists(st.integers(0, 5), max_size=60),
    st.lists(st.integers(-1000, 400_000), max_size=60),
    st.lists(st.integers(0, 20_000), max_size=60).map(sorted),
    st.lists(st.integers(0, 20_000), max_size=60).map(lambda x: sorted(x, reverse=True)),
    st.lists(st.sampled_from([0, 0, 0, 80, 160, 8000, 399_920]), max_size=60),
)


@given(marks_of_any_kind)
@settings(max_examples=500)
def test_the_fast_search_finds_the_indices_that_the_quadratic_one_finds(data):
    assert longest_non_decreasing(data) == upstream_indices(data)


@given(marks_of_any_kind, st.integers(60, 180_000), st.data())
@settings(max_examples=500)
def test_times_keep_their_contract_whatever_the_marks_are(marks, duration, data):
    marks = marks[: len(marks) // 2 * 2]
    lengths = data.draw(
        st.lists(st.integers(1, 20), min_size=len(marks) // 2, max_size=len(marks) // 2)
    )
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
    # Each gets 20 ms, and the rest is shared 2:2:6.
    assert [end - start for start, end, _ in times[1:]] == [
        128,
        128,
        344,
    ]


def test_marks_beyond_the_chunk_are_spread_within_it():
    assert repair([0, 400, 399_920, 399_920], 1000, [1, 1]) == [(0, 400, False), (400, 1000, True)]


@pytest.mark.parametrize(
    "text, units, slices",
    [
        ("Alpha, bravo.", ["Alpha", "bravo"], ["Alpha", "bravo"]),
        ("Don't stop-gap it!", ["Don't", "stopgap", "it"], ["Don't", "stop-gap", "it"]),
        ("十三，天。", ["十", "三", "天"], ["十", "三", "天"]),
        ("用 GPU 算", ["用", "GPU", "算"], ["用", "GPU", "算"]),
        (
            "５つのガラス",
            ["5", "つ", "の", "ガラス"],
            ["５", "つ", "の", "ガラス"],
        ),  # nagisa normalises
        ("ｶﾞﾗｽ", ["ガラス"], ["ｶﾞﾗｽ"]),
        (
            "नमस्ते दुनिया",
            ["नमसत", "दनय"],
            ["नमस्ते", "दुनिया"],
        ),  # its units lose the marks; ours keep them
        ("Cafe\u0301 au lait", ["Cafe", "au", "lait"], ["Cafe\u0301", "au", "lait"]),
        ("👍 one", ["one"], ["one"]),
    ],
)
def test_units_are_found_again_in_the_text_with_their_marks(text, units, slices):
    assert [text[a:b] for a, b in locate(text, units)] == slices


@pytest.mark.parametrize(
    "text, units, found",
    [
        ("alpha bravo", ["alpha", "charlie"], ["alpha", None]),
        ("alpha bravo", ["alpha"], ["alpha"]),
        ("alpha bravo", ["alpha", "bravo", "bravo"], ["alpha", "bravo", None]),
        ("alpha bravo", ["", "alpha", "bravo"], [None, "alpha", "bravo"]),
        ("alpha bravo", ["alpha", "brave"], ["alpha", None]),  # a part of a word is not the word
        (
            "速度は100Mbpsです",
            ["速度", "は", "0", "10Mbps", "です"],
            ["速度", "は", None, None, "です"],
        ),
    ],
)
def test_units_that_are_not_in_the_text_as_a_whole_are_left_out(text, units, found):
    assert [span and text[slice(*span)] for span in locate(text, units)] == found


@pytest.mark.parametrize(
    "text, units, expected",
    [
        (
            "今日は25℃です",
            ["今日", "は", "2", "5", "C", "です"],
            ["今日", "は", "2", "5", "℃", "です"],
        ),
        (
            "体重は60㎏です",
            ["体重", "は", "6", "0", "kg", "です"],
            ["体重", "は", "6", "0", "㎏", "です"],
        ),
        ("½です", ["1", "2", "です"], ["½", "です"]),
        ("㈱日立です", ["株", "日立", "です"], ["㈱", "日立", "です"]),
        (
            "速度は100Mbpsです",
            ["速度", "は", "0", "10Mbps", "です"],
            ["速度", "は", "100Mbps*", "です"],
        ),
        ("㍻２年", ["平成", "2", "年"], ["㍻", "２", "年"]),
        ("今天25℃，½㈱", ["今", "天", "25½"], ["今", "天", "25℃，½"]),
        ("It is 25℃ here", ["It", "is", "25", "here"], ["It", "is", "25℃", "here"]),
        ("one two three four", ["one", "three"], ["one", "two*", "three", "four*"]),
        ("一二三四", ["二", "四"], ["一*", "二", "三*", "四"]),
    ],
)
def test_units_in_the_text_keep_their_times_and_other_words_are_estimated_between_them(
    text, units, expected
):
    """A star marks the estimated ones."""
    marks = [t for i in range(len(units)) for t in (1000 * i + 100, 1000 * i + 900)]
    found = aligned_words(chunk_lasting(10), text, units, marks)
    assert [w.text + "*" * w.estimated for w in found] == expected
    assert [w.text for w in found] == [text[w.offset : w.offset + len(w.text)] for w in found]
    assert {round(1000 * t) for w in found if not w.estimated for t in (w.start, w.end)} <= {*marks}
    assert all(a.end <= b.start for a, b in zip(found, found[1:]))


def test_two_units_of_one_character_give_it_the_start_of_the_first_and_the_end_of_the_second():
    half, _ = aligned_words(
        chunk_lasting(4), "½です", ["1", "2", "です"], [80, 400, 480, 800, 960, 1200]
    )
    assert (half.text, half.start, half.end) == ("½", 0.08, 0.8)


def test_units_of_which_none_is_in_the_text_are_refused():
    with pytest.raises(AlignError):
        aligned_words(chunk_lasting(2), "alpha", ["bravo"], [0, 80])


@given(
    st.text(alphabet="ab 1½℃㎏ー'é。", max_size=30),
    st.lists(st.text(alphabet="ab1Ckg'e", min_size=1, max_size=4), max_size=8),
)
def test_whatever_the_units_are_every_letter_of_the_text_is_in_one_word_in_order(text, units):
    try:
        found = aligned_words(
            chunk_lasting(10), text, units, [100 * i for i in range(2 * len(units))]
        )
    except AlignError:
        return
    places = [i for w in found for i in range(w.offset, w.offset + len(w.text))]
    assert places == sorted({*places})
    assert {i for i, c in enumerate(text) if c.isalnum()} <= {*places}


def test_word_times_are_the_chunks_own_plus_its_offset():
    (word,) = aligned_words(chunk_lasting(2, offset=480 * 1001), "alpha", ["alpha"], [80, 560])
    assert (word.start, word.end) == (30.11, 30.59)


def test_a_wrong_number_of_marks_is_refused():
    with pytest.raises(AlignError):
        aligned_words(chunk_lasting(2), "alpha bravo", ["alpha", "bravo"], [0, 80])


def test_estimated_words_fill_the_chunk_by_their_spoken_length_and_say_so():
    found = estimated_words(chunk_lasting(1), "tabu, bandana.")
    assert [(w.text, w.start, w.end, w.estimated) for w in found] == [
        ("tabu", 0.0, 0.378, True),
        ("bandana", 0.378, 1.0, True),
    ]


def test_more_words_than_milliseconds_still_lose_no_text():
    (word,) = estimated_words(chunk_lasting(0.004), "a b c d e f")
    assert word.text == "a b c d e f" and word.start < word.end
