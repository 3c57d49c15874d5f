"""The contract's input: accepted values and what they become, and errors that name field and value
but no query of a URL.
"""

import ast
import base64
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from contract.audio_source import MAX_URL_CHARACTERS
from contract.errors import InvalidRequest
from contract.languages import LANGUAGES, OTHER_CODES
from contract.request import (
    INPUT_FIELDS,
    MAX_CHANNEL,
    MAX_CONTEXT_CHARACTERS,
    MAX_SECONDS,
    MAX_TERM_CHARACTERS,
    MAX_TERMS,
    MAX_TRACK,
    OUTPUT_FORMATS,
    SEGMENT_LEVELS,
    Request,
    parse_request,
)
from contract.shown import shown
from contract.subtitle_options import BOUNDS, SubtitleOptions
from hypothesis import given
from hypothesis import strategies as st

URL = "https://example.com/talk.mp3"


FIELDS = [name for name in INPUT_FIELDS if name != "audio_url"]


def parse(**given) -> Request:
    return parse_request({"audio_url": URL} | given)


def refusal(job_input) -> str:
    with pytest.raises(InvalidRequest) as refused:
        parse_request(job_input)
    return str(refused.value)


def test_a_url_is_all_that_is_needed():
    assert parse() == Request(
        audio_url=URL,
        language=None,
        initial_context="",
        use_previous_context=False,
        allow_partial=False,
        segment_level="word",
        punctuation=False,
        output_format="json",
        start=0.0,
        end=None,
        track="default",
        channel=None,
        vocabulary=(),
    )


def test_every_field_is_taken_over():
    job_input = {
        "audio_url": URL,
        "language": "German",
        "initial_context": "Namen: Žižek",
        "use_previous_context": True,
    }
    job_input |= {
        "allow_partial": True,
        "segment_level": "both",
        "punctuation": True,
        "output_format": "srt",
    }
    job_input |= {"start": 1.5, "end": 2, "track": 3, "channel": 1, "vocabulary": ["Žižek"]}
    job_input |= {"audio_headers": {"A": "b"}, "confidence": True}
    job_input |= {"subtitles": {"max_line_count": 1}}
    as_parsed = {"vocabulary": ("Žižek",), "subtitles": SubtitleOptions(max_line_count=1)}
    assert parse_request(job_input) == Request(**job_input | as_parsed)


def test_null_is_the_same_as_absent():
    assert parse(**dict.fromkeys(FIELDS)) == parse()


def test_unknown_fields_change_nothing_and_each_is_named():
    request = parse(beam_size=5, audio="…", model=None)
    assert replace(request, warnings=()) == parse() and parse().warnings == ()
    assert [warning.split("'")[1] for warning in request.warnings] == [
        "beam_size",
        "audio",
        "model",
    ]


# language


def test_there_are_thirty_languages_and_they_are_those_of_qwen_asr():
    """Read from the package's source: importing it takes seconds."""
    package = Path(importlib.util.find_spec("qwen_asr").origin).parent
    tree = ast.parse((package / "inference" / "utils.py").read_text(encoding="utf-8"))
    (table,) = (
        n.value
        for n in tree.body
        if isinstance(n, ast.AnnAssign) and n.target.id == "SUPPORTED_LANGUAGES"
    )
    assert len(LANGUAGES) == 30 and set(LANGUAGES) == set(ast.literal_eval(table))


def test_every_language_is_accepted_in_any_case():
    for name in LANGUAGES:
        for written in (name, name.lower(), name.upper(), f" {name.swapcase()}\n"):
            assert parse(language=written).language == name, written


CODES = [
    *((code, name) for name, code in LANGUAGES.items()),
    *OTHER_CODES.items(),
    ("zh-CN", "Chinese"),
    ("zh-TW", "Chinese"),
    ("zh_Hans", "Chinese"),
    ("cmn-Hans-CN", "Chinese"),
    ("ZH-Hant-hk", "Cantonese"),
    ("yue-HK", "Cantonese"),
    ("pt-BR", "Portuguese"),
    ("en_US", "English"),
    ("es-419", "Spanish"),
    ("de-DE-1996", "German"),
    ("fil-PH", "Filipino"),
]


