"""Make one HTML page that plays a recording and highlights each word as it is spoken.

    python builder/view.py result.json [recording] [-o page.html]

The page needs no network and no other file, except that a recording over 32 MiB is linked and not
embedded. It shows which times are estimated, what was recognised again and what is missing. Space
plays and pauses, the arrow keys go from word to word, a click on a word plays from there.
"""

import argparse
import asyncio
import base64
import hashlib
import html
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from contract.errors import WorkerError  # noqa: E402
from contract.languages import LANGUAGES
from result.transcript import Segment, merge
from speech.words import ChunkResult, Word

TEMPLATE = Path(__file__).with_name("view.html")
# Half an hour of MP3 at 128 kbit/s is embedded; base64 makes it a third larger.
MAX_EMBEDDED_BYTES = 32 << 20
# The names that browsers use; some differ in Python's own table. For other suffixes browsers
# inspect the bytes.
TYPES = {
    ".mp3": "audio/mpeg",
    ".m4a": "audio/mp4",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".webm": "audio/webm",
    ".mp4": "video/mp4",
}
LEVEL_SECONDS = 0.05  # the waveform has one peak for this much audio
MAX_COLUMNS = 1200  # the waveform is no finer than the pixels of a wide window

Result = dict[str, Any]  # a JSON object from the worker

# What a mark is called in the legend.
KINDS = {
    "estimated": "time estimated, not measured",
    "mended": "recognised again, better answer",
    "kept": "recognised again, still doubtful",
    "failed": "not transcribed",
}


class Unviewable(Exception):
    """There is nothing to show; the sentence says why and what the input must be."""


@dataclass(frozen=True, slots=True)
class MarkedSpan:
    """A span of the recording that the page marks."""

    start: float  # seconds
    end: float
    kind: str  # one of KINDS
    why: str


def main() -> int:
    a = arguments()
    page = a.output or a.result.with_suffix(".html")
    try:
        write(page, read(a.result), a.recording, (a.recording or a.result).name)
    except (Unviewable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python builder/view.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "result",
        type=Path,
        help="the worker's result, or RunPod's answer around it, as a JSON file",
    )
    parser.add_argument(
        "recording",
        type=Path,
        nargs="?",
        help="the audio or video file; without it the page is silent",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PAGE",
        help="the page (default: the result's name with .html)",
    )
    return parser.parse_args()


def read(path: Path) -> object:
    """What a JSON file holds. Raises Unviewable if it is not JSON, and OSError."""
    try:
        answer: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        sentence = f"{path} is not JSON ({error}); it must hold the worker's result."
        raise Unviewable(sentence) from None
    return answer


def write(page: Path, answer: object, recording: Path | None, title: str) -> None:
    """Write the page of a result, with or without RunPod's envelope.

    Raises Unviewable, and OSError for files.
    """
    result = result_in(answer)
    levels, seconds = waveform(recording) if recording else ([], 0.0)
    media = source(recording, page) if recording else ""
    page.write_text(render(result, title, media, levels, seconds), encoding="utf-8")


def result_in(answer: object) -> Result:
    """The transcript in an answer of the worker or of RunPod.

    Raises Unviewable if there is none.
    """
    if not isinstance(answer, dict):
        raise Unviewable(
            f"The file holds a {type(answer).__name__}; "
            "it must be the object that the worker or RunPod answers."
        )
    output = answer.get("output")
    result: Result = output if isinstance(output, dict) else answer
    if error := result.get("error") or answer.get("error"):
        code = f" ({result['error_code']})" if "error_code" in result else ""
        raise Unviewable(f"The job failed, so there is no transcript to show: {error}{code}")
    if result is answer and "status" in answer and "segments" not in answer:
        raise Unviewable(
            f"The job is {answer['status']} and has no output; "
            "save the answer of /status once it is COMPLETED."
        )
    if not isinstance(result.get("text"), str) or not isinstance(result.get("segments"), list):
        raise Unviewable(
            'The result has no "text" and "segments"; '
            'it must be one of "output_format": "json", the default.'
        )
    if result["text"].strip() and not result["segments"]:
        raise Unviewable(
            "The result has a text but no segments, so no times; "
            "if it was reduced, result_url has the whole."
        )
    return result


