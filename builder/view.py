"""Make one HTML page that plays a recording and highlights each word of its transcript as it is spoken.

    python builder/view.py result.json [recording] [-o page.html]

The page needs no network and no other file; a recording over 32 MiB is not put into the page but linked beside it. It shows
which times are estimated, what was asked again and what is missing. Space plays and pauses, the arrows go from word to word,
a click on a word plays from there.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from errors import WorkerError  # noqa: E402
from request import LANGUAGES  # noqa: E402
from transcript import ChunkResult, Segment, Word, merge  # noqa: E402

TEMPLATE = Path(__file__).with_name("view.html")
EMBEDDED_BYTES = 32 << 20  # of a recording: half an hour of MP3 at 128 kbit/s; as base64 it takes a third more
TYPES = {  # as browsers call them; Python's own table names some otherwise. Of another kind a browser looks at the bytes
    ".mp3": "audio/mpeg", ".m4a": "audio/mp4", ".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg",
    ".opus": "audio/ogg", ".webm": "audio/webm", ".mp4": "video/mp4",
}  # fmt: skip
LEVEL_SECONDS = 0.05  # of sound for one value of the waveform
COLUMNS = 1200  # of the waveform, at most: about the pixels of a wide window

KINDS = {  # of what is shown differently → how the legend calls it
    "estimated": "time estimated, not measured",
    "mended": "asked again and mended",
    "kept": "asked again, still doubtful",
    "failed": "not transcribed",
}


class Unviewable(Exception):
    """Why there is nothing to show, in one sentence that says what would be right."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the recording that the page marks: a kind of KINDS, and why."""

    start: float  # seconds
    end: float
    kind: str
    why: str


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python builder/view.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, help="the worker's result, or RunPod's answer around it, as a JSON file")
    parser.add_argument("recording", type=Path, nargs="?", help="the audio or video file; without it the page is silent")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE", help="the page (default: the result's name with .html)")
    a = parser.parse_args()
    page = a.output or a.result.with_suffix(".html")
    try:
        write(page, read(a.result), a.recording, (a.recording or a.result).name)
    except (Unviewable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page)
    return 0


def read(path: Path) -> dict:
    """The result in a JSON file. Raises Unviewable where it is no JSON, and OSError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Unviewable(f"{path} is not JSON ({error}); it must hold the worker's result.") from None


def write(page: Path, answer: object, recording: Path | None, title: str) -> None:
    """Write the page of a result, with or without RunPod's envelope. Raises Unviewable, and OSError where a file fails."""
    result = result_in(answer)
    levels, seconds = waveform(recording) if recording else ([], 0.0)
    media = source(recording, page) if recording else ""
    page.write_text(render(result, title, media, levels, seconds), encoding="utf-8")


def result_in(answer: object) -> dict:
    """The transcript in what the worker or RunPod answered. Raises Unviewable where there is none."""
    if not isinstance(answer, dict):
        raise Unviewable(f"The file holds a {type(answer).__name__}; it must be the object that the worker or RunPod answers.")
    output = answer.get("output")
    result = output if isinstance(output, dict) else answer
    if error := result.get("error") or answer.get("error"):
        code = f" ({result['error_code']})" if "error_code" in result else ""
        raise Unviewable(f"The job failed, so there is no transcript to show: {error}{code}")
    if result is answer and "status" in answer and "segments" not in answer:
        raise Unviewable(f"The job is {answer['status']} and has no output; save the answer of /status once it is COMPLETED.")
    if not isinstance(result.get("text"), str) or not isinstance(result.get("segments"), list):
        raise Unviewable('The result has no "text" and "segments"; it must be one of "output_format": "json", the default.')
    if result["text"].strip() and not result["segments"]:
        raise Unviewable("The result has a text but no segments, so no times; if it was reduced, result_url has the whole.")
    return result


def source(recording: Path, page: Path) -> str:
    """The recording's address in the page: a data: URL, or its relative path where it is over EMBEDDED_BYTES."""
    if recording.stat().st_size > EMBEDDED_BYTES:
        print(f"{recording} is over {EMBEDDED_BYTES >> 20} MiB: the page links it and must stay where it is.", file=sys.stderr)
        return quote(os.path.relpath(recording.resolve(), page.resolve().parent))
    kind = TYPES.get(recording.suffix.lower(), "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(recording.read_bytes()).decode()}"


def waveform(recording: Path) -> tuple[list[float], float]:
    """At most COLUMNS levels from 0 to 1, and the seconds of the recording; ([], 0) in an environment without the decoder.

    Raises Unviewable where the file is no recording.
    """
    try:
        return asyncio.run(_levels(recording))
    except ImportError as error:
        print(f"The page has no waveform, for {error.name} is not installed here; .venv/bin/python has it.", file=sys.stderr)
        return [], 0.0
    except WorkerError as error:
        raise Unviewable(f"{recording} cannot be played: {error}") from None


async def _levels(recording: Path) -> tuple[list[float], float]:
    """Decoded as a stream in a child process, as the worker does it: memory does not follow the recording's length."""
    import av  # noqa: F401  the decoder's, in the child process
    import numpy as np

    from audio import SAMPLE_RATE, decode

    size = round(LEVEL_SECONDS * SAMPLE_RATE)
    peaks, rest = [], np.zeros(0, np.int16)
    async with decode(recording, max_seconds=math.inf) as pcm:
        async for block in pcm:
            samples = np.concatenate([rest, block])
            whole = len(samples) // size * size
            peaks.append(np.abs(samples[:whole].reshape(-1, size).astype(np.int32)).max(axis=1))
            rest = samples[whole:]
    found = np.concatenate(peaks) if peaks else np.zeros(0)
    columns = [part.mean() for part in np.array_split(found, min(COLUMNS, len(found)))] if len(found) else []
    loudest = max(columns, default=0) or 1
    return [float(column / loudest) for column in columns], pcm.duration


def render(result: dict, title: str, media: str = "", levels: Sequence[float] = (), seconds: float = 0.0) -> str:
    """The page. `media` is the recording's address, `levels` its waveform from 0 to 1, `seconds` its length."""
    words = _words(result)
    languages = [LANGUAGES.get(str(s.get("language") or result.get("language_detected"))) for s in result["segments"]]
    text = result["text"]
    marked = list(_stretches(result))
    duration = max([seconds, *(w.end for w in words), *(s.end for s in marked)], default=0.0) or 1.0
    whole = merge([ChunkResult(0.0, duration, duration, text, words=tuple(words))], duration)
    sentences = whole.sentences()
    template = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)[1]
    parts = {
        "title": html.escape(title),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "facts": html.escape(" · ".join(_facts(result, duration))),
        "warnings": "".join(f'<p class="warning" dir="auto">{html.escape(str(w))}</p>' for w in _list(result, "warnings")),
        "legend": _legend(words, marked),
        "audio": f'<audio id="audio" preload="auto" src="{html.escape(media)}"></audio>' if media else "",
        "silent": "" if media else "hidden",
        "duration": f"{duration:.3f}",
        "clock": clock(duration),
        "wave": _wave(levels),
        "lane": _lane(sentences, marked, duration),
        "transcript": _transcript(text, words, sentences, marked, languages),
        "times": json.dumps([[round(1000 * w.start) for w in words], [round(1000 * w.end) for w in words]]),
    }
    # in one pass: what stands in a transcript is never taken for a place to fill in
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _words(result: dict) -> list[Word]:
    """The segments with their places in the text. Raises Unviewable."""
    words, at = [], 0
    for i, segment in enumerate(result["segments"]):
        text = segment.get("text") if isinstance(segment, dict) else None
        offset = result["text"].find(text, at) if isinstance(text, str) and text else -1
        if offset < 0:
            raise Unviewable(f'segments[{i}] is {segment!r:.80}; its "text" must stand in the transcript, in order.')
        start, end = (_seconds(segment, key, f"segments[{i}]") for key in ("start", "end"))
        at = offset + len(text)
        words.append(Word(text, start, end, offset, segment.get("estimated") is True))
    return words


def _seconds(holder: object, key: str, name: str) -> float:
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise Unviewable(f"{name}.{key} is {value!r:.80}; it must be a number of seconds from the start of the recording.")
    return float(value)


def _list(result: dict, key: str) -> list:
    value = result.get(key) or []
    if not isinstance(value, list):
        raise Unviewable(f"{key} is {value!r:.80}; it must be a list.")
    return value


def _stretches(result: dict) -> Iterator[Stretch]:
    """What was asked again and what is missing. A failed retry is among the failed spans."""
    for i, span in enumerate(_list(result, "failed_spans")):
        start, end = (_seconds(span, key, f"failed_spans[{i}]") for key in ("start", "end"))
        yield Stretch(start, end, "failed", str(span.get("reason") or "no reason given"))
    for i, retry in enumerate(_list(result, "retries")):
        start, end = (_seconds(retry, key, f"retries[{i}]") for key in ("start", "end"))
        if retry.get("outcome") in ("mended", "kept"):
            yield Stretch(start, end, retry["outcome"], ", ".join(map(str, _list(retry, "reasons"))))


def _facts(result: dict, duration: float) -> Iterator[str]:
    yield str(result.get("language_detected") or "nothing heard")
    yield clock(duration)
    yield f"{len(result['segments'])} segments"


def _legend(words: Sequence[Word], marked: Sequence[Stretch]) -> str:
    """What occurs in this transcript, each with its look and how often."""
    count = {kind: sum(s.kind == kind for s in marked) for kind in KINDS} | {"estimated": sum(w.estimated for w in words)}
    entries = [f'<li><i class="key {kind}">abc</i> {KINDS[kind]} ({number})</li>' for kind, number in count.items() if number]
    return "".join(['<li><i class="key heard"></i> words</li>', *entries])


def _wave(levels: Sequence[float]) -> str:
    """The outline of the waveform, mirrored, in an SVG that is stretched to its place."""
    if not levels:
        return ""
    upper = [f"{x} {50 - 48 * level:.1f}" for x, level in enumerate(levels)]
    lower = [f"{x} {50 + 48 * level:.1f}" for x, level in reversed([*enumerate(levels)])]
    path = f'<path d="M{"L".join(upper + lower)}z"/>'
    return f'<svg class="wave" viewBox="0 0 {max(len(levels) - 1, 1)} 100" preserveAspectRatio="none">{path}</svg>'


def _lane(sentences: Sequence[Segment], marked: Sequence[Stretch], duration: float) -> str:
    """The account of the recording: where words are, what was asked again, what is missing; the rest is silent."""
    spans = [(start, end, "heard") for start, end in _joined(sentences, duration / COLUMNS)]
    spans += [(s.start, s.end, s.kind) for s in marked]
    return "".join(
        f'<i class="span {kind}" style="left:{100 * start / duration:.3f}%;width:{100 * (end - start) / duration:.3f}%"></i>'
        for start, end, kind in spans
    )


def _joined(spans: Sequence[Segment], gap: float) -> list[tuple[float, float]]:
    """(start, end) of runs of spans with no more than `gap` seconds between them."""
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
    marked: Sequence[Stretch],
    languages: Sequence[str | None],
) -> str:
    """Sentences, and notes before the first sentence that each concerns, in the order of time; `languages`: of each word."""
    blocks: list[tuple[float, int, str]] = []  # when, notes first
    noted: set[Stretch] = set()
    i = 0
    for sentence in sentences:
        here = [s for s in marked if s.start < sentence.end and sentence.start < s.end]
        for stretch in here:
            if stretch not in noted:
                noted.add(stretch)
                blocks.append((sentence.start, 0, _note(stretch)))
        first, end = i, sentence.offset + len(sentence.text)
        while i < len(words) and words[i].offset < end:
            i += 1
        body, at = [], sentence.offset
        for word in words[first:i]:
            body += [html.escape(text[at : word.offset]), _word(word, here)]
            at = word.offset + len(word.text)
        body.append(html.escape(text[at:end]))
        lang = f' lang="{languages[first]}"' if languages[first] else ""
        said = f'<p dir="auto"{lang}>{"".join(body)}</p>'
        blocks.append((sentence.start, 1, f'<div class="s">{_time(sentence.start)}{said}</div>'))
    blocks += [(s.start, 0, _note(s)) for s in marked if s not in noted]
    return "\n".join(block for _, _, block in sorted(blocks, key=lambda block: block[:2]))


def _word(word: Word, stretches: Sequence[Stretch]) -> str:
    middle = (word.start + word.end) / 2
    kinds = [s.kind for s in stretches if s.kind != "failed" and s.start <= middle < s.end]
    classes = " ".join(["w", *kinds, *(["estimated"] if word.estimated else [])])
    return f'<span class="{classes}">{html.escape(word.text)}</span>'


def _note(stretch: Stretch) -> str:
    what = f"to {clock(stretch.end)}: {KINDS[stretch.kind]} ({stretch.why})"
    return f'<div class="note {stretch.kind}">{_time(stretch.start)}<p>{html.escape(what)}</p></div>'


def _time(seconds: float) -> str:
    return f'<span class="t" role="button" tabindex="-1" data-at="{seconds:.3f}">{clock(seconds)}</span>'


def clock(seconds: float) -> str:
    """1:02:03.4, without hours where there are none."""
    tenths = int(seconds * 10 + 1e-6)  # 8.3 is a little less than that in binary
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


if __name__ == "__main__":
    sys.exit(main())
