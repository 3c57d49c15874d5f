"""Chunks → transcript: how texts join, which language wins, what the units of a text are, what the
output holds.
"""

import json
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from result.transcript import Transcript, join, merge
from speech.text_units import units_in
from speech.words import ChunkResult, Word


def chunk(
    text: str,
    start: float = 0,
    speech: float = 1,
    language: str | None = "English",
    words: tuple[Word, ...] = (),
) -> ChunkResult:
    return ChunkResult(start, start + 2, speech, text, language if text else None, words)


def merged(chunks: list[ChunkResult]) -> Transcript:
    return merge(chunks, end=max([0, *(c.end for c in chunks)]))


def units(text: str) -> list[str]:
    return [text[a:b] for a, b in units_in(text)]


# joining


@pytest.mark.parametrize(
    "texts, joined",
    [
        (["One.", "Two."], "One. Two."),
        (["今天。", "明天"], "今天。明天"),
        (["これは", "テスト"], "これはテスト"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["안녕하세요", "여러분"], "안녕하세요 여러분"),
        (["The word is", "天气"], "The word is 天气"),
        (["天气", "means weather."], "天气 means weather."),
        (["用", "3", "天"], "用 3 天"),
        (["नमस्ते", "दुनिया"], "नमस्ते दुनिया"),
        (["天？", "「对」"], "天？「对」"),
    ],
)
def test_texts_join_as_their_scripts_are_written(texts, joined):
    assert join(texts)[0] == joined


def test_empty_texts_add_no_space():
    assert join(["One.", "", "", "Two."])[0] == "One. Two."
    assert join([])[0] == join([""])[0] == ""


@given(st.lists(st.text().map(str.strip)))
def test_join_gives_the_offset_of_each_text(texts):
    joined, offsets = join(texts)
    assert [joined[o : o + len(t)] for o, t in zip(offsets, texts)] == texts


# language


def test_the_language_with_the_most_speech_wins_not_the_one_with_the_most_chunks():
    chunks = [chunk("a", 0, 3), chunk("b", 2, 3), chunk("天", 4, 10, "Chinese")]
    assert merged(chunks).language == "Chinese"


def test_the_speech_of_a_language_is_summed():
    chunks = [chunk("a", 0, 6), chunk("天", 2, 10, "Chinese"), chunk("b", 4, 6)]
    assert merged(chunks).language == "English"


def test_a_chunk_without_text_does_not_count_for_the_language():
    assert merged([chunk("", 0, 100), chunk("天", 2, 1, "Chinese")]).language == "Chinese"


def test_chunks_without_text_are_an_empty_transcript_without_a_language():
    nothing = {
        "language_detected": None,
        "language_code": None,
        "languages": [],
        "text": "",
        "segments": [],
    }
    assert merged([]).to_output() == nothing | {"duration": 0}
    assert merged([chunk(""), chunk("", 2)]).to_output() == nothing | {"duration": 4}


# merging


def test_chunks_are_merged_in_the_order_of_time_however_they_come():
    first = chunk("One two.", 0, words=(Word("One", 0.1, 0.4, 0), Word("two", 0.5, 0.9, 4)))
    second = chunk("Three.", 2, words=(Word("Three", 2.2, 2.9, 0, estimated=True),))
    expected = {
        "language_detected": "English",
        "language_code": "en",
        "languages": [{"language": "English", "code": "en", "seconds": 2}],
        "duration": 4,
        "text": "One two. Three.",
        "segments": [
            {"start": 0.1, "end": 0.4, "text": "One", "offset": 0, "length": 3},
            {"start": 0.5, "end": 0.9, "text": "two", "offset": 4, "length": 3},
            {
                "start": 2.2,
                "end": 2.9,
                "text": "Three",
                "offset": 9,
                "length": 5,
                "estimated": True,
            },
        ],
    }
    assert merged([first, second]).to_output() == merged([second, first]).to_output() == expected


