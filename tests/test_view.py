"""The page of a transcript: what it holds for every result, and how it behaves in a browser."""

import base64
import html
import json
import re
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path

import browser
import numpy as np
import pytest
import view
import view_page
import view_result
import view_texts
from hypothesis import given
from hypothesis import strategies as st
from recording.chunk import SAMPLE_RATE

ROOT = Path(__file__).parent.parent
SECONDS = 20.0


def word(text: str, start: float, **more: object) -> dict:
    return {"start": start, "end": start + 0.4, "text": text} | more


def result(text: str, language: str | None = None, **more: object) -> dict:
    """A result whose words are half a second apart, each with the fields of `more`."""
    segments = []
    for found in re.finditer(r"\w+", text):
        place = {"offset": found.start(), "length": len(found[0])}
        segments.append(word(found[0], len(segments) / 2) | place | more)
    return {"text": text, "language_detected": language, "segments": segments}


def call() -> dict:
    """Two channels: the second interrupts a sentence of the first, which goes on meanwhile."""
    said = result("I think that we «Yes.» should go. Goodbye.", "English")
    for segment, (channel, start) in zip(
        said["segments"],
        [(0, 0.0), (0, 0.5), (0, 1.0), (0, 1.5), (1, 1.8), (0, 2.0), (0, 2.5), (1, 5.0)],
    ):
        segment |= {"channel": channel, "start": start, "end": start + 0.4}
    return said


# every state that the page marks, three scripts, and a text that tries to become markup
RESULT = {
    "language_detected": "English",
    "language_code": "en",
    "text": (
        "Hello there. </script><img src=x onerror=alert(1)> & you. 你好，世界。 مرحبا بالعالم. The "
        "end."
    ),
    "segments": [
        word("Hello", 0.2),
        word("there", 0.8),
        word("script", 3.0, estimated=True),
        word("img", 3.5, estimated=True),
        word("src", 4.0),
        word("x", 4.5),
        word("onerror", 5.0),
        word("alert", 5.5),
        word("1", 6.0),
        word("you", 6.5),
        word("你", 8.0, language="Chinese"),
        word("好", 8.5, language="Chinese"),
        word("世", 9.0, language="Chinese"),
        word("界", 9.5, language="Chinese"),
        word("مرحبا", 11.0, language="Arabic"),
        word("بالعالم", 11.5, language="Arabic"),
        word("The", 17.0),
        word("end", 17.5),
    ],
    "failed_spans": [{"start": 13.0, "end": 16.0, "reason": "timeout"}],
    "retries": [
        {"start": 3.9, "end": 7.5, "reasons": ["loop"], "outcome": "mended"},
        {"start": 10.5, "end": 12.5, "reasons": ["too_much", "language"], "outcome": "kept"},
        {"start": 13.0, "end": 16.0, "reasons": ["timeout"], "outcome": "failed"},
    ],
    "warnings": ["Some times are <estimated>."],
}
STARTS = [s["start"] for s in RESULT["segments"]]
ARABIC = [i for i, s in enumerate(RESULT["segments"]) if s.get("language") == "Arabic"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """A WAV of SECONDS: silence, and from its middle on a tone."""
    path = tmp_path_factory.mktemp("view") / "a talk.wav"
    samples = np.zeros(round(SECONDS * SAMPLE_RATE), np.int16)
    samples[len(samples) // 2 :] = 8000 * np.sin(np.arange(len(samples) // 2) * 0.2)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "builder" / "view.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def shown(page: str) -> str:
    """The text of a page, without its markup, style and scripts."""
    body = re.sub(r"<(style|script)[ >].*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", " ", body))


def subtitles(page: str, suffix: str) -> str:
    """What a download link of the page holds."""
    link = rf'<a download="[^"]*\.{suffix}" href="data:[\w/-]+;base64,([^"]*)">'
    return base64.b64decode(re.search(link, page)[1]).decode()


def sentences(page: str) -> list[str]:
    return [
        html.unescape(re.sub(r"<[^>]*>", "", s))
        for s in re.findall(r'<div class="s"[^>]*>.*?<p[^>]*>(.*?)</p>', page)
    ]


def marked(page: str, kind: str) -> list[str]:
    """Words shown as of this kind."""
    words = re.findall(r'<span class="w([^"]*)">([^<]*)<', page)
    return [html.unescape(text) for classes, text in words if kind in classes.split()]


def test_the_page_lies_beside_the_result_and_holds_the_recording(tmp_path, recording):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    done = run(tmp_path / "result.json", recording)
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "result.html"), (
        done.stderr
    )
    page = (tmp_path / "result.html").read_text()
    assert (
        '<audio id="audio" preload="auto" src="data:audio/wav;base64,UklGR' in page
        and '<svg class="wave"' in page
    )
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def test_a_large_recording_is_linked_by_its_relative_path(tmp_path, recording, monkeypatch, capsys):
    monkeypatch.setattr(view, "MAX_EMBEDDED_BYTES", 1000)
    (tmp_path / "pages").mkdir()
    file = tmp_path / "a talk.wav"
    file.write_bytes(recording.read_bytes())
    view.write(tmp_path / "pages" / "page.html", RESULT, str(file), "talk")
    assert 'src="../a%20talk.wav"' in (tmp_path / "pages" / "page.html").read_text()
    assert "must stay where it is" in capsys.readouterr().err


