"""Take the picture of a transcript's page that the READMEs show: .github/page.png

    bash builder/demo.sh --page demo.html
    .venv/bin/python tests/page_picture.py demo.html

Needs Chromium. The recording is at rest on a word, as after a click on it.
"""

import base64
import sys
from pathlib import Path

from browser import chromium

PICTURE = Path(__file__).parent.parent / ".github" / "page.png"
WIDTH, HEIGHT = 960, 520  # CSS pixels
WORD = 12  # is highlighted


def main(page: Path) -> None:
    with chromium() as tab:
        tab.open(page.resolve(), WIDTH, HEIGHT)
        tab.call("Emulation.setScrollbarsHidden", hidden=True)
        tab.click(".w", WORD)
        tab.value("document.getElementById('audio')?.pause()")
        tab.value("scrollTo({top: 0, behavior: 'instant'})")
        shot = tab.call("Page.captureScreenshot", format="png")
    PICTURE.write_bytes(base64.b64decode(shot["data"]))
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