def test_a_language_may_be_given_by_its_code():
    for code, name in CODES:
        assert parse(language=code).language == name, code
        assert parse(language=f" {code.upper()} ").language == name, code


SCRIPTS = [
    ("zh-Hans", "Hans"),
    ("zh-CN", None),
    ("zh-SG", None),
    ("cmn_hans_TW", "Hans"),
    ("zh-Hant", "Hant"),
    ("ZH-hant-cn", "Hant"),
    ("zh-TW", "Hant-TW"),
    ("zh-Hant-TW", "Hant-TW"),
    ("zh-HK", "Hant-HK"),
    ("zh-Hant-MO", "Hant-HK"),
    ("yue-HK", "Hant-HK"),
    ("yue-Hans", "Hans"),
    ("zh", None),
    ("Chinese", None),
    ("zh-yue", None),
    ("auto", None),
    (None, None),
    ("en-HK", None),
    ("pt-Latn-BR", None),
]


def test_a_tag_of_chinese_names_the_script_of_the_text():
    for tag, script in SCRIPTS:
        assert parse(language=tag).script == script, tag


def test_a_script_that_chinese_text_cannot_have_is_refused():
    with pytest.raises(InvalidRequest, match="'zh-Latn'; the script .* Hans or Hant, and Latn"):
        parse(language="zh-Latn")


@pytest.mark.parametrize("value", ["auto", "AUTO", " Auto ", None])
def test_auto_and_null_mean_that_the_language_is_detected(value):
    assert parse(language=value).language is None


@pytest.mark.parametrize(
    "value",
    ["e", "zxx", "no", "nb-NO", "en-", "en US", "english-GB", "Klingon", "English, Chinese"],
)
def test_an_unknown_language_is_refused_with_all_that_are_known(value):
    message = refusal({"audio_url": URL, "language": value})
    assert message.startswith(f"language is {value!r}") and all(
        name in message for name in LANGUAGES
    )


# wrong types

NO_STRINGS = [0, 1, -3.5, True, False, ["English"], [], {"name": "English"}, {}]
NO_FLAGS = [0, 1, 0.0, "true", "false", "yes", [True], {}]


@pytest.mark.parametrize("field", ["audio_url", "language", "initial_context"])
@pytest.mark.parametrize("value", NO_STRINGS, ids=repr)
def test_a_string_field_of_another_type_is_refused(field, value):
    shown = {dict: "an object", list: "a list"}.get(type(value), repr(value))
    assert refusal({"audio_url": URL, field: value}).startswith(f"{field} is {shown}")


@pytest.mark.parametrize(
    "field",
    ["use_previous_context", "allow_partial", "timestamps", "punctuation", "confidence"],
)
@pytest.mark.parametrize("value", NO_FLAGS, ids=repr)
def test_a_flag_other_than_true_or_false_is_refused(field, value):
    message = refusal({"audio_url": URL, field: value})
    quotes = ", without quotes" if value in ("true", "false") else ""
    assert message == f"{field} is {shown(value)}; it must be true or false{quotes}."


@pytest.mark.parametrize("value", ["words", "WORD", 1, True, ["word"], {}], ids=repr)
def test_an_unknown_segment_level_is_refused_with_the_three(value):
    assert refusal({"audio_url": URL, "segment_level": value}).endswith(
        "it must be one of: word, sentence, both."
    )


def test_timestamps_are_asked_for_unless_they_are_declined():
    assert parse().timestamps and parse(timestamps=None).timestamps
    assert not parse(timestamps=False, output_format="text", confidence=True).timestamps


