"""Chinese text in the script that is asked for, at the same offsets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from result.script import CONVERSIONS, converted, in_script
from speech.text_units import words_in
from speech.words import ChunkResult, Word


def chunk(text: str) -> ChunkResult:
    words = [Word(text[a:b], i, i + 1, a) for i, (a, b) in enumerate(words_in(text))]
    return ChunkResult(0, 99, 9, text, "Chinese", tuple(words))


@pytest.mark.parametrize(
    "script, text",
    [
        ("Hant", "皇后的頭髮，乾杯，軟件開發在臺灣裏面。OK！"),
        ("Hant-TW", "皇后的頭髮，乾杯，軟件開發在臺灣裡面。OK！"),
        ("Hant-HK", "皇后的頭髮，乾杯，軟件開發在台灣裏面。OK！"),
        ("Hans", "皇后的头发，干杯，软件开发在台湾里面。OK！"),
        (None, "皇后的头发，干杯，软件开发在台湾里面。OK！"),
    ],
)
def test_the_text_and_its_words_are_in_the_script(script, text):
    found = in_script(chunk("皇后的头发，干杯，软件开发在台湾里面。OK！"), script)
    assert found.text == text
    assert "".join(word.text for word in found.words) == text.translate(
        {ord(c): "" for c in "，。！"}
    )


@given(
    st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF) | st.sampled_from("a，😀"))
)
def test_words_stay_slices_at_their_offsets_with_their_times(text):
    before = chunk(text)
    for script in CONVERSIONS:
        after = in_script(before, script)
        assert len(after.text) == len(text)
        for old, new in zip(before.words, after.words, strict=True):
            assert after.text[new.offset : new.offset + len(new.text)] == new.text
            assert (new.offset, len(new.text), new.start) == (old.offset, len(old.text), old.start)


def test_a_text_that_is_in_the_script_stays():
    for script, text in [("Hans", "今天天气很好，乾坤。"), ("Hant", "今天天氣很好，乾坤。")]:
        assert converted(text, script) == text
