"""Headless Chromium driven by its DevTools protocol:
https://chromedevtools.github.io/devtools-protocol/
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from websockets.sync.client import connect

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# With these it asks none of Google's hosts at its start, and needs nothing that a container lacks.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--remote-debugging-port=0",
)
START_SECONDS = 60  # a bound for a slow machine
WAIT_SECONDS = 30


class Tab:
    """One page. Keeps the URLs that it requested and the errors that it reported."""

    def __init__(self, socket):
        self._socket, self._count = socket, 0
        self.requests: list[str] = []  # URLs
        self.complaints: list[str] = []  # errors of the console and exceptions
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict:
        """The result of one command of the protocol."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while (message := json.loads(self._socket.recv(WAIT_SECONDS))).get("id") != self._count:
            self._record(message["method"], message["params"])
        assert "error" not in message, message
        return message["result"]

    def _record(self, method: str, event: dict) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Runtime.exceptionThrown" or "error" in (
            event.get("type"),
            event.get("entry", {}).get("level"),
        ):
            self.complaints.append(json.dumps(event))

    def open(self, page: Path, width: int = 1000, height: int = 700, touch: bool = False) -> None:
        """Load a file into a window of that size in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=touch,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.call("Page.navigate", url=page.as_uri())
        self.until(
            f"location.href === {json.dumps(page.as_uri())} && document.readyState === 'complete'"
        )

    def value(self, expression: str) -> object:
        """The value of a JavaScript expression, waited for where it is a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> object:
        """The value of the expression once it is true. Fails after WAIT_SECONDS."""
        end = time.monotonic() + WAIT_SECONDS
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)
        return value

    def click(self, selector: str, n: int = 0) -> None:
        """Press the mouse in the middle of the n-th element that matches."""
        element = f"document.querySelectorAll({json.dumps(selector)})[{n}]"
        self.value(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y = self.value(
            "(box => [box.x + box.width / 2, box.y + box.height / "
            f"2])({element}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, times: int = 1) -> None:
        """A key by its DOM name; " " is the space bar."""
        code = {
            " ": 32,
            "Enter": 13,
            "Tab": 9,
            "Escape": 27,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }[key]
        text = {" ": " ", "Enter": "\r"}.get(key, "")
        for _ in range(times):
            self.call(
                "Input.dispatchKeyEvent",
                type="keyDown",
                key=key,
                windowsVirtualKeyCode=code,
                text=text,
            )
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)


@contextmanager
def chromium() -> Iterator[Tab]:
    """A tab of a browser with a new profile; both end with the context."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_address(process, Path(profile)), max_size=None, proxy=None) as socket:
                yield Tab(socket)
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen, profile: Path) -> str:
    """The WebSocket of the first tab; the browser writes its port into a file when it listens."""
    file = profile / "DevToolsActivePort"
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and (lines := file.read_text().splitlines()):
            tabs = requests.get(f"http://127.0.0.1:{lines[0]}/json", timeout=WAIT_SECONDS).json()
            if pages := [tab for tab in tabs if tab["type"] == "page"]:
                return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.05)
    raise AssertionError("Chromium did not start")
