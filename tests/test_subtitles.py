"""Words → cues → SRT and WebVTT, read back by strict parsers that are not ours."""

import re
import unicodedata

import pytest
import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from result.line_breaks import MAX_LETTERS, MAX_WIDE
from result.subtitles import (
    MAX_SECONDS,
    MIN_PAUSE_SECONDS,
    MIN_SECONDS,
    Cue,
    cues_of,
    to_srt,
    to_vtt,
)
from result.transcript import Segment

SCRIPTS = {
    "Latin": st.text("abcdeéß", min_size=1, max_size=12),
    "Chinese": st.sampled_from("甲乙丙丁戊"),
    "Thai": st.sampled_from(["ที่", "นี่", "ก", "กำ"]),
    "Arabic": st.text("ابتث", min_size=1, max_size=8),
    "markup": st.sampled_from(["<b>x</b>", "a&b", "-->", "&lt;", "1", "00:00:01,000"]),
}
PUNCTUATION = st.sampled_from(["", "", "", "", ",", ".", "?", "。", "，"])


def words_of(spoken: list[tuple[str, float, float]], spaced: bool = True) -> list[Segment]:
    """Words with their lengths and the pauses behind them, in seconds."""
    found, offset, at = [], 0, 0.0
    for text, length, pause in spoken:
        start, end = round(at, 3), round(at + length, 3)
        ends_sentence = text.endswith((".", "?", "。"))
        found.append(Segment(start, end, text, offset, ends_sentence=ends_sentence))
        offset += len(text) + spaced
        at += length + pause
    return found


def said(text: str, seconds_a_word: float = 0.3, pause: float = 0.05) -> list[Segment]:
    return words_of([(word, seconds_a_word, pause) for word in text.split()])


def ends(words: list[Segment]) -> float:
    return words[-1].end if words else 0.0


def lines(cues: list[Cue]) -> list[tuple[str, ...]]:
    return [cue.lines for cue in cues]


@st.composite
def speech(draw) -> list[Segment]:
    script = draw(st.sampled_from(sorted(SCRIPTS)))
    spoken = draw(
        st.lists(
            st.tuples(
                SCRIPTS[script],
                PUNCTUATION,
                st.integers(1, 3000),
                st.sampled_from([0, 0, 1, 120, 400, 1500]),
            ),
            max_size=60,
        )
    )
    return words_of(
        [(text + mark, length / 1000, pause / 1000) for text, mark, length, pause in spoken],
        spaced=script not in ("Chinese", "Thai"),
    )


def is_wide(line: str) -> bool:
    return all(unicodedata.east_asian_width(c) in "WF" for c in line)


@settings(max_examples=300)
@given(speech())
def test_every_word_is_in_one_cue_whole_and_in_order_within_the_limits(words):
    cues = cues_of(words, ends(words) + 2)
    shown = [line for cue in cues for line in cue.lines]
    assert "".join("".join(shown).split()) == "".join("".join(w.text for w in words).split())
    starts = {w.start: w for w in words}
    for cue, following in zip(cues, [*cues[1:], None]):
        assert cue.start in starts and cue.start < cue.end and 1 <= len(cue.lines) <= 2
        assert following is None or cue.end <= following.start
        assert cue.end - cue.start <= max(MAX_SECONDS, starts[cue.start].end - cue.start) + 1e-6
        for line in cue.lines:
            length = sum(unicodedata.category(c) not in ("Mn", "Me", "Cf") for c in line)
            assert length <= (MAX_WIDE if is_wide(line) else MAX_LETTERS)


@settings(max_examples=200)
@given(speech())
def test_strict_parsers_read_every_cue_back(words):
    cues = cues_of(words, ends(words) + 2)
    read = list(srt.parse(to_srt(cues)))
    assert [(c.start.total_seconds(), c.end.total_seconds(), c.content) for c in read] == [
        (pytest.approx(c.start, abs=0.0006), pytest.approx(c.end, abs=0.0006), "\n".join(c.lines))
        for c in cues
    ]
    read = webvtt.from_string(to_vtt(cues)).captions
    ms = lambda clock: sum(
        int(part) * unit
        for part, unit in zip(re.split("[:.]", clock), (3_600_000, 60_000, 1000, 1))
    )
    assert [(ms(c.start), ms(c.end)) for c in read] == [
        (round(1000 * c.start), round(1000 * c.end)) for c in cues
    ]
    unescape = lambda text: text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert [unescape(c.raw_text) for c in read] == ["\n".join(c.lines) for c in cues]


def test_a_sentence_is_a_cue_and_a_long_one_breaks_behind_its_clauses():
    text = (
        "We came early. When the train had left the station, nobody was there to meet us, so "
        "we walked along the river to the old town."
    )
    assert lines(cues_of(said(text), 99)) == [
        ("We came early.",),
        ("When the train had left the station,", "nobody was there to meet us,"),
        ("so we walked along the", "river to the old town."),
    ]


def test_a_pause_ends_a_cue_and_is_where_a_full_one_breaks():
    words = words_of([("one", 0.4, MIN_PAUSE_SECONDS + 0.1), ("two", 0.4, 0.1)])
    assert lines(cues_of(words, 99)) == [("one",), ("two",)]
    spoken = [(f"word{i:02}", 0.3, 0.5 if i == 7 else 0.02) for i in range(14)]
    assert lines(cues_of(words_of(spoken), 99))[0][-1].endswith("word07")


def test_a_short_cue_stays_until_it_can_be_read_but_not_into_the_next():
    yes, no = words_of([("Yes.", 0.2, 1.5), ("No.", 0.2, 0)])
    first, second = cues_of([yes, no], 10)
    assert [first.end - first.start, second.end - second.start] == pytest.approx(
        [MIN_SECONDS, MIN_SECONDS]
    )
    fast = said("Extraordinarily uninterrupted communication.", seconds_a_word=0.2)
    assert cues_of(fast, 99)[0].end == pytest.approx(44 / 17)
    assert cues_of(fast, 1.0)[0].end == 1.0  # where the recording ends


def test_chinese_has_sixteen_characters_a_line_and_no_spaces():
    spoken = [
        (c, 0.2, 0) for c in "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳"
    ]
    assert lines(cues_of(words_of(spoken, spaced=False), 99)) == [
        ("天地玄黄宇宙洪荒日月盈昃辰宿列张", "寒来暑往秋收冬藏闰余成岁律吕调阳")
    ]


def test_a_word_longer_than_a_line_stands_alone():
    long = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerk"
    assert lines(cues_of(said(f"Die {long} steht"), 99)) == [("Die",), (long,), ("steht",)]


def test_a_hundred_hours_are_written_in_full():
    cue = Cue(100 * 3600 + 61.5, 100 * 3600 + 62.0004, ("late",))
    assert to_srt([cue]) == "1\n100:01:01,500 --> 100:01:02,000\nlate\n"
    assert to_vtt([cue]) == "WEBVTT\n\n100:01:01.500 --> 100:01:02.000\nlate\n"


def test_markup_in_a_text_is_text():
    assert "a &lt;b&gt; &amp; --&gt; c" in to_vtt([Cue(0, 1, ("a <b> & --> c",))])


def test_nothing_said_is_an_empty_file():
    assert cues_of([], 10) == [] and to_srt([]) == "" and to_vtt([]) == "WEBVTT\n"
