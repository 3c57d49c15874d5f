"""Stand-in for the model hub on loopback: what huggingface_hub 0.36 asks for to fetch a snapshot.

GET api/models/{name}/revision/{revision}?blobs=true
    The commit and its files, with their sizes and git hashes, and the SHA-256 of weights.
HEAD, GET {name}/resolve/{commit}/{file}
    Headers and content. A Range is honoured.
"""

import functools
import hashlib
import http.server
import json
import re
import threading
from pathlib import Path

MODELS = Path(__file__).parent / "models"
WEIGHTS = ".safetensors"  # in Git LFS
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`with Hub() as hub`: serves the tiny checkpoints as tiny/asr and tiny/aligner, both with one
    revision, main.

    `requests` are (method, path, Authorization, Range) in order. With `tells_hashes = False` the
    list of files has no sizes and hashes. Each GET of weights uses up one of `faults`: "cut" ends
    the connection halfway, "wrong" sends other bytes.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str | None, str | None]] = []
        self.repositories = {"tiny/asr": MODELS / "asr", "tiny/aligner": MODELS / "aligner"}
        self.tells_hashes = True
        self.faults: list[str] = []

    def __enter__(self) -> "Hub":
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(_Answers, self)
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Answers(http.server.BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *args):
        self.hub = hub
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(
            (self.command, self.path, self.headers.get("Authorization"), self.headers.get("Range"))
        )
        path = self.path.partition("?")[0]
        known = self.hub.repositories
        match = re.fullmatch(r"/api/models/(.+)/revision/(.+)", path)
        if match and match[1] in known:
            if match[2] not in ("main", COMMIT):
                self._answer(404, {"X-Error-Code": "RevisionNotFound"})
                return
            files = [self._described(file) for file in sorted(known[match[1]].iterdir())]
            described = {"id": match[1], "sha": COMMIT, "siblings": files}
            self._answer(200, {}, json.dumps(described).encode())
            return
        match = re.fullmatch(rf"/(.+)/resolve/{COMMIT}/([\w.]+)", path)
        if match and match[1] in known:
            self._send(self.hub.repositories[match[1]] / match[2])
            return
        self._answer(404, {"X-Error-Code": "RepoNotFound"})

    def _described(self, file: Path) -> dict:
        content = file.read_bytes()
        described = {"size": len(content), "blobId": git_hash(content)}
        if file.suffix == WEIGHTS:
            described["lfs"] = {
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "pointerSize": 134,
            }
        return {"rfilename": file.name} | (described if self.hub.tells_hashes else {})

    def _send(self, file: Path) -> None:
        content = file.read_bytes()
        headers = {"ETag": f'"{etag(file)}"', "X-Repo-Commit": COMMIT}
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        faulty = self.hub.faults and self.command == "GET" and file.suffix == WEIGHTS
        fault = self.hub.faults.pop(0) if faulty else ""
        rest = content[start:] if fault != "wrong" else bytes(len(content) - start)
        self._answer(
            206 if start else 200, headers, rest, sent=len(rest) // (2 if fault == "cut" else 1)
        )

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes = b"", sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:sent])

    def log_message(self, *_) -> None:
        pass


def etag(file: Path) -> str:
    """The ETag of a file, by which the hub's cache names its content."""
    content = file.read_bytes()
    return hashlib.sha256(content).hexdigest() if file.suffix == WEIGHTS else git_hash(content)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
