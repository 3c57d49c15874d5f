"""The field subtitles: what is accepted, refusals that name the option, and that it is used."""

from dataclasses import fields

import pytest
from contract.errors import InvalidRequest
from contract.request import OUTPUT_FORMATS, parse_request
from contract.subtitle_options import BOUNDS, SUBTITLE_FORMATS, SubtitleOptions
from result.delivery import output_of
from result.transcript import merge
from speech.words import ChunkResult, Word

URL = "https://example.com/talk.mp3"
OPTIONS = "max_line_width, max_line_width_cjk, max_line_count, min_duration, max_duration"


def request(subtitles, output_format="srt"):
    return parse_request({"audio_url": URL, "output_format": output_format, "subtitles": subtitles})


def parsed(**options) -> SubtitleOptions:
    return request(options).subtitles


def refusal(subtitles, output_format="srt") -> str:
    with pytest.raises(InvalidRequest) as refused:
        request(subtitles, output_format)
    return str(refused.value)


def test_every_option_has_bounds_and_a_default_within_them():
    assert [field.name for field in fields(SubtitleOptions)] == list(BOUNDS)
    for name, (least, most) in BOUNDS.items():
        assert least < getattr(SubtitleOptions(), name) < most, name


def test_what_is_absent_or_null_has_its_default():
    for subtitles in (None, "", {}, dict.fromkeys(BOUNDS)):
        assert request(subtitles).subtitles == SubtitleOptions(), subtitles


def test_every_option_is_taken_over_and_both_bounds_are_accepted():
    assert parsed(max_line_width=32, max_duration=4.5) == SubtitleOptions(32, 16, 2, 1.0, 4.5)
    for column in (0, 1):
        given = {name: bounds[column] for name, bounds in BOUNDS.items()}
        assert parsed(**given) == SubtitleOptions(**given)


def test_values_of_another_type_or_out_of_bounds_are_refused_with_the_bounds():
    for name, (least, most) in BOUNDS.items():
        in_seconds = name.endswith("duration")
        values = [
            least - 1,
            most + 1,
            "5",
            True,
            [5],
            {},
            1e999,
            10**400,
            *([] if in_seconds else [5.0]),
        ]
        wanted = "a number of seconds" if in_seconds else "a whole number"
        for value in values:
            message = refusal({name: value})
            assert message.startswith(f"subtitles.{name} is "), (name, value)
            end = f"; it must be {wanted}, from {least} to {most}."
            assert message.endswith(end) and len(message) < 200, (name, value)


def test_a_minimum_over_the_maximum_is_refused_with_both():
    sentence = "subtitles.min_duration is {}; it must be at most max_duration, which is {}."
    assert refusal({"min_duration": 3, "max_duration": 2.5}) == sentence.format(3, 2.5)
    assert refusal({"min_duration": 8}) == sentence.format(8, 7)


def test_what_is_no_object_is_refused_with_the_options():
    for value in (True, 42, "42", [42]):
        message = refusal(value)
        assert message.startswith("subtitles is "), value
        assert message.endswith(f"; it must be null, or an object with any of: {OPTIONS}."), value


UNKNOWN = (  # (an unknown option, the hint behind the list of all)
    ("max_line_widht", " max_line_width may be meant."),
    ("maxLineWidth", " max_line_width may be meant."),
    ("max_chars_per_line", " max_line_width may be meant."),
    ("maximum_rows_per_caption", " max_line_count may be meant."),
    ("minimum_duration", " min_duration may be meant."),
    ("longest_seconds", " max_duration may be meant."),
    ("max_words_per_line", ""),
    ("language", ""),
    ("lang", ""),
    ("", ""),
    ("\ud800\n", ""),
)


def test_an_unknown_option_is_refused_with_all_and_the_one_that_may_be_meant():
    for name, hint in UNKNOWN:
        message = refusal({name: 5})
        assert message.startswith("subtitles has the unknown option "), message
        assert message.endswith(f"; it must be one of: {OPTIONS}.{hint}"), message
        assert message.isprintable() and message.encode()


def test_options_are_refused_where_the_format_has_no_subtitles():
    for form in {*OUTPUT_FORMATS} - {*SUBTITLE_FORMATS}:
        assert request(None, form).subtitles == SubtitleOptions()
        assert refusal({"max_line_count": 1}, form) == (
            f"subtitles is given, but output_format is '{form}'; it must be one of: srt, vtt."
        )
    assert "output_format is 'json'" in refusal({}, None)


def test_both_formats_are_written_with_the_options():
    words = (Word("one", 0, 1, 0), Word("two", 1, 2, 4))
    transcript = merge([ChunkResult(0, 2, 2, "one two", "English", words)], 2)
    for form in SUBTITLE_FORMATS:
        one, two = (
            output_of(transcript, request({"max_line_width": width}, form))[form]
            for width in (7, 6)
        )
        assert "one two" in one and "one\ntwo" in two, form