@pytest.mark.parametrize(
    "field, value, wanted",
    [
        ("segment_level", "word", "there are no words, so it must be left out."),
        ("punctuation", True, "there are no words, so it must be left out."),
        ("output_format", "srt", "it must be one of: json, text."),
        ("output_format", "verbose_json", "it must be one of: json, text."),
    ],
)
def test_without_timestamps_what_needs_them_is_refused(field, value, wanted):
    message = refusal({"audio_url": URL, "timestamps": False, field: value})
    assert message == f"{field} is {shown(value)}; with timestamps false {wanted}"


@pytest.mark.parametrize("value", [*OUTPUT_FORMATS, None])
def test_each_of_the_five_output_formats_is_accepted(value):
    assert parse(output_format=value).output_format == (value or "json")


@pytest.mark.parametrize(
    "value", ["JSON", "txt", "webvtt", " srt", 1, False, ["srt"], {}], ids=repr
)
def test_an_unknown_output_format_is_refused_with_the_five(value):
    message = refusal({"audio_url": URL, "output_format": value})
    assert message.startswith("output_format is ") and message.endswith(
        "it must be one of: json, text, srt, vtt, verbose_json."
    )


@pytest.mark.parametrize("job_input", [None, URL, 7, True, [], [{"audio_url": URL}]], ids=repr)
def test_an_input_that_is_no_object_is_refused(job_input):
    assert refusal(job_input).startswith("input is ") and "audio_url" in refusal(job_input)


# start, end, channel

NO_SECONDS = [
    -1,
    -0.001,
    1_000_000.1,
    10**400,
    float("inf"),
    float("nan"),
    True,
    False,
    "10",
    "1:30",
    [10],
    {},
]
NO_TRACKS = [-1, 1000, 10**400, 0.0, 1.5, True, False, "0", "first", "Default", [0], {}]
NO_CHANNELS = [-1, 512, 10**400, 0.0, 1.5, True, False, "0", "left", "Mix", [0], {}]


@pytest.mark.parametrize("value", [0, 0.0, 1, 90.5, 1e-6, 36_000, 1_000_000], ids=repr)
def test_a_start_is_a_number_of_seconds(value):
    start = parse(start=value).start
    assert start == value and type(start) is float


@pytest.mark.parametrize(
    "start, end",
    [(None, 1e-6), (0, 1), (None, 90.5), (90, 90.5), (3, 36_000), (999_999, 1_000_000)],
    ids=repr,
)
def test_an_end_is_a_number_of_seconds_beyond_the_start(start, end):
    found = parse(start=start, end=end).end
    assert found == end and type(found) is float


@pytest.mark.parametrize("field", ["start", "end"])
@pytest.mark.parametrize("value", NO_SECONDS, ids=lambda value: repr(value)[:20])
def test_a_start_or_end_that_is_no_number_of_seconds_is_refused(field, value):
    message = refusal({"audio_url": URL, field: value})
    assert message.startswith(f"{field} is ") and message.endswith(
        "; it must be a number of seconds, from 0 to 1000000."
    )


@pytest.mark.parametrize(
    "start, end", [(None, 0), (0, 0.0), (5, 5), (5, 4.999), (90.5, 90), (1_000_000, 1)], ids=repr
)
def test_an_end_that_is_not_beyond_the_start_is_refused_with_both(start, end):
    message = refusal({"audio_url": URL, "start": start, "end": end})
    assert message == f"end is {end:g}; it must be more than start, which is {start or 0:.16g}."


@pytest.mark.parametrize(
    "value, channel",
    [("mix", None), (None, None), ("each", "each"), (0, 0), (1, 1), (5, 5), (511, 511)],
    ids=repr,
)
def test_a_channel_is_a_number_or_the_mix(value, channel):
    assert parse(channel=value).channel == channel


@pytest.mark.parametrize(
    "value, track",
    [
        (None, "default"),
        ("default", "default"),
        ("mix", "mix"),
        ("each", "each"),
        (0, 0),
        (7, 7),
        (999, 999),
    ],
    ids=repr,
)
def test_a_track_is_a_number_the_default_or_the_mix(value, track):
    assert parse(track=value).track == track