def test_a_recording_by_url_is_linked_and_no_other_page_may_load_from_a_host(tmp_path, capsys):
    url = "https://example.com/a%20talk.mp3?part=1&key=2"
    view.write(tmp_path / "page.html", RESULT, url, view.name_of(url))
    page = (tmp_path / "page.html").read_text()
    assert 'src="https://example.com/a%20talk.mp3?part=1&amp;key=2"' in page
    assert "media-src data: file: 'self' http: https:;" in page
    assert "<title>a talk.mp3</title>" in page and "needs the network" in capsys.readouterr().err
    assert "http" not in re.search("Content-Security-Policy.*", view_page.render(RESULT, "t"))[0]


def test_a_page_is_named_after_its_recording():
    for recording, name in (
        ("talks/a talk.mp3", "a talk.mp3"),
        ("https://example.com/x/a%20talk.mp3?key=1#t=3", "a talk.mp3"),
        ("https://example.com/", "example.com"),
    ):
        assert view.name_of(recording) == name


def test_the_waveform_follows_the_sound(recording):
    levels, seconds = view.waveform(recording)
    half = len(levels) // 2
    assert seconds == SECONDS and len(levels) == SECONDS / view.LEVEL_SECONDS
    assert max(levels[:half]) == 0 and min(levels[half:]) > 0.9


def test_runpods_envelope_gives_the_same_page():
    wrapped = {
        "id": "x",
        "status": "COMPLETED",
        "delayTime": 1,
        "executionTime": 2,
        "output": RESULT,
    }
    assert view_result.result_in(wrapped) is RESULT and view_result.result_in(RESULT) is RESULT


@pytest.mark.parametrize(
    "answer, said",
    [
        ([], "it must be the object that the worker or RunPod answers"),
        ({"id": "x", "status": "IN_PROGRESS"}, "The job is IN_PROGRESS and has no output"),
        (
            {"error": "It is too long.", "error_code": "audio_too_long"},
            "The job failed, .* too long. .audio_too_long.",
        ),
        (
            {
                "id": "x",
                "status": "FAILED",
                "error": "No.",
                "output": {"error_code": "host_not_found"},
            },
            "No. .host_not_found.",
        ),
        ({"text": "One.", "srt": "1 …"}, 'must be one of "output_format": "json"'),
        ({"text": "One.", "segments": [], "reduced_to": "text"}, "no segments, so no times"),
    ],
)
def test_a_result_without_a_transcript_is_refused_with_one_sentence(answer, said):
    with pytest.raises(view_result.Unviewable, match=said):
        view_result.result_in(answer)


@pytest.mark.parametrize(
    "broken, said",
    [
        ({"segments": [word("Two", 0)]}, r"segments\[0\] is .*Two.* in order"),
        ({"segments": ["One"]}, r"segments\[0\] is 'One'"),
        (
            {"segments": [{"text": "One", "start": None}]},
            r"segments\[0\].start is None; it must be a number of seconds",
        ),
        (
            {"segments": [{"text": "One", "start": 0, "end": float("nan")}]},
            r"segments\[0\].end is nan",
        ),
        (
            {"segments": [word("One", 0, offset=0), word("ne", 1, offset=1)]},
            "'One' and 'ne' overlap in the text",
        ),
        ({"failed_spans": [3]}, r"failed_spans\[0\].start is None"),
        ({"retries": "loop"}, "retries is 'loop'; it must be a list"),
    ],
)
def test_a_malformed_field_is_named(broken, said):
    with pytest.raises(view_result.Unviewable, match=said):
        view_page.render({"text": "One.", "segments": [word("One", 0)]} | broken, "t")


