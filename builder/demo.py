"""Run the worker once through `src/handler.py --test_input` and print its transcript in a readable form.

A local file is served to the worker over HTTP on loopback, because the worker by default accepts only URLs.
"""

import argparse
import functools
import http.server
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import view

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "tests" / "recordings" / "demo.mp3"
HEARTBEAT_SECONDS = 10  # between two lines that show that the worker is still running
ERROR_LINES = 30  # of the worker's stderr, printed if it has no result
WORDS_PER_ROW = 6


def main() -> int:
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
    job_input = {"language": a.language} | ({"initial_context": a.context} if a.context else {})
    began = time.monotonic()
    with served(a.recording) as url:
        result = run_worker(job_input | {"audio_url": url}, private=url != a.recording)
    if result is None or "error" in result:
        print(
            f"\nThe job failed: {result['error']} ({result['error_code']})"
            if result
            else "\nThe worker failed.",
            file=sys.stderr,
        )
        return 1
    show(a.recording, result, time.monotonic() - began)
    if a.page:
        file = Path(a.recording)
        view.write(a.page, result, file if file.is_file() else None, file.name)
        print(f"\nThe page that plays it: {a.page}")
    else:
        print("\nFor a page that plays it and highlights each word, add --page transcript.html")
    return 0


@contextmanager
def served(recording: str):
    """The URL of the recording: the given one, or for a file one on loopback until the context ends."""
    if recording.startswith(("http://", "https://")):
        yield recording
        return
    path = Path(recording)
    if not path.is_file():
        sys.exit(f"error: {recording} is neither a file nor an http(s) URL.")
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(OneFile, path)
    ) as server:
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


def run_worker(job_input: dict, private: bool) -> dict | None:
    """The job's result, or None without one; prints the worker's log lines as progress."""
    environment = os.environ | ({"RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true"} if private else {})
    command = [
        sys.executable,
        "-u",
        str(ROOT / "src" / "handler.py"),
        "--test_input",
        json.dumps({"input": job_input}),
    ]
    print("$ python src/handler.py --test_input '{\"input\": …}'", file=sys.stderr)
    print(
        "Starting the engine: about half a minute on a fast machine, some minutes on a slow one.",
        file=sys.stderr,
    )
    result, done = None, threading.Event()
    threading.Thread(target=heartbeat, args=(done,), daemon=True).start()
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as worker:
            for line in worker.stdout:
                if result is None and line.startswith("{"):
                    result = json.loads(
                        line
                    )  # later lines are the SDK's log of the same result, truncated
                elif result is None:
                    print("  " + line.rstrip(), file=sys.stderr)
        done.set()
        if result is None:
            errors.seek(0)
            print("".join(errors.readlines()[-ERROR_LINES:]), file=sys.stderr)
    return result


def heartbeat(done: threading.Event) -> None:
    began = time.monotonic()
    while not done.wait(HEARTBEAT_SECONDS):
        print(f"  … {time.monotonic() - began:.0f} s", file=sys.stderr)


def show(recording: str, result: dict, seconds: float) -> None:
    """Print the language, the text, and the words in rows, each with its start."""
    segments = result["segments"]
    print(
        f"\nRecording  {os.path.relpath(recording) if os.path.exists(recording) else recording}\nLanguage   {result['language_detected'] or '- (nothing heard)'}"
    )
    print(
        f"Words      {len(segments)}, until {clock(segments[-1]['end']) if segments else '-'}; start-up and job took {seconds:.0f} s\n"
    )
    print(textwrap.fill(result["text"], 100) + "\n")
    for i in range(0, len(segments), WORDS_PER_ROW):
        print(
            "   ".join(f"{clock(s['start'])} {s['text']}" for s in segments[i : i + WORDS_PER_ROW])
        )


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{seconds % 60:06.3f}"


if __name__ == "__main__":
    sys.exit(main())