@pytest.mark.parametrize("value", NO_TRACKS, ids=lambda value: repr(value)[:20])
def test_an_invalid_track_is_refused(value):
    message = refusal({"audio_url": URL, "track": value})
    assert message.startswith("track is ") and message.endswith(
        "; it must be 'default', 'mix', 'each' or the number of an audio track, from 0 to 999."
    )


def test_a_channel_of_mixed_tracks_is_refused_with_both():
    assert refusal({"audio_url": URL, "track": "mix", "channel": 0}) == (
        "channel is 0 and track is 'mix'; a channel can be chosen of one track only, so track must "
        "be a number or 'default'."
    )
    assert parse(track="mix", channel="mix").track == "mix"
    for channel in (1, "each"):
        assert refusal({"audio_url": URL, "track": "each", "channel": channel}).startswith(
            f"channel is {channel!r} and track is 'each'; a channel can be chosen of one track only"
        )


@pytest.mark.parametrize("value", NO_CHANNELS, ids=lambda value: repr(value)[:20])
def test_an_invalid_channel_is_refused(value):
    message = refusal({"audio_url": URL, "channel": value})
    assert message.startswith("channel is ") and message.endswith(
        "; it must be 'mix', 'each' or the number of a channel, from 0 to 511."
    )


# audio_url


@pytest.mark.parametrize("job_input", [{}, {"audio_url": None}], ids=repr)
def test_a_missing_url_is_reported_as_missing(job_input):
    assert refusal(job_input).startswith("audio_url is missing; it must be ")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "HTTPS://EXAMPLE.COM/A.MP3",
        "https://example.com:8443/a.mp3?X-Amz-Signature=abc&b=c#t=10",
        "https://user:secret@example.com/a.mp3",
        "https://例え.jp/音声.mp3",
        "https://example.com/a b.mp3",
        "http://[2001:db8::1]:8080/a",
        "http://127.0.0.1/a",  # whether it may be fetched is not decided here
        "https://example.com/" + "a" * (MAX_URL_CHARACTERS - 20),
    ],
)
def test_http_and_https_urls_are_kept_as_they_are(url):
    assert parse_request({"audio_url": url}).audio_url == url


def test_white_space_around_a_url_is_dropped():
    assert parse_request({"audio_url": f" \t{URL}\n"}).audio_url == URL


@pytest.mark.parametrize(
    "url",
    [
        *(" ", "\n\t"),
        *(
            "file:///etc/passwd",
            "ftp://example.com/a.mp3",
            "gopher://example.com/",
            "s3://bucket/a.mp3",
        ),
        *("example.com/a.mp3", "/a.mp3", "//example.com/a.mp3", "talk.mp3"),
        *(
            "http:",
            "http://",
            "https:///a.mp3",
            "http://:80/a.mp3",
            "http://user@/a.mp3",
            "http:example.com/a.mp3",
        ),
        *(
            "http://example.com:0/",
            "http://example.com:65536/",
            "http://example.com:-1/",
            "http://example.com:http/",
        ),
        *("http://[::1/a.mp3", "http://[example]/a.mp3", "http://exa\u2100mple.com/"),
        *("https://example.com/\ud800.mp3", "https://\udfff.com/", "\ud83d"),
    ],
    ids=ascii,
)
def test_a_url_that_is_not_http_or_https_is_refused_with_its_value(url):
    message = refusal({"audio_url": url})
    assert message.startswith("audio_url is '") and message.endswith(
        "; it must be the http or https URL of a recording."
    )
    message.encode()


# the file in the request, or on the worker's machine

FILE = bytes(range(256)) * 3