def test_a_file_that_is_no_json_or_no_recording_ends_with_one_line(tmp_path):
    (tmp_path / "good.json").write_text(json.dumps(RESULT))
    (tmp_path / "bad.json").write_text("{oh")
    for arguments, said in (
        (["bad.json"], "bad.json is not JSON"),
        (["none.json"], "No such file"),
        (["good.json", "bad.json"], "bad.json cannot be played: "),
    ):
        done = run(*(tmp_path / name for name in arguments))
        assert done.returncode == 1 and done.stderr.startswith("error: ") and said in done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=5
    )
)
def test_no_text_becomes_markup_or_a_placeholder(texts):
    texts = ["</title><b>", *(text.strip() for text in texts), "</script><b>", "{{times}}", "<!--"]
    words = [word(text, i) for i, text in enumerate(texts)]
    hostile = {
        "text": " ".join(texts),
        "segments": words,
        "language_detected": texts[0],
        "warnings": texts,
    }
    empty = view_page.render({"text": "", "segments": []}, "")
    page = view_page.render(hostile, texts[0])
    assert (
        page.count("<script") == empty.count("<script")
        and "<b>" not in page
        and page.count("<!--") == empty.count("<!--")
    )
    shown = [
        html.unescape(text) for text in re.findall(r'<span class="w">(.*?)</span>', page, re.DOTALL)
    ]
    assert shown == texts


def test_sentences_show_the_language_and_the_state_of_their_words():
    page = view_page.render(RESULT, "t")
    assert (
        "".join(sentences(page)).replace(" ", "") == RESULT["text"].replace(" ", "")
        and len(sentences(page)) == 5
    )
    assert marked(page, "estimated") == ["script", "img"]
    assert marked(page, "mended") == ["src", "x", "onerror", "alert", "1", "you"]
    assert marked(page, "kept") == ["مرحبا", "بالعالم"] and marked(page, "now") == []
    assert re.findall(r'<p lang="(\w+)"', page) == ["en", "en", "zh", "ar", "en"]


def test_failed_spans_and_retries_stand_at_their_times():
    blocks = re.findall(
        r'<div class="(s|note \w+)"[^>]*>.*?data-at="([\d.]+)".*?<p[^>]*>(.*?)</p>',
        view_page.render(RESULT, "t"),
    )
    assert [(kind, float(at)) for kind, at, _ in blocks] == [
        ("s", 0.2),
        ("note mended", 3.9),
        ("s", 3.0),
        ("s", 8.0),
        ("note kept", 10.5),
        ("s", 11.0),
        ("note failed", 13.0),
        ("s", 17.0),
    ]
    assert (
        blocks[6][2] == "to 0:16.0: not transcribed (timeout)"
        and "too_much, language" in blocks[4][2]
    )


def test_the_timeline_shows_spans_as_shares_of_the_recording():
    page = view_page.render(RESULT, "t", view_page.Media(seconds=20.0))
    spans = re.findall(r'<i class="span (\w+)" style="left:([\d.]+)%;width:([\d.]+)%">', page)
    assert {
        ("failed", "65.000", "15.000"),
        ("mended", "19.500", "18.000"),
        ("kept", "52.500", "10.000"),
    } < {*spans}
    assert [float(left) for kind, left, _ in spans if kind == "heard"] == [
        1.0,
        15.0,
        40.0,
        55.0,
        85.0,
    ]


def test_the_legend_names_what_occurs_and_nothing_else():
    legend = re.compile(r'<i class="key (\w+)">')
    assert legend.findall(view_page.render(RESULT, "t")) == [
        "heard",
        "estimated",
        "mended",
        "kept",
        "failed",
    ]
    assert legend.findall(
        view_page.render({"text": "One.", "segments": [word("One", 0)]}, "t")
    ) == ["heard"]


