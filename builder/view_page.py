"""What the page shows → HTML. Nothing of a transcript becomes markup or script."""

import base64
import hashlib
import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from result.subtitles import to_srt, to_vtt
from view_result import (
    MarkedSpan,
    Result,
    Sentence,
    SpokenWord,
    entries,
    marked_spans,
    voices,
    words_in,
)
from view_texts import LANGUAGE_NAMES, TEXTS, interface_language

TEMPLATE = Path(__file__).with_name("view.html")
MAX_COLUMNS = 1200  # the waveform is no finer than the pixels of a wide window
MIN_CONFIDENCE = 0.5  # words below it are shown paler
MARKS = ("doubtful", "estimated", "mended", "kept", "failed")  # in the order of the legend
RIGHT_TO_LEFT = ("ar", "fa")  # ISO codes
# The worker says so of a language without an aligner. The page then does not say it again.
TIMES_WARNING = re.compile(r"(the )?times of .* are estimated", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Media:
    """The recording of a page."""

    url: str = ""  # empty on a page without a recording
    levels: Sequence[float] = ()  # its waveform, from 0 to 1
    seconds: float = 0.0

    @property
    def is_remote(self) -> bool:
        return self.url.startswith(("http://", "https://"))


def render(result: Result, title: str, media: Media = Media()) -> str:
    """The page, in HTML. Raises Unviewable."""
    return Page(result, title, media).html()


class Page:
    """One page: the result's words and marks, and the texts of the page's own language."""

    def __init__(self, result: Result, title: str, media: Media):
        self._result, self._title, self._media = result, title, media
        self._language = interface_language(result.get("language_detected"))
        self._texts = TEXTS[self._language]
        words = words_in(result)
        self._marked = list(marked_spans(result))
        ends = [item.end for item in (*words, *self._marked)]
        self._duration = max([media.seconds, *ends]) if ends else media.seconds
        self._duration = self._duration or 1.0  # an empty timeline needs a length too
        self._voices = voices(result["text"], words, self._duration)
        spoken = (sentence for voice in self._voices for sentence in voice.sentences())
        self._sentences = sorted(spoken, key=lambda sentence: sentence.start)
        self._words = [word for sentence in self._sentences for word in sentence.words]
        self._all_estimated = bool(words) and all(word.estimated for word in words)

    def html(self) -> str:
        """The template with its places filled."""
        template = TEMPLATE.read_text(encoding="utf-8")
        texts = {name: html.escape(text) for name, text in self._texts.items()}
        parts = texts | {
            "language": self._language,
            "media_hosts": "http: https:" if self._media.is_remote else "",
            "script_hash": _script_hash(template),
            "title": html.escape(self._title),
            "facts": html.escape(" · ".join(self._facts())),
            "warnings": "".join(self._warnings()),
            "legend": "".join(self._legend()),
            "audio": self._audio(),
            "silent": "" if self._media.url else "hidden",
            "keys": texts["keys_playing" if self._media.url else "keys_silent"],
            "duration": f"{self._duration:.3f}",
            "clock": clock(self._duration),
            "wave": _wave(self._media.levels),
            "lane": self._lane(),
            "downloads": self._downloads(),
            "transcript": self._transcript(),
            "times": self._times(),
        }
        # One pass over the template, so that placeholders in a transcript are not replaced.
        return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)

    def _facts(self) -> Iterator[str]:
        language = self._result.get("language_detected")
        name = str(language or self._texts["nothing_heard"])
        yield LANGUAGE_NAMES.get(name, name) if self._language != "en" else name
        yield clock(self._duration)
        yield self._texts["segments"].format(count=len(self._words))

    def _warnings(self) -> Iterator[str]:
        warnings = [str(warning) for warning in entries(self._result, "warnings")]
        if self._all_estimated and not any(map(TIMES_WARNING.match, warnings)):
            warnings.append(self._texts["all_estimated"])
        for warning in warnings:
            yield f'<p class="warning" dir="auto">{html.escape(warning)}</p>'

    def _legend(self) -> Iterator[str]:
        """The marks in this transcript, each with its style and number."""
        count = Counter(span.kind for span in self._marked)
        for word in self._words:
            count.update(self._own_marks(word))
        yield f'<li><i class="key heard"></i> {self._texts["heard"]}</li>'
        for mark in MARKS:
            if count[mark]:
                name = f"{self._texts[mark]} ({count[mark]})"
                yield f'<li><i class="key {mark}">abc</i> {name}</li>'

    def _own_marks(self, word: SpokenWord) -> Iterator[str]:
        """The marks of one word. Where all times are estimated, no word is marked for that."""
        if word.confidence is not None and word.confidence < MIN_CONFIDENCE:
            yield "doubtful"
        if word.estimated and not self._all_estimated:
            yield "estimated"

    def _audio(self) -> str:
        if not self._media.url:
            return ""
        return f'<audio id="audio" preload="auto" src="{html.escape(self._media.url)}"></audio>'

    def _lane(self) -> str:
        """The timeline: spans with words, recognised again, or missing. The rest is silence."""
        heard = _joined(self._sentences, self._duration / MAX_COLUMNS)
        spans = [(start, end, "heard") for start, end in heard]
        spans += [(span.start, span.end, span.kind) for span in self._marked]
        marks: list[str] = []
        for start, end, kind in spans:
            left, width = 100 * start / self._duration, 100 * (end - start) / self._duration
            style = f"left:{left:.3f}%;width:{width:.3f}%"
            marks.append(f'<i class="span {kind}" style="{style}"></i>')
        return "".join(marks)

    def _downloads(self) -> str:
        """Links to the subtitles, which are in the page. Those of all channels by their starts."""
        cues = [cue for voice in self._voices for cue in voice.cues()]
        cues.sort(key=lambda cue: cue.start)
        if not cues:
            return ""
        name = html.escape(Path(self._title).stem)
        links = [f"<span>{self._texts['subtitles']}</span>"]
        for suffix, kind, content in (
            ("srt", "application/x-subrip", to_srt(cues)),
            ("vtt", "text/vtt", to_vtt(cues)),
        ):
            data = base64.b64encode(content.encode()).decode()
            url = f"data:{kind};base64,{data}"
            links.append(f'<a download="{name}.{suffix}" href="{url}">{suffix.upper()}</a>')
        return " ".join(links)

    def _transcript(self) -> str:
        """Sentences in order of time, each note before the first sentence that it overlaps."""
        blocks: list[tuple[float, int, str]] = []  # (start, 0 for a note or 1 for a sentence, HTML)
        noted: set[MarkedSpan] = set()
        for sentence in self._sentences:
            here = [s for s in self._marked if s.start < sentence.end and sentence.start < s.end]
            for span in here:
                if span not in noted:
                    noted.add(span)
                    blocks.append((sentence.start, 0, self._note(span)))
            blocks.append((sentence.start, 1, self._sentence(sentence, here)))
        blocks += [(s.start, 0, self._note(s)) for s in self._marked if s not in noted]
        return "\n".join(block for _, _, block in sorted(blocks, key=lambda block: block[:2]))

    def _note(self, span: MarkedSpan) -> str:
        why = span.why or self._texts["no_reason"]
        what = self._texts[span.kind]
        note = self._texts["note"].format(end=clock(span.end), what=what, why=why)
        return f'<div class="note {span.kind}">{_time(span.start)}<p>{html.escape(note)}</p></div>'

    def _sentence(self, sentence: Sentence, spans: Sequence[MarkedSpan]) -> str:
        """A row: the time, the channel, and the words with the text between them."""
        parts: list[str] = []
        for text, word in sentence.pieces:
            parts.append(self._word(word, spans) if word else html.escape(text))
        language = sentence.words[0].language
        lang = f' lang="{language}"' if language else ""
        direction = ' dir="rtl"' if _is_right_to_left(sentence.text, language) else ""
        label = self._channel_label(sentence.words[0].channel)
        said = f"<p{lang}>{''.join(parts)}</p>"
        return f'<div class="s"{direction}>{_time(sentence.start)}{label}{said}</div>'

    def _channel_label(self, channel: int | None) -> str:
        if channel is None:
            return ""
        label = self._texts["channel"].format(number=channel)
        return f'<span class="channel" dir="auto">{label}</span>'

    def _word(self, word: SpokenWord, spans: Sequence[MarkedSpan]) -> str:
        middle = (word.start + word.end) / 2
        kinds = [s.kind for s in spans if s.kind != "failed" and s.start <= middle < s.end]
        classes = " ".join(["w", *kinds, *self._own_marks(word)])
        return f'<span class="{classes}">{html.escape(word.text)}</span>'

    def _times(self) -> str:
        """The starts and the ends of the words in milliseconds, as JSON."""
        starts = [round(1000 * word.start) for word in self._words]
        ends = [round(1000 * word.end) for word in self._words]
        return json.dumps([starts, ends])


