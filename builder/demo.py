"""Run the worker once through `src/handler.py --test_input` and print its transcript.

A local file is served to the worker over HTTP on loopback, because the worker by default accepts
only URLs.
"""

import argparse
import functools
import http.server
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import view

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "tests" / "recordings" / "demo.mp3"
HEARTBEAT_SECONDS = 10  # this often a line shows that the worker is still running
MAX_ERROR_LINES = 30  # a worker without a result has the end of its stderr printed
WORDS_PER_ROW = 6
LOG_LINE = re.compile(r"[A-Z]+ *\| ")  # as RunPod's SDK writes it


def main() -> int:
    a = arguments()
    job_input = {"language": a.language} | ({"initial_context": a.context} if a.context else {})
    began = time.monotonic()
    with served(a.recording) as url:
        result = run_worker(job_input | {"audio_url": url}, private=url != a.recording)
    if result is None:
        print("\nThe worker failed.", file=sys.stderr)
        return 1
    if "error" in result:
        print(f"\nThe job failed: {result['error']} ({result['error_code']})", file=sys.stderr)
        return 1
    show(a.recording, result, time.monotonic() - began)
    if a.page:
        view.write(a.page, result, a.recording, view.name_of(a.recording))
        print(f"\nThe page that plays it: {a.page}")
    else:
        print("\nFor a page that plays it and highlights each word, add --page transcript.html")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bash builder/demo.sh", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "recording",
        nargs="?",
        default=str(DEMO),
        help="a file or an http(s) URL (default: the bundled recording)",
    )
    parser.add_argument("--language", default="auto", help="the language spoken (default: auto)")
    parser.add_argument("--context", help="words to expect: names, terms")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="also write an HTML page that plays it and highlights each word",
    )
    a = parser.parse_args()
    if a.page and not a.page.parent.is_dir():
        parser.error(f"--page: there is no folder {a.page.parent}.")
    return a


@contextmanager
def served(recording: str) -> Iterator[str]:
    """The URL of the recording.

    It is the given one, or for a file one on loopback until the context ends.
    """
    if recording.startswith(("http://", "https://")):
        yield recording
        return
    path = Path(recording)
    if not path.is_file():
        sys.exit(f"error: {recording} is neither a file nor an http(s) URL.")
    handler = functools.partial(OneFile, path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/recording"
        server.shutdown()


class OneFile(http.server.BaseHTTPRequestHandler):
    """Answers every GET with one file."""

    def __init__(self, path: Path, *args):
        self._path = path
        super().__init__(*args)

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(self._path.stat().st_size))
        self.end_headers()
        with self._path.open("rb") as file:
            while block := file.read(1 << 18):
                self.wfile.write(block)

    def log_message(self, *_):
        pass


def run_worker(job_input: dict[str, Any], private: bool) -> dict[str, Any] | None:
    """The job's result, or None without one.

    The worker's log lines are printed as progress, and its last lines where there is no result.
    """
    environment = os.environ | ({"RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true"} if private else {})
    job = json.dumps({"input": job_input})
    command = [sys.executable, "-u", str(ROOT / "src" / "handler.py"), "--test_input", job]
    say("$ python src/handler.py --test_input '{\"input\": …}'")
    say("Starting the engine: about half a minute on a fast machine, some minutes on a slow one.")
    done = threading.Event()
    threading.Thread(target=heartbeat, args=(done,), daemon=True).start()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout and worker.stderr
        last_lines: deque[str] = deque(maxlen=MAX_ERROR_LINES)
        logged = threading.Thread(target=show_log, args=(worker.stderr, last_lines))
        logged.start()
        printed = worker.stdout.read()
        logged.join()
    done.set()
    if not printed:
        say("".join(last_lines))
        return None
    result: dict[str, Any] = json.loads(printed)
    return result


def show_log(lines: Iterable[str], last_lines: deque[str]) -> None:
    """Print the worker's own log lines, except those about the result, which follows in full."""
    for line in lines:
        last_lines.append(line)
        if LOG_LINE.match(line) and "Job result: " not in line:
            say("  " + line.rstrip())


def say(line: str) -> None:
    """Print to stderr, because stdout is for the transcript."""
    print(line, file=sys.stderr)


def heartbeat(done: threading.Event) -> None:
    began = time.monotonic()
    while not done.wait(HEARTBEAT_SECONDS):
        say(f"  … {time.monotonic() - began:.0f} s")


def show(recording: str, result: dict[str, Any], seconds: float) -> None:
    """Print the language, the text, and the words in rows, each with its start."""
    segments = result["segments"]
    place = os.path.relpath(recording) if os.path.exists(recording) else recording
    until = clock(segments[-1]["end"]) if segments else "-"
    print(f"\nRecording  {place}")
    print(f"Language   {result['language_detected'] or '- (nothing heard)'}")
    print(f"Words      {len(segments)}, until {until}; start-up and job took {seconds:.0f} s\n")
    print(textwrap.fill(result["text"], 100) + "\n")
    words = [f"{clock(segment['start'])} {segment['text']}" for segment in segments]
    for i in range(0, len(words), WORDS_PER_ROW):
        print("   ".join(words[i : i + WORDS_PER_ROW]))


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{seconds % 60:06.3f}"


if __name__ == "__main__":
    sys.exit(main())
