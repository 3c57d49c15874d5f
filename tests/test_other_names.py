"""Unknown fields: what the warning says of each, and the sentence where the recording has another
name.
"""

import difflib

import pytest
from contract import other_names
from contract.errors import InvalidRequest
from contract.other_names import CALLED_HERE, MAX_NAMED, NO_FIELD
from contract.request import INPUT_FIELDS, Request, parse_request
from contract.subtitle_options import BOUNDS
from result.delivery import output_of
from result.transcript import merge
from speech.words import ChunkResult, Word

URL = "https://example.com/talk.mp3"
SAID = (  # (an unknown field, what its warning ends with)
    ("languge", "; language may be meant."),
    ("Language", "; language may be meant."),
    ("segment-level", "; segment_level may be meant."),
    ("audioHeader", "; audio_headers may be meant."),
    ("file", "; it is called audio_url here."),
    ("initial_prompt", "; it is called initial_context here."),
    ("initialPrompt", "; it is called initial_context here."),
    ("hotwords", "; it is called vocabulary here."),
    ("response_format", "; it is called output_format here."),
    ("transcription", "; it is called output_format here."),
    ("word_timestamps", "; it is called segment_level here."),
    ("audio_start_from", "; it is called start here, in seconds."),
    ("max_line_width", "; it is called subtitles.max_line_width here."),
    ("max_words_per_line", "; the field subtitles limits each line, and the number of lines."),
    (
        "translate",
        "; the transcript is in the language that is spoken, and the model cannot translate.",
    ),
    ("model", "; the endpoint's setting MODEL_NAME chooses the model."),
    (
        "multichannel",
        "; the field channel with the value 'each' transcribes every channel by itself.",
    ),
    (
        "diarize",
        "; speakers are told apart only by their channels, with channel 'each'.",
    ),
    ("s3Config", "; it belongs beside input."),
    ("foo", "The unknown field 'foo' was ignored."),
    ("", "The unknown field '' was ignored."),
    ("\ud800\n", "The unknown field '?\\n' was ignored."),
)


def warnings(**given) -> tuple[str, ...]:
    return parse_request({"audio_url": URL} | given).warnings


def refusal(job_input: dict) -> str:
    with pytest.raises(InvalidRequest) as refused:
        parse_request(job_input)
    return str(refused.value)


def test_a_warning_says_what_an_unknown_field_is_called_here_or_why_there_is_none():
    for name, end in SAID:
        (warning,) = warnings(**{name: None})
        assert warning.startswith("The unknown field ") and warning.endswith(end), warning


def test_every_other_name_leads_to_a_field_and_none_is_one_itself():
    options = {f"subtitles.{name}" for name in BOUNDS}
    assert {*CALLED_HERE.values()} <= {*INPUT_FIELDS} | options
    assert not {*CALLED_HERE} & {*NO_FIELD}
    assert not {*map(other_names.comparable, INPUT_FIELDS)} & {*CALLED_HERE, *NO_FIELD}


def test_a_recording_under_another_name_is_refused_with_the_name_here():
    for name in ("audio", "url", "file", "audioUrl", "audio_ulr"):
        sentence = refusal({name: URL, "languge": "en"})
        assert f"audio_url is missing; the field {name!r} is called audio_url here." in sentence
    assert "is called audio_base64 here" in refusal({"audio_b64": "AAAA"})
    assert "the field" not in refusal({"model": "large-v3"})


def test_of_many_long_unknown_fields_a_few_are_compared_and_named(monkeypatch):
    compared = []
    find = difflib.get_close_matches
    count = lambda name, *rest, **options: compared.append(name) or find(name, *rest, **options)
    monkeypatch.setattr(difflib, "get_close_matches", count)
    found = warnings(**{f"{i}{'x' * 1000}": i for i in range(10_000)})
    assert found[-1] == f"{10_000 - MAX_NAMED} more unknown fields were ignored."
    assert len(found) == MAX_NAMED + 1 and sum(map(len, found)) < 5000
    assert len(compared) == MAX_NAMED and max(map(len, compared)) < 100


def test_the_warnings_stand_before_those_of_the_recording_in_every_format():
    words = (Word("one", 0, 1, 0),)
    transcript = merge([ChunkResult(0, 2, 2, "one", "English", words)], 2, ("The file is short.",))
    for form in ("json", "text", "srt", "verbose_json"):
        request = Request(output_format=form, warnings=("The field was ignored.",))
        given = output_of(transcript, request)["warnings"]
        assert given == ["The field was ignored.", "The file is short."], form
