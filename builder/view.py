"""Make one HTML page that plays a recording and highlights each word as it is spoken.

    python builder/view.py result.json [recording] [-o page.html]

The page needs no network and no other file, except that a recording over 32 MiB is linked and not
embedded, and so is one by URL. It shows which times are estimated, which words are doubtful, what
was recognised again and what is missing. Space plays and pauses, the arrow keys go from word to
word, a click on a word plays from there. The page searches and copies the text and saves it as SRT
or WebVTT. For a Chinese transcript the page itself is in Chinese.
"""

import argparse
import asyncio
import base64
import json
import math
import os
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from contract.errors import WorkerError  # noqa: E402
from view_page import MAX_COLUMNS, Media, render
from view_result import Unviewable, result_in

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


def main() -> int:
    a = arguments()
    page = a.output or a.result.with_suffix(".html")
    title = name_of(a.recording) if a.recording else a.result.name
    try:
        write(page, read(a.result), a.recording, title)
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
        nargs="?",
        help="the audio or video file, or its http(s) URL; without it the page is silent",
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


def is_url(recording: str) -> bool:
    """Whether a recording is an http(s) URL and not a path."""
    return recording.startswith(("http://", "https://"))


def name_of(recording: str) -> str:
    """The file's name at the end of a path or a URL."""
    if not is_url(recording):
        return Path(recording).name
    url = urlsplit(recording)
    return unquote(PurePosixPath(url.path).name) or url.netloc


def write(page: Path, answer: object, recording: str | None, title: str) -> None:
    """Write the page of a result, with or without RunPod's envelope.

    `recording`: a path or an http(s) URL. Raises Unviewable, and OSError for files.
    """
    result = result_in(answer)
    media = media_of(recording, page) if recording else Media()
    page.write_text(render(result, title, media), encoding="utf-8")


def media_of(recording: str, page: Path) -> Media:
    """The recording as the page plays it. Raises Unviewable and OSError."""
    if is_url(recording):
        note = "The page plays the recording from its URL, so playing needs the network."
        print(f"{note} The page has no waveform.", file=sys.stderr)
        return Media(recording)
    path = Path(recording)
    levels, seconds = waveform(path)
    return Media(source(path, page), levels, seconds)


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


if __name__ == "__main__":
    sys.exit(main())