def test_sentences_without_words_and_an_empty_result_are_shown():
    spoken = {"text": "One two. Three.", "segments": [word("One two.", 0), word("Three.", 5)]}
    assert sentences(view_page.render(spoken, "t")) == ["One two.", "Three."]
    assert "nothing heard" in view_page.render(
        {"text": "", "segments": [], "language_detected": None}, "t"
    )


def test_speech_is_what_the_legend_calls_the_green_spans():
    assert '<li><i class="key heard"></i> speech</li>' in view_page.render(RESULT, "t")


def test_a_silent_page_has_no_controls_and_no_hints_for_playing():
    silent = view_page.render(RESULT, "t")
    playing = view_page.render(RESULT, "t", view_page.Media("talk.mp3"))
    assert len(re.findall(r"<(?:button|label)[^>]* hidden>", silent)) == 3
    assert not re.search(r"<(?:button|label)[^>]* hidden>", playing)
    assert "Space plays" in playing and not re.search("[Ss]pace|plays", shown(silent))


def test_no_script_is_slanted():
    assert "italic" not in view_page.render(RESULT, "t")


def test_rows_begin_on_the_side_where_their_language_does():
    for text, language, direction in (
        ("سلام دنیا.", "Persian", "rtl"),
        ("YouTube یک سایت است.", "Persian", "rtl"),
        ("2024 كان عاما.", "Arabic", "rtl"),
        ("«مرحبا»", None, "rtl"),
        ("שלום", None, "rtl"),
        ("The word سلام.", "English", "ltr"),
        ("नमस्ते।", "Hindi", "ltr"),
        ("42.", None, "ltr"),
    ):
        page = view_page.render(result(text, language), "t")
        rows = re.findall(r'<div class="s"( dir="rtl")?>', page)
        assert {*rows} == {' dir="rtl"' if direction == "rtl" else ""}, text


def test_where_all_times_are_estimated_one_line_says_it():
    line = "All times are estimated, not measured."
    hindi = result("नमस्ते दुनिया।", "Hindi", estimated=True)
    page = view_page.render(hindi, "t")
    assert shown(page).count("estimated") == 1 and line in shown(page)
    assert marked(page, "estimated") == []
    said = hindi | {"warnings": ["The times of Hindi are estimated."]}
    page = view_page.render(said, "t")
    assert shown(page).count("estimated") == 1 and line not in shown(page)
    assert line not in shown(view_page.render(result("One. Two.", estimated=False), "t"))
    assert line not in shown(view_page.render(RESULT, "t"))


def test_words_of_low_confidence_are_paler_and_in_the_legend():
    said = result("One two three four.")
    for segment, confidence in zip(said["segments"], [0.49, 0.5, 1.0, None]):
        segment["confidence"] = confidence
    page = view_page.render(said, "t")
    assert marked(page, "doubtful") == ["One"]
    assert "the model is unsure of the word (1)" in shown(page)
    assert "unsure" not in shown(view_page.render(RESULT, "t"))


def test_the_sentences_of_a_call_have_the_label_of_their_channel():
    page = view_page.render(call(), "t")
    labels = re.findall(r'<span class="channel" dir="auto">([^<]*)</span>', page)
    assert sentences(page) == ["I think that we should go.", "«Yes.»", "Goodbye."]
    assert labels == ["channel 0", "channel 1", "channel 1"]
    assert 'class="channel"' not in view_page.render(RESULT, "t")


def word_times(page: str) -> list[list[int]]:
    """[starts, ends] of the words in milliseconds, as the page's script reads them."""
    return json.loads(re.search(r'type="application/json">(.*?)<', page)[1])


def test_the_times_of_the_words_are_in_the_order_of_the_page():
    starts, ends = word_times(view_page.render(call(), "t"))
    assert starts == [0, 500, 1000, 1500, 2000, 2500, 1800, 5000]
    assert ends == [start + 400 for start in starts]


def test_channels_whose_texts_follow_each_other_are_shown_in_order_of_time():
    said = result("One two. Three. Four. Five.")
    for segment, (channel, start) in zip(
        said["segments"], [(0, 0.0), (0, 0.5), (0, 6.0), (1, 3.0), (1, 9.0)]
    ):
        segment |= {"channel": channel, "start": start, "end": start + 0.4}
    said["segments"].sort(key=lambda segment: segment["start"])
    page = view_page.render(said, "t")
    assert sentences(page) == ["One two.", "Four.", "Three.", "Five."]
    assert word_times(page)[0] == [0, 500, 3000, 6000, 9000]