@pytest.mark.parametrize("data", [b"\0", b"ab", b"abc", FILE, FILE[:-1], FILE * 1000], ids=len)
def test_a_file_may_come_in_base64_or_as_a_data_url(data):
    encoded = base64.b64encode(data).decode()
    assert parse_request({"audio_base64": encoded}) == Request(audio_base64=data)
    for head in (
        "data:audio/mpeg;base64,",
        "data:;base64,",
        "DATA:audio/wav;codecs=1;BASE64,",
        " data:audio/ogg;base64,",
    ):
        assert parse_request({"audio_url": head + encoded}) == Request(audio_base64=data)


STANDARD = base64.b64encode(FILE).decode()
IN_LINES = base64.encodebytes(FILE).decode()
FORMS_OF_BASE64 = {  # name: (what is sent, the file)
    "encodebytes": (IN_LINES, FILE),
    "lines of MIME": (IN_LINES.replace("\n", "\r\n"), FILE),
    "letters for URLs": (base64.urlsafe_b64encode(FILE).decode(), FILE),
    "one = missing": (base64.b64encode(FILE[:-1]).decode().rstrip("="), FILE[:-1]),
    "two = missing": (base64.b64encode(FILE[:-2]).decode().rstrip("="), FILE[:-2]),
    "one of two = missing": (base64.b64encode(FILE[:-2]).decode()[:-1], FILE[:-2]),
    "head of a data: URL": (f"data:audio/mpeg;base64,{STANDARD}", FILE),
    "head and lines": (f" data:;base64,\n{IN_LINES}", FILE),
}


def test_base64_is_accepted_in_the_forms_that_common_tools_write():
    for name, (form, file) in FORMS_OF_BASE64.items():
        assert parse_request({"audio_base64": form}).audio_base64 == file, name
        if not form.strip().startswith("data:"):
            url = f"data:audio/wav;base64,{form}"
            assert parse_request({"audio_url": url}).audio_base64 == file, f"{name}, data: URL"


@given(st.binary(min_size=1), st.integers(1, 80), st.booleans(), st.booleans())
def test_base64_in_lines_of_any_length_is_the_file(data, width, for_urls, padded):
    encode = base64.urlsafe_b64encode if for_urls else base64.b64encode
    text = encode(data).decode()
    text = text if padded else text.rstrip("=")
    lines = [text[at : at + width] for at in range(0, len(text), width)]
    assert parse_request({"audio_base64": "\n".join(lines)}).audio_base64 == data


def test_an_empty_string_counts_as_not_given():
    for field in FIELDS:
        assert parse(**{field: ""}) == parse(), field
    assert parse_request({"audio_url": "", "audio_base64": "QUJD"}).audio_base64 == b"ABC"
    assert refusal({"audio_url": "", "audio_base64": ""}).startswith("audio_url is missing")


@pytest.mark.parametrize(
    "encoded",
    [
        "Q",
        "QUJDQ",
        "QUJD=",
        "QUI==",
        "QQ===",
        "QQ==QUJD",
        "QUJD QUJD",
        "data:audio/wav;base64,QUJD QUJD",
        "QÜJD",
        "\ud800",
    ],
    ids=ascii,
)
def test_malformed_base64_is_refused(encoded):
    assert refusal({"audio_base64": encoded}).startswith(
        "audio_base64 holds no valid base64; it must be "
    )
    if not encoded.startswith("data:"):
        assert refusal({"audio_url": f"data:;base64,{encoded}"}).startswith(
            "audio_url holds no valid base64; it must be "
        )


@pytest.mark.parametrize(
    ("job_input", "begins"),
    [
        ({"audio_base64": "\n"}, "audio_base64 is empty"),
        ({"audio_base64": "data:audio/wav;base64,"}, "audio_base64 is empty"),
        ({"audio_base64": "data:audio/wav,RIFF"}, "audio_base64 is a data: URL without base64"),
        ({"audio_url": "data:;base64,"}, "audio_url is empty"),
        ({"audio_url": "data:audio/wav,RIFF"}, "audio_url is a data: URL without base64"),
        ({"audio_url": "data:"}, "audio_url is a data: URL without base64"),
        ({"audio_base64": 7}, "audio_base64 is 7"),
        ({"audio_base64": ["QUJD"]}, "audio_base64 is a list"),
        ({"audio_url": URL, "audio_base64": "QUJD"}, "audio_url and audio_base64 are both given"),
    ],
)
def test_an_unusable_file_in_the_request_is_refused(job_input, begins):
    assert refusal(job_input).startswith(begins)