def test_words_are_marked_as_estimated_only_where_the_language_has_an_aligner():
    words = (Word("one", 0.1, 0.4, 0, estimated=True),)
    for language, is_marked in [("English", True), ("Polish", False), (None, True)]:
        (segment,) = merged([chunk("one", language=language, words=words)]).to_output()["segments"]
        assert segment.get("estimated", False) == is_marked, language


def test_times_are_given_to_the_millisecond():
    words = (Word("one", 1 / 3, 2 / 3, 0), Word("two", 59.9996, 3600.00049, 4))
    segments = merged([chunk("one two", words=words)]).to_output()["segments"]
    assert [(s["start"], s["end"]) for s in segments] == [(0.333, 0.667), (60.0, 3600.0)]


@given(
    st.lists(
        st.tuples(
            st.text(),
            st.floats(0, 1e5, allow_subnormal=False),
            st.floats(0, 180, allow_subnormal=False),
        ),
        max_size=5,
    )
)
def test_the_output_is_strict_json_of_plain_types(chunks):
    words = [
        tuple(Word(t[a:b], start, start + 1, a) for a, b in units_in(t)) for t, start, _ in chunks
    ]
    output = merged(
        [chunk(t, start, s, words=w) for (t, start, s), w in zip(chunks, words)]
    ).to_output()
    assert json.loads(json.dumps(output, allow_nan=False, ensure_ascii=False).encode()) == output
    assert type(output["text"]) is str
    assert all(
        type(s["start"]) is type(s["end"]) is float and type(s["text"]) is str
        for s in output["segments"]
    )


# units


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Hello, big world!", ["Hello", "big", "world"]),
        ("don't rock’n’roll o'clock", ["don't", "rock’n’roll", "o'clock"]),
        ("the boys' 'quoted' words", ["the", "boys", "quoted", "words"]),
        ("state-of-the-art 3.14 U.S.", ["state-of-the-art", "3.14", "U.S"]),
        ("今天，很好。", ["今", "天", "很", "好"]),
        ("用GPU算3天", ["用", "GPU", "算", "3", "天"]),
        ("カメラを５つ", ["カ", "メ", "ラ", "を", "５", "つ"]),
        ("ｶﾞｽ", ["ｶ", "ﾞ", "ｽ"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("안녕하세요 여러분", ["안녕하세요", "여러분"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("Cafe\u0301 au lait", ["Cafe\u0301", "au", "lait"]),
        ("مرحبا، بالعالم", ["مرحبا", "بالعالم"]),
        ("Привет – мир", ["Привет", "мир"]),
        ("葛\U000e0100城", ["葛\U000e0100", "城"]),  # with a variation selector
        ("𠮷野", ["𠮷", "野"]),
        ("one 👍 two", ["one", "two"]),
        ("👍🏽 🎉", ["👍🏽 🎉"]),
        ("…", ["…"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_units_are_words_or_characters_where_the_script_has_no_spaces(text, expected):
    assert units(text) == expected


def is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN"


mixed = (
    st.text(st.sampled_from("ab3 '’-.,\n\u0301天五。ガｶﾞาัวन्한👍\u200d\u3000\U000e0100٣")) | st.text()
)


@given(mixed)
@example("'")
@example("\u0301a")
def test_units_are_slices_in_order_that_hold_every_letter_and_number_and_no_space(text):
    spans = units_in(text)
    assert all(a < b for a, b in spans) and all(
        end <= start for (_, end), (start, _) in zip(spans, spans[1:])
    )
    covered = {i for a, b in spans for i in range(a, b)}
    assert all(i in covered for i, character in enumerate(text) if is_letter(character))
    assert bool(spans) == bool(text.strip())
    if any(map(is_letter, text)):
        assert all(any(map(is_letter, text[a:b])) and len(text[a:b].split()) == 1 for a, b in spans)