def test_the_subtitles_of_the_page_are_those_of_the_worker():
    page = view_page.render(result("Fish & chips. 你好。", "English"), "a <talk>.mp3")
    assert subtitles(page, "srt").startswith("1\n00:00:00,000 --> 00:00:0")
    assert subtitles(page, "vtt").startswith("WEBVTT\n")
    assert "Fish & chips." in subtitles(page, "srt")
    assert "Fish &amp; chips." in subtitles(page, "vtt")
    assert 'download="a &lt;talk&gt;.srt"' in page
    assert "<a download" not in view_page.render({"text": "", "segments": []}, "t")
    cues = re.findall(r"--> .*\n(.*)", subtitles(view_page.render(call(), "t"), "srt"))
    assert cues == ["I think that we should go.", "«Yes.»", "Goodbye."]


def test_a_chinese_transcript_has_a_chinese_page():
    for language, name in (("Chinese", "中文"), ("Cantonese", "粤语")):
        said = result("你好 世界", language, confidence=0.1, channel=0)
        said["segments"][0]["estimated"] = True
        spans = {key: RESULT[key] for key in ("failed_spans", "retries")}
        page = view_page.render(said | spans, "t", view_page.Media("talk.mp3"))
        assert '<html lang="zh-CN">' in page and f"{name} · " in shown(page)
        english = {*re.findall("[A-Za-z_]+", shown(page))}
        reasons = {"timeout", "loop", "too_much", "language"}
        assert english == {"t", "abc", "SRT", "VTT"} | reasons
    for language in ("English", "Japanese", None):
        page = view_page.render(result("One.", language), "t")
        assert '<html lang="en">' in page and not re.search("[\u4e00-\u9fff]", shown(page))