LOCAL = [
    ("/talks/a.mp3", "/talks/a.mp3"),
    ("file:///talks/a.mp3", "/talks/a.mp3"),
    ("FILE:///talks/a%20b.mp3", "/talks/a b.mp3"),
    ("file://localhost/a.mp3", "/a.mp3"),
    ("/talks/100%.mp3", "/talks/100%.mp3"),
    ("~/a.mp3", str(Path.home() / "a.mp3")),
    ("file://~/a%20b.mp3", str(Path.home() / "a b.mp3")),
    ("a b.mp3", str(Path("a b.mp3").absolute())),
]


@pytest.mark.parametrize(("given", "path"), LOCAL)
def test_a_path_is_accepted_only_where_the_worker_allows_it(given, path):
    assert parse_request({"audio_url": given}, local_files=True).audio_url == f"file://{path}"
    assert "must be the http or https URL" in refusal({"audio_url": given})


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/a.mp3",
        "s3://bucket/a.mp3",
        "http://",
        "",
        "/a\0b",
        "~no_such_user/a.mp3",
        "file://[a",
        "https://example.com:0/",
    ],
    ids=ascii,
)
def test_where_local_files_are_allowed_other_schemes_are_still_refused(url):
    with pytest.raises(InvalidRequest, match="must be the http or https URL"):
        parse_request({"audio_url": url}, local_files=True)
    assert parse_request({"audio_url": URL}, local_files=True).audio_url == URL


# audio_headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer a.b-c"},
        {"cookie": "a=b; c=d", "User-Agent": "curl/8"},
        {"X-Api-Key": ""},
        {"Referer": URL},
        {f"X-{i}": "v" * 8192 for i in range(32)},
    ],
    ids=lambda headers: ascii(headers)[:40],
)
def test_headers_of_the_download_are_kept_as_they_are(headers):
    assert parse(audio_headers=headers).audio_headers == headers


@pytest.mark.parametrize(
    "headers",
    [
        "Authorization: x",
        ["Authorization"],
        7,
        {"Bad Name": "x"},
        {"": "x"},
        {"A:": "x"},
        {"A": 1},
        {"A": None},
        {"A": "x\r\nB: y"},
        {"A": "ü"},
        {"A": "b "},
        {"A": " b"},
        {"A": "\t"},
        {"A": "b\x7f"},
        {"A": "x" * 8193},
        {f"X-{i}": "" for i in range(33)},
        {"A": "1", "a": "2"},
        {"Host": "10.0.0.1"},
        {"content-LENGTH": "0"},
        {"Transfer-Encoding": "chunked"},
        {"Connection": "upgrade"},
        {"Range": "bytes=0-9"},
        {"Accept-Encoding": "br"},
        {"Proxy-Authorization": "x"},
    ],
    ids=lambda headers: ascii(headers)[:40],
)
def test_headers_that_cannot_be_sent_are_refused_without_their_values(headers):
    message = refusal({"audio_url": URL, "audio_headers": headers})
    assert (
        message.startswith("audio_headers ")
        and "must be" in message
        and len(message) < 600
        and "\n" not in message
    )
    assert "x\\r" not in message


def test_headers_are_for_a_download_only():
    assert refusal({"audio_base64": "QUJD", "audio_headers": {"A": "b"}}).startswith(
        "audio_headers are given without"
    )


