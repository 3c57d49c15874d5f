"""Words → cues → SRT and WebVTT, read back by strict parsers that are not ours."""

import re
from fractions import Fraction

import pytest
import srt
import webvtt
from contract.subtitle_options import BOUNDS, SubtitleOptions
from hypothesis import given, settings
from hypothesis import strategies as st
from result.line_breaks import counts
from result.subtitles import MIN_PAUSE_SECONDS, Cue, cues_of, to_srt, to_vtt
from result.transcript import Segment

SCRIPTS = {
    "Latin": st.text("abcdeéß", min_size=1, max_size=12),
    "Chinese": st.sampled_from("甲乙丙丁戊"),
    "Thai": st.sampled_from(["ที่", "นี่", "ก", "กำ"]),
    "Latin in Chinese": st.sampled_from(["甲", "乙", "ab", "5%"]),
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
                st.integers(1, 300) | st.integers(1, 3000),
                st.sampled_from([0, 0, 1, 120, 400, 1500]),
            ),
            max_size=60,
        )
    )
    return words_of(
        [(text + mark, length / 1000, pause / 1000) for text, mark, length, pause in spoken],
        spaced="Chinese" not in script and script != "Thai",
    )


def share_of_a_line(text: str, options: SubtitleOptions) -> Fraction:
    wide, letters = counts(text)
    return Fraction(wide, options.max_line_width_cjk) + Fraction(letters, options.max_line_width)


def any_options() -> st.SearchStrategy[SubtitleOptions]:
    """All that a request may ask for, and often the smallest and the largest values."""
    numbers = {
        name: st.sampled_from(bounds) | st.integers(*bounds) for name, bounds in BOUNDS.items()
    }
    found = st.fixed_dictionaries(numbers).filter(lambda o: o["min_duration"] <= o["max_duration"])
    return st.just(SubtitleOptions()) | found.map(lambda given: SubtitleOptions(**given))


@settings(max_examples=300)
@given(speech(), any_options())
def test_every_word_is_in_one_cue_whole_and_in_order_within_the_limits(words, options):
    cues = cues_of(words, ends(words) + 2, options)
    shown = [line for cue in cues for line in cue.lines]
    assert "".join("".join(shown).split()) == "".join("".join(w.text for w in words).split())
    texts, starts = {w.text for w in words}, {w.start: w for w in words}
    for cue, following in zip(cues, [*cues[1:], None]):
        limit = following.start if following else ends(words) + 2
        assert cue.start in starts and cue.start < cue.end <= limit
        assert cue.end >= min(cue.start + options.min_duration, limit)
        longest = max(options.max_duration, starts[cue.start].end - cue.start)
        assert cue.end - cue.start <= longest + 1e-6
        assert 1 <= len(cue.lines) <= options.max_line_count
        for line in cue.lines:
            is_one_long_word = len(cue.lines) == 1 and line in texts
            assert share_of_a_line(line, options) <= 1 or is_one_long_word, line


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


TALK = (
    "We came early. When the train had left the station, nobody was there to meet us, so we "
    "walked along the river to the old town."
)


def test_a_sentence_is_a_cue_and_a_long_one_breaks_behind_its_clauses():
    assert lines(cues_of(said(TALK), 99)) == [
        ("We came early.",),
        ("When the train had left the station,", "nobody was there to meet us,"),
        ("so we walked along the", "river to the old town."),
    ]


TO_TASTE = (  # (the options, the lines of each cue of TALK)
    (
        {"max_line_count": 1},
        [
            ("We came early.",),
            ("When the train had left the station,",),
            ("nobody was there to meet us,",),
            ("so we walked along the river to the old",),
            ("town.",),
        ],
    ),
    (
        {"max_line_width": 20, "max_line_count": 3},
        [
            ("We came early.",),
            ("When the train had", "left the station,"),
            ("nobody was there", "to meet us,"),
            ("so we walked", "along the river", "to the old town."),
        ],
    ),
    (
        {"min_duration": 5, "max_line_count": 4},
        [
            (
                "We came early. When the train had left",
                "the station, nobody was there to meet us,",
            ),
            ("so we walked along the", "river to the old town."),
        ],
    ),
    (
        {"max_duration": 3},
        [
            ("We came early.",),
            ("When the train had left the station,",),
            ("nobody was there to meet us,",),
            ("so we walked along the river to the",),
            ("old town.",),
        ],
    ),
    (
        {"max_line_width": 1, "max_line_count": 1, "min_duration": 0},
        [(word,) for word in TALK.split()],
    ),
)


def test_lines_and_cues_have_the_limits_that_are_asked_for():
    for options, expected in TO_TASTE:
        assert lines(cues_of(said(TALK), 99, SubtitleOptions(**options))) == expected, options


def test_no_line_is_over_full_for_the_sake_of_a_comma():
    words = said("aaaaaaaa aaaaaaaaa x, bbbbbbbb bbbbbbbb")
    expected = [("aaaaaaaa aaaaaaaaa", "x, bbbbbbbb bbbbbbbb")]
    assert lines(cues_of(words, 99, SubtitleOptions(max_line_width=20))) == expected


def test_a_line_that_is_exactly_full_is_one_line():
    for width in (20, 42, 99):
        for first in range(1, width - 1):
            text = "a" * first + " " + "b" * (width - 1 - first)
            found = lines(cues_of(said(text), 99, SubtitleOptions(max_line_width=width)))
            assert found == [(text,)], text


def test_a_pause_ends_a_cue_and_is_where_a_full_one_breaks():
    words = words_of([("one", 0.4, MIN_PAUSE_SECONDS + 0.1), ("two", 0.4, 0.1)])
    assert lines(cues_of(words, 99)) == [("one",), ("two",)]
    spoken = [(f"word{i:02}", 0.3, 0.5 if i == 7 else 0.02) for i in range(14)]
    assert lines(cues_of(words_of(spoken), 99))[0][-1].endswith("word07")


def test_a_short_cue_stays_until_it_can_be_read_but_not_into_the_next():
    yes, no = words_of([("Yes.", 0.2, 1.5), ("No.", 0.2, 0)])
    first, second = cues_of([yes, no], 10)
    assert [first.end - first.start, second.end - second.start] == pytest.approx([1.0, 1.0])
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


def test_the_width_of_chinese_lines_is_an_option_of_its_own():
    words = words_of([(c, 0.2, 0) for c in "天地玄黄宇宙洪荒日月盈昃"], spaced=False)
    options = SubtitleOptions(max_line_width=1, max_line_width_cjk=6)
    assert lines(cues_of(words, 99, options)) == [("天地玄黄宇宙", "洪荒日月盈昃")]


def test_a_phrase_without_spaces_is_divided_where_it_is_over_the_limits():
    words = words_of([("ก", 0.5, 0)] * 8, spaced=False)
    divided = (
        ({}, [("กกกกกกกก",)]),
        ({"max_line_width": 4}, [("กกกก", "กกกก")]),
        ({"max_duration": 2}, [("กกกก",), ("กกกก",)]),
    )
    for options, expected in divided:
        assert lines(cues_of(words, 99, SubtitleOptions(**options))) == expected, options


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