def _script_hash(template: str) -> str:
    """SHA-256 of the template's only script, which is the only one that the page may run."""
    _, _, behind = template.partition("<script>")
    script, _, _ = behind.partition("</script>")
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _wave(levels: Sequence[float]) -> str:
    """The waveform as an SVG that scales to its container."""
    if not levels:
        return ""
    upper = [f"{x} {50 - 48 * level:.1f}" for x, level in enumerate(levels)]
    lower = [f"{x} {50 + 48 * level:.1f}" for x, level in reversed([*enumerate(levels)])]
    path = f'<path d="M{"L".join(upper + lower)}z"/>'
    box = f'viewBox="0 0 {max(len(levels) - 1, 1)} 100" preserveAspectRatio="none"'
    return f'<svg class="wave" {box}>{path}</svg>'


def _joined(spans: Iterable[Sentence], gap: float) -> list[tuple[float, float]]:
    """(start, end) of runs of spans that are at most `gap` seconds apart. `spans`: by start."""
    runs: list[tuple[float, float]] = []
    for span in spans:
        if runs and span.start - runs[-1][1] <= gap:
            runs[-1] = (runs[-1][0], max(runs[-1][1], span.end))
        else:
            runs.append((span.start, span.end))
    return runs


def _is_right_to_left(text: str, language: str | None) -> bool:
    """Whether a sentence is in a language that is written so, or begins with a letter of one.

    The language goes first, because an Arabic sentence may begin with a Latin name.
    """
    if language in RIGHT_TO_LEFT:
        return True
    for character in text:
        bidirectional_class = unicodedata.bidirectional(character)
        if bidirectional_class in ("L", "R", "AL"):
            return bidirectional_class != "L"
    return False


def _time(seconds: float) -> str:
    button = f'<span class="t" role="button" tabindex="-1" data-at="{seconds:.3f}">'
    return f"{button}{clock(seconds)}</span>"


def clock(seconds: float) -> str:
    """1:02:03.4, without hours where there are none."""
    # Without 1e-6 8.3 would become 8.2, because its binary value is a little smaller.
    tenths = int(seconds * 10 + 1e-6)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