def source(recording: Path, page: Path) -> str:
    """The recording's URL in the page: a data: URL, or a relative path if it is too large."""
    if recording.stat().st_size > MAX_EMBEDDED_BYTES:
        size = f"over {MAX_EMBEDDED_BYTES >> 20} MiB"
        note = f"{recording} is {size}: the page links it and must stay where it is."
        print(note, file=sys.stderr)
        return quote(os.path.relpath(recording.resolve(), page.resolve().parent))
    kind = TYPES.get(recording.suffix.lower(), "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(recording.read_bytes()).decode()}"


def waveform(recording: Path) -> tuple[list[float], float]:
    """(levels from 0 to 1, the recording's seconds); ([], 0) if the decoder is not installed.

    There are no more than MAX_COLUMNS levels. Raises Unviewable if the file cannot be decoded.
    """
    try:
        return asyncio.run(_levels(recording))
    except ImportError as error:
        reason = f"{error.name} is not installed here; .venv/bin/python has it."
        print(f"The page has no waveform, because {reason}", file=sys.stderr)
        return [], 0.0
    except WorkerError as error:
        raise Unviewable(f"{recording} cannot be played: {error}") from None


async def _levels(recording: Path) -> tuple[list[float], float]:
    """Decoded as a stream by the worker's decoder, so memory does not grow with the recording."""
    import av  # noqa: F401  only the child process needs it; an ImportError must come from here
    import numpy as np
    from recording.chunk import SAMPLE_RATE
    from recording.pcm_stream import decode

    size = round(LEVEL_SECONDS * SAMPLE_RATE)
    peaks: list[np.ndarray] = []
    rest = np.zeros(0, np.int16)
    async with decode(recording, max_seconds=math.inf) as pcm:
        async for block in pcm:
            samples = np.concatenate([rest, block])
            whole = len(samples) // size * size
            peaks.append(np.abs(samples[:whole].reshape(-1, size).astype(np.int32)).max(axis=1))
            rest = samples[whole:]
    found = np.concatenate(peaks) if peaks else np.zeros(0)
    if not len(found):
        return [], pcm.duration
    columns = np.array_split(found, min(MAX_COLUMNS, len(found)))
    means = [float(column.mean()) for column in columns]
    loudest = max(means) or 1
    return [mean / loudest for mean in means], pcm.duration


def render(
    result: Result, title: str, media: str = "", levels: Sequence[float] = (), seconds: float = 0.0
) -> str:
    """The page, in HTML.

    `media`: the recording's URL; `levels`: its waveform from 0 to 1; `seconds`: its length.
    """
    words = _words(result)
    text = result["text"]
    marked = list(_marked_spans(result))
    duration = max([seconds, *(w.end for w in words), *(s.end for s in marked)], default=0.0) or 1.0
    whole = merge([ChunkResult(0.0, duration, duration, text, words=tuple(words))], duration)
    sentences = whole.sentences()
    template = TEMPLATE.read_text(encoding="utf-8")
    parts = {
        "title": html.escape(title),
        "script_hash": _script_hash(template),
        "facts": html.escape(" · ".join(_facts(result, duration))),
        "warnings": _warnings(result),
        "legend": _legend(words, marked),
        "audio": _audio(media),
        "silent": "" if media else "hidden",
        "duration": f"{duration:.3f}",
        "clock": clock(duration),
        "wave": _wave(levels),
        "lane": _lane(sentences, marked, duration),
        "transcript": _transcript(text, words, sentences, marked, _languages(result)),
        "times": _times(words),
    }
    # One pass over the template, so that placeholders in a transcript are not replaced.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _script_hash(template: str) -> str:
    """SHA-256 of the template's only script, which is the only one that the page may run."""
    _, _, behind = template.partition("<script>")
    script, _, _ = behind.partition("</script>")
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _warnings(result: Result) -> str:
    sentences = [html.escape(str(warning)) for warning in _list(result, "warnings")]
    return "".join(f'<p class="warning" dir="auto">{sentence}</p>' for sentence in sentences)


def _audio(media: str) -> str:
    if not media:
        return ""
    return f'<audio id="audio" preload="auto" src="{html.escape(media)}"></audio>'


def _languages(result: Result) -> list[str | None]:
    """The ISO code of each segment's language, where it is known."""
    main = result.get("language_detected")
    names = [str(segment.get("language") or main) for segment in result["segments"]]
    return [LANGUAGES.get(name) for name in names]


def _times(words: Sequence[Word]) -> str:
    """The starts and the ends of the words in milliseconds, as JSON."""
    starts = [round(1000 * word.start) for word in words]
    ends = [round(1000 * word.end) for word in words]
    return json.dumps([starts, ends])


def _words(result: Result) -> list[Word]:
    """The segments with their offsets in the text. Raises Unviewable."""
    words: list[Word] = []
    at = 0
    for i, segment in enumerate(result["segments"]):
        text = segment.get("text") if isinstance(segment, dict) else None
        offset = result["text"].find(text, at) if isinstance(text, str) and text else -1
        if offset < 0:
            fault = f"segments[{i}] is {segment!r:.80}"
            raise Unviewable(f'{fault}; its "text" must stand in the transcript, in order.')
        start, end = (_seconds(segment, key, f"segments[{i}]") for key in ("start", "end"))
        at = offset + len(text)
        words.append(Word(text, start, end, offset, segment.get("estimated") is True))
    return words


def _seconds(holder: object, key: str, name: str) -> float:
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise Unviewable(
            f"{name}.{key} is {value!r:.80}; "
            "it must be a number of seconds from the start of the recording."
        )
    return float(value)


def _list(result: Result, key: str) -> list[Any]:
    value = result.get(key) or []
    if not isinstance(value, list):
        raise Unviewable(f"{key} is {value!r:.80}; it must be a list.")
    return value


def _marked_spans(result: Result) -> Iterator[MarkedSpan]:
    """What was recognised again and what is missing.

    Failed retries are among the failed spans, so they are left out.
    """
    for i, span in enumerate(_list(result, "failed_spans")):
        start, end = (_seconds(span, key, f"failed_spans[{i}]") for key in ("start", "end"))
        yield MarkedSpan(start, end, "failed", str(span.get("reason") or "no reason given"))
    for i, retry in enumerate(_list(result, "retries")):
        start, end = (_seconds(retry, key, f"retries[{i}]") for key in ("start", "end"))
        if retry.get("outcome") in ("mended", "kept"):
            reasons = ", ".join(map(str, _list(retry, "reasons")))
            yield MarkedSpan(start, end, retry["outcome"], reasons)


def _facts(result: Result, duration: float) -> Iterator[str]:
    yield str(result.get("language_detected") or "nothing heard")
    yield clock(duration)
    yield f"{len(result['segments'])} segments"


def _legend(words: Sequence[Word], marked: Sequence[MarkedSpan]) -> str:
    """The kinds of marks in this transcript, each with its style and number."""
    count = Counter(span.kind for span in marked)
    count["estimated"] = sum(word.estimated for word in words)
    entries = ['<li><i class="key heard"></i> words</li>']
    for kind, name in KINDS.items():
        if count[kind]:
            entries.append(f'<li><i class="key {kind}">abc</i> {name} ({count[kind]})</li>')
    return "".join(entries)


def _wave(levels: Sequence[float]) -> str:
    """The waveform as an SVG that scales to its container."""
    if not levels:
        return ""
    upper = [f"{x} {50 - 48 * level:.1f}" for x, level in enumerate(levels)]
    lower = [f"{x} {50 + 48 * level:.1f}" for x, level in reversed([*enumerate(levels)])]
    path = f'<path d="M{"L".join(upper + lower)}z"/>'
    box = f'viewBox="0 0 {max(len(levels) - 1, 1)} 100" preserveAspectRatio="none"'
    return f'<svg class="wave" {box}>{path}</svg>'


def _lane(sentences: Sequence[Segment], marked: Sequence[MarkedSpan], duration: float) -> str:
    """The timeline: spans with words, recognised again, or missing. The rest is silence."""
    spans = [(start, end, "heard") for start, end in _joined(sentences, duration / MAX_COLUMNS)]
    spans += [(s.start, s.end, s.kind) for s in marked]
    marks: list[str] = []
    for start, end, kind in spans:
        left, width = 100 * start / duration, 100 * (end - start) / duration
        style = f"left:{left:.3f}%;width:{width:.3f}%"
        marks.append(f'<i class="span {kind}" style="{style}"></i>')
    return "".join(marks)


def _joined(spans: Sequence[Segment], gap: float) -> list[tuple[float, float]]:
    """(start, end) of runs of spans that are at most `gap` seconds apart."""
    runs: list[tuple[float, float]] = []
    for span in spans:
        if runs and span.start - runs[-1][1] <= gap:
            runs[-1] = (runs[-1][0], span.end)
        else:
            runs.append((span.start, span.end))
    return runs


def _transcript(
    text: str,
    words: Sequence[Word],
    sentences: Sequence[Segment],
    marked: Sequence[MarkedSpan],
    languages: Sequence[str | None],
) -> str:
    """Sentences in order of time, each note before the first sentence that it overlaps.

    `languages`: the code of each word's language.
    """
    blocks: list[tuple[float, int, str]] = []  # (start, 0 for a note or 1 for a sentence, HTML)
    noted: set[MarkedSpan] = set()
    i = 0
    for sentence in sentences:
        here = [s for s in marked if s.start < sentence.end and sentence.start < s.end]
        for span in here:
            if span not in noted:
                noted.add(span)
                blocks.append((sentence.start, 0, _note(span)))
        first, end = i, sentence.offset + len(sentence.text)
        while i < len(words) and words[i].offset < end:
            i += 1
        body = _sentence(text, sentence, words[first:i], here)
        lang = f' lang="{languages[first]}"' if languages[first] else ""
        said = f'<p dir="auto"{lang}>{body}</p>'
        blocks.append((sentence.start, 1, f'<div class="s">{_time(sentence.start)}{said}</div>'))
    blocks += [(s.start, 0, _note(s)) for s in marked if s not in noted]
    return "\n".join(block for _, _, block in sorted(blocks, key=lambda block: block[:2]))


def _sentence(
    text: str, sentence: Segment, words: Sequence[Word], spans: Sequence[MarkedSpan]
) -> str:
    """The words of a sentence with the text between them."""
    parts: list[str] = []
    at = sentence.offset
    for word in words:
        parts += [html.escape(text[at : word.offset]), _word(word, spans)]
        at = word.offset + len(word.text)
    parts.append(html.escape(text[at : sentence.offset + len(sentence.text)]))
    return "".join(parts)


def _word(word: Word, spans: Sequence[MarkedSpan]) -> str:
    middle = (word.start + word.end) / 2
    kinds = [s.kind for s in spans if s.kind != "failed" and s.start <= middle < s.end]
    classes = " ".join(["w", *kinds, *(["estimated"] if word.estimated else [])])
    return f'<span class="{classes}">{html.escape(word.text)}</span>'


def _note(span: MarkedSpan) -> str:
    what = f"to {clock(span.end)}: {KINDS[span.kind]} ({span.why})"
    return f'<div class="note {span.kind}">{_time(span.start)}<p>{html.escape(what)}</p></div>'


def _time(seconds: float) -> str:
    button = f'<span class="t" role="button" tabindex="-1" data-at="{seconds:.3f}">'
    return f"{button}{clock(seconds)}</span>"


def clock(seconds: float) -> str:
    """1:02:03.4, without hours where there are none."""
    # Without 1e-6 8.3 would become 8.2, because its binary value is a little smaller.
    tenths = int(seconds * 10 + 1e-6)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


if __name__ == "__main__":
    sys.exit(main())