def test_headers_and_file_are_not_in_the_repr_of_a_request():
    request = parse(audio_headers={"Authorization": "Bearer SECRET"})
    assert "SECRET" not in repr(request) and "QUJD" not in repr(
        parse_request({"audio_base64": "QUJD"})
    )


def test_an_overlong_url_is_refused_without_repeating_it():
    message = refusal({"audio_url": URL + "?" + "x" * MAX_URL_CHARACTERS})
    assert str(MAX_URL_CHARACTERS) in message and "xxx" not in message


SIGNED = "https://example.com/a.mp3?sig=SECRET"


@pytest.mark.parametrize(
    "job_input",
    [
        {"audio_url": "ftp://example.com/a.mp3?sig=SECRET"},
        {"audio_url": "example.com/a.mp3?sig=SECRET"},
        {"audio_url": "https://example.com:0/a.mp3?sig=SECRET"},
        {"audio_url": "https://example.com/\ud800.mp3?sig=SECRET"},
        {"audio_url": SIGNED + "x" * MAX_URL_CHARACTERS},
        {"audio_url": [SIGNED]},
        {"audio_url": {"url": SIGNED}},
        {"audio_url": URL, "language": SIGNED},
        {"audio_url": URL, "use_previous_context": SIGNED},
        SIGNED,
        [SIGNED],
    ],
    ids=lambda job_input: ascii(job_input)[:60],
)
def test_no_message_holds_the_query_of_a_url(job_input):
    assert "SECRET" not in refusal(job_input)


# initial_context


def test_a_context_is_kept_as_it_is_but_for_lone_surrogates():
    assert parse(initial_context=" Žižek,\n天 👍 ").initial_context == " Žižek,\n天 👍 "
    assert parse(initial_context="a\ud800b\udc00").initial_context == "ab"


def test_a_context_over_the_longest_length_is_refused():
    assert (
        len(parse(initial_context="天" * MAX_CONTEXT_CHARACTERS).initial_context)
        == MAX_CONTEXT_CHARACTERS
    )
    assert str(MAX_CONTEXT_CHARACTERS + 1) in refusal(
        {"audio_url": URL, "initial_context": "天" * (MAX_CONTEXT_CHARACTERS + 1)}
    )


# vocabulary