def test_the_pages_texts_exist_in_both_languages_and_are_all_used():
    english, chinese = view_texts.TEXTS["en"], view_texts.TEXTS["zh-CN"]
    code = view_page.TEMPLATE.read_text() + Path(view_page.__file__).read_text()
    for name, text in english.items():
        places = [{*re.findall(r"\{\w+\}", each)} for each in (text, chinese[name])]
        assert places[0] == places[1], name
        assert re.search(rf'\{{\{{{name}\}}\}}|"{name}"|\[\'{name}\'\]', code), name
    assert english.keys() == chinese.keys()


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_the_pages_script_is_javascript(tmp_path):
    """Where Chromium is missing, this is the only test that reads the script."""
    script = view_page.TEMPLATE.read_text().partition("<script>")[2].partition("</script>")[0]
    (tmp_path / "script.js").write_text(script)
    command = ["node", "--check", tmp_path / "script.js"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_two_hours_of_words_make_a_page_of_a_megabyte_and_a_half():
    """Sentences out of sight are not laid out, so that ten hours scroll too."""
    count = 20_000
    segments = [word("word", i * 0.36) | {"end": i * 0.36 + 0.3} for i in range(count)]
    retries = [
        {"start": i * 60, "end": i * 60 + 50, "reasons": ["loop"], "outcome": "mended"}
        for i in range(120)
    ]
    said = {"text": " ".join(["word"] * count), "segments": segments, "retries": retries}
    page = view_page.render(said, "t")
    assert page.count('<span class="w') == count and len(page) < 1_600_000
    assert "content-visibility: auto" in page


# in a browser


@pytest.fixture(scope="module")
def tab():
    if not browser.CHROMIUM:
        pytest.skip("Chromium is not installed")
    with browser.chromium() as tab:
        yield tab


@pytest.fixture
def page(tab, tmp_path, recording):
    """The tab with the page of RESULT and its recording."""
    view.write(tmp_path / "page.html", RESULT, str(recording), "A talk")
    tab.requests.clear()
    tab.complaints.clear()
    tab.open(tmp_path / "page.html")
    tab.until("audio.readyState >= 2")
    return tab


NOW = "[...words].findIndex(w => w.classList.contains('now'))"
FOCUS = "[...words].indexOf(document.activeElement)"


def test_the_current_word_is_highlighted_and_in_view_and_none_in_a_pause(page, tmp_path):
    page.open(tmp_path / "page.html", height=360)
    page.until("audio.readyState >= 2")
    for i, start in enumerate(STARTS):
        page.value(f"audio.currentTime = {start + 0.2}")
        page.until(f"{NOW} === {i}")
        page.until("words[last].getBoundingClientRect().bottom <= innerHeight")
        page.until(
            "words[last].getBoundingClientRect().top >= "
            "$('timeline').getBoundingClientRect().bottom"
        )
    page.value("audio.currentTime = 14.5")
    page.until(f"{NOW} === -1")


def test_the_highlight_follows_while_it_plays_at_every_frame(page):
    """The browser's timeupdate comes four times a second, and a word may be shorter than that."""
    page.value(
        "window.moves = window.updates = 0, audio.addEventListener('timeupdate', () => "
        "window.updates++), 0"
    )
    page.value(
        "new MutationObserver(() => window.moves++).observe($('head'), { attributes: true })"
    )
    page.click("#play")
    page.until(f"{NOW} === 1 && audio.currentTime >= 0.8")
    assert page.value("moves") > page.value("updates + 2")
    page.click("#play")
    assert page.until("audio.paused")


def test_a_click_on_a_word_or_a_time_plays_from_there(page):
    page.click(".w", 10)
    assert STARTS[10] <= page.until("!audio.paused && audio.currentTime") < STARTS[10] + 5
    page.press(" ")
    page.until("audio.paused")
    page.click(".note.failed .t")
    assert 13.0 <= page.until("!audio.paused && audio.currentTime") < 17.0


def test_the_page_can_be_used_by_keyboard_alone(page):
    for stop in ("search", "copy", "", "", "play", "speed", "follow", "position"):
        page.press("Tab")
        assert page.value("document.activeElement.id") == stop
    page.press("Tab")
    assert page.value(FOCUS) == 0, "the words are one stop"
    page.press("ArrowRight", 2)
    assert page.value(FOCUS) == 2 and page.value("audio.currentTime") == STARTS[2]
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("ArrowLeft")
    assert page.value(FOCUS) == 1
    page.press("ArrowDown", 2)
    assert page.value(FOCUS) == 10, "the third sentence"
    page.press("ArrowUp")
    assert page.value(FOCUS) == 2
    page.press("Enter")
    page.until("!audio.paused")
    page.press(" ")
    page.until("audio.paused")
    page.press(" ")
    page.until("!audio.paused")


def test_left_goes_forward_in_a_text_from_right_to_left(page):
    page.value(f"goTo({ARABIC[0]})")
    assert page.value("getComputedStyle(document.activeElement.closest('p')).direction") == "rtl"
    page.press("ArrowLeft")
    assert page.value(FOCUS) == ARABIC[1]


def test_the_speed_of_playing_can_be_chosen(page):
    page.value("$('speed').focus()")
    page.press("ArrowDown", 2)
    assert page.until("audio.playbackRate") == 1.5 and page.value("last") == -1


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + browser.WAIT_SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def search_for(page: browser.Tab, text: str) -> None:
    page.value("$('search').focus()")
    page.call("Input.insertText", text=text)


SHOWN = "sentences.filter(s => s.offsetParent).map(s => s.querySelector('p').textContent)"
FOUND = "[...CSS.highlights.get('found')].map(String)"


def test_a_search_shows_the_sentences_that_have_the_text(page):
    search_for(page, "THE")
    assert page.value(SHOWN) == ["Hello there.", "The end."]
    assert page.value(FOUND) == ["the", "The"] and page.value("$('count').textContent") == "2 / 5"
    assert page.value("[...notes].every(n => !n.offsetParent)")
    page.press("Enter")
    assert page.value(FOCUS) == 0
    page.press("ArrowRight", 2)
    assert page.value(FOCUS) == 16, "hidden words are skipped"
    page.press("ArrowUp")
    assert page.value(FOCUS) == 0
    page.value("$('search').focus()")
    page.press("Escape")
    assert len(page.value(SHOWN)) == 5 and page.value(FOUND) == []
    assert page.value("$('count').textContent") == ""


def test_a_search_takes_marks_as_they_are_and_crosses_words(page):
    for text, found in (
        ("x onerror=alert(1)>", ["x onerror=alert(1)>"]),
        ("你好，世", ["你好，世"]),
        ("hello   there", ["Hello there"]),
        ("بالعالم", ["بالعالم"]),
        (".*", []),
        ("^-/\\", []),
    ):
        page.value("$('search').value = ''")
        search_for(page, text)
        assert page.value(FOUND) == found, text
        assert len(page.value(SHOWN)) == len(found), text


def test_keys_in_the_search_write_and_do_not_play(page):
    search_for(page, "there")
    page.press(" ")
    page.press("ArrowLeft")
    assert page.value("audio.paused && last") == -1
    assert page.value("$('search').value") == "there "


def test_the_text_is_copied_sentence_by_sentence(page):
    page.value("navigator.clipboard.writeText = async (text) => { window.copied = text; }, 0")
    page.click("#copy")
    assert page.until("window.copied").split("\n") == sentences(view_page.render(RESULT, "t"))
    page.until("$('copy').textContent === 'Copied'")
    page.value("navigator.clipboard.writeText = async () => { throw new Error(); }, 0")
    page.click("#copy")
    assert "does not let" in page.until("$('trouble').textContent")


def test_the_subtitles_are_saved_under_the_name_of_the_recording(page, tmp_path):
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for n, suffix in enumerate(("srt", "vtt")):
        page.click("a[download]", n)
        file = tmp_path / f"A talk.{suffix}"
        wait_until(file.exists)
        assert file.read_text() == subtitles((tmp_path / "page.html").read_text(), suffix)


def test_words_of_two_channels_light_up_in_the_order_of_time(tab, tmp_path):
    view.write(tmp_path / "page.html", call(), None, "A call")
    tab.open(tmp_path / "page.html")
    for seconds, lit in ((1.6, "we"), (1.9, "Yes"), (2.1, "should"), (5.1, "Goodbye")):
        tab.value(f"seek({seconds}, false)")
        assert tab.value("document.querySelector('.now').textContent") == lit
    tab.value("navigator.clipboard.writeText = async (text) => { window.copied = text; }, 0")
    tab.click("#copy")
    assert tab.until("window.copied").startswith("channel 0: I think that we should go.\nchannel 1")


def test_the_slider_moves_the_recording(page):
    page.click("#position")
    assert page.value("audio.currentTime") == pytest.approx(SECONDS / 2, abs=0.1)


def test_nothing_is_fetched_and_no_text_runs_as_script(page):
    page.click("#play")
    page.until("audio.currentTime > 0.1")
    assert [
        url for url in page.requests if not url.startswith(("file:", "data:"))
    ] == [] and page.complaints == []
    assert len([url for url in page.requests if url.startswith("file:")]) == 1, "the page itself"
    page.value(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')"
    )
    assert page.until("document.images.length === 1 && document.images[0].complete") and page.value(
        "window.ran === undefined"
    )


def test_on_a_phone_nothing_overflows_and_targets_are_large_enough(page, tmp_path):
    page.open(tmp_path / "page.html", width=360, height=740, touch=True)
    assert page.value("document.documentElement.scrollWidth") == 360
    for selector, pixels in (("#play, label, #position, #search, #copy, a", 44), (".t", 24)):
        heights = page.value(
            f"[...document.querySelectorAll('{selector}')].map(e => "
            "e.getBoundingClientRect().height)"
        )
        assert min(heights) >= pixels, selector


def test_without_a_recording_the_words_can_still_be_selected(tab, tmp_path):
    view.write(tmp_path / "page.html", RESULT, None, "A talk")
    tab.open(tmp_path / "page.html")
    assert tab.value("audio === null && !$('play').offsetParent && !$('speed').offsetParent")
    tab.click(".w", 3)
    assert tab.value(NOW) == 3
    tab.press("ArrowRight")
    assert tab.value(NOW) == 4


def test_a_recording_that_cannot_be_played_is_reported(tab, tmp_path, recording, monkeypatch):
    monkeypatch.setattr(view, "MAX_EMBEDDED_BYTES", 0)
    file = tmp_path / "gone.wav"
    file.write_bytes(recording.read_bytes())
    view.write(tmp_path / "page.html", RESULT, str(file), "A talk")
    file.unlink()
    tab.open(tmp_path / "page.html")
    assert "cannot play" in tab.until("$('trouble').textContent")