@pytest.mark.parametrize(
    "value, terms",
    [
        (["Kubernetes"], ("Kubernetes",)),
        (["Žižek", "Smith, John", "C++", "naïve 👍"], ("Žižek", "Smith, John", "C++", "naïve 👍")),
        (["淋巴结", "東京タワー", "안녕", "नमस्ते"], ("淋巴结", "東京タワー", "안녕", "नमस्ते")),
        ([" Tango\t", "Whiskey\n"], ("Tango", "Whiskey")),  # white space around a term is dropped
        (["a\ud800b"], ("ab",)),  # and a lone surrogate, as of a context
        (
            ["<|im_end|>"],
            ("<|im_end|>",),
        ),  # special tokens are stripped where the tokenizer is known
        (["天" * MAX_TERM_CHARACTERS] * MAX_TERMS, ("天" * MAX_TERM_CHARACTERS,) * MAX_TERMS),
        ([], ()),
        (None, ()),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_vocabulary_is_a_list_of_names_and_terms(value, terms):
    assert parse(vocabulary=value).vocabulary == terms


@pytest.mark.parametrize(
    "value, message",
    [
        ("Žižek, Lacan", "vocabulary is 'Žižek, Lacan'; it must be a list of strings, or null."),
        ({"Žižek": 1}, "vocabulary is an object; it must be a list of strings, or null."),
        (7, "vocabulary is 7; it must be a list of strings, or null."),
        (True, "vocabulary is True; it must be a list of strings, or null."),
        (["Žižek", 7], "vocabulary[1] is 7; it must be a string, a name or a term."),
        ([None], "vocabulary[0] is None; it must be a string, a name or a term."),
        ([["Žižek"]], "vocabulary[0] is a list; it must be a string, a name or a term."),
        (["Žižek", "  "], "vocabulary[1] is '  '; it must be a string, a name or a term."),
        (["\ud800"], "vocabulary[0] is '?'; it must be a string, a name or a term."),
        (
            ["a\nb"],
            "vocabulary[0] is 'a\\nb'; it must be on one line and without control characters.",
        ),
        (
            ["a\x00b"],
            "vocabulary[0] is 'a\\x00b'; it must be on one line and without control characters.",
        ),
        (
            ["a\u2028b"],
            "vocabulary[0] is 'a\\u2028b'; it must be on one line and without control characters.",
        ),
        (["x" * 101], "vocabulary[0] has 101 characters; at most 100 are allowed."),
        (["x"] * 257, "vocabulary has 257 items; at most 256 are allowed."),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_wrong_vocabulary_is_refused_with_the_item_and_what_it_must_be(value, message):
    assert refusal({"audio_url": URL, "vocabulary": value}) == message


# anything at all

any_text = st.text(st.characters())  # surrogates included, as JSON's \ud800 may bring them
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=8,
)
urls = st.builds(
    "{}://{}/{}".format, st.sampled_from(["http", "https", "HTTP", "ftp"]), any_text, any_text
)
any_input = st.one_of(
    any_json,
    st.fixed_dictionaries(
        {},
        optional={
            "audio_url": any_json | any_text | urls,
            "audio_base64": any_json
            | st.binary().map(lambda data: base64.b64encode(data).decode()),
            "audio_headers": any_json | st.dictionaries(any_text, any_text),
            "language": any_json | st.sampled_from(["auto", *LANGUAGES]),
            "initial_context": any_json,
            "use_previous_context": any_json,
            "allow_partial": any_json,
            "segment_level": any_json | st.sampled_from(SEGMENT_LEVELS),
            "punctuation": any_json,
            "confidence": any_json,
            "output_format": any_json | st.sampled_from(OUTPUT_FORMATS),
            "start": any_json | st.floats(-1, 100, allow_subnormal=False),
            "end": any_json | st.floats(-1, 100, allow_subnormal=False),
            "track": any_json | st.integers(-1, 1001) | st.sampled_from(["default", "mix", "each"]),
            "channel": any_json | st.integers(-1, 600) | st.just("each"),
            "vocabulary": any_json | st.lists(any_text, max_size=4),
            "subtitles": any_json | st.dictionaries(st.sampled_from([*BOUNDS]), any_json),
        },
    ),
)


@given(any_input)
def test_any_json_value_is_a_request_or_a_printable_refusal(job_input):
    try:
        request = parse_request(job_input)
    except InvalidRequest as refused:
        message = str(refused)
        assert len(message) < 1000 and "\n" not in message
        message.encode()
    else:
        assert request.audio_url.lower().startswith(("http://", "https://")) != bool(
            request.audio_base64
        )
        assert request.language in (None, *LANGUAGES)
        assert {
            type(request.use_previous_context),
            type(request.allow_partial),
            type(request.punctuation),
        } == {bool}
        assert request.segment_level in SEGMENT_LEVELS and request.output_format in OUTPUT_FORMATS
        assert 0 <= request.start < (request.end or MAX_SECONDS + 1) and request.channel in (
            None,
            "each",
            *range(MAX_CHANNEL + 1),
        )
        assert request.track in ("default", "mix", "each", *range(MAX_TRACK + 1))
        assert type(request.vocabulary) is tuple and all(
            0 < len(term) <= MAX_TERM_CHARACTERS for term in request.vocabulary
        )
        "".join([request.audio_url, request.initial_context, *request.vocabulary]).encode()


def test_an_input_nested_as_deep_as_json_goes_is_refused_not_an_internal_error():
    nested = json.loads("[" * 900 + "]" * 900)
    assert refusal(nested) == "input is a list; it must be an object with the field audio_url."
    assert refusal({"audio_url": nested}).startswith("audio_url is a list;")
