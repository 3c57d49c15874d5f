"""Where the worker finds a model, with a stand-in hub on loopback.

`-s` prints each case with its place or its error.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin_hub import COMMIT, MODELS, Hub

SRC = Path(__file__).parent.parent / "src"
HANDLER = SRC / "handler.py"
DEADLINE_SECONDS = 120
OLDER = "89abcdef0123456789abcdef0123456789abcdef"
FIND = """
import sys
from pathlib import Path
from speech.models import weights
weights.PAUSES_SECONDS = ()
name, revision, root = sys.argv[1:]
try:
    image, volume = Path(root, "image"), Path(root, "volume")
    print(weights.find("recogniser", name, revision, print, image, volume))
except weights.WeightsError as error:
    sys.exit(f"error: {error}")
"""


class Place:
    """A machine of its own: the image's cache, the network volume's, the hub's cache, and a
    stand-in hub.
    """

    def __init__(self, root: Path, hub: Hub):
        self.root, self.hub = root, hub

    def put(self, cache: str, model: str, commit: str = COMMIT, main: str = COMMIT) -> Path:
        """The snapshot of a complete checkpoint, in the hub's layout; `main` is the commit that
        refs/main names, "" for none.
        """
        repository = self.root / cache / f"models--{model.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        if main:
            (repository / "refs" / "main").write_text(main)
        return Path(shutil.copytree(MODELS / "asr", repository / "snapshots" / commit))

    def find(self, name: str, revision: str = "main", **environ: str) -> str:
        """What `find` prints last: the place, or the sentence."""
        ours = {
            name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")
        }
        clean = {name: value for name, value in os.environ.items() if name not in ours}
        hub = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_CACHE": str(self.root / "cache"),
            "PYTHONPATH": str(SRC),
        }
        run = subprocess.run(
            [sys.executable, "-c", FIND, name, revision, str(self.root)],
            env=clean | hub | environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        assert "Traceback" not in run.stderr, run.stderr
        lines = (
            (run.stdout if run.returncode == 0 else run.stderr)
            .replace(str(self.root), "")
            .replace(self.hub.url, "HUB")
            .splitlines()
        )
        return re.sub(r"(?<=127\.0\.0\.1:)\d+", "N", lines[-1])


@pytest.fixture
def place(tmp_path) -> Iterator[Place]:
    with Hub() as hub:
        yield Place(tmp_path, hub)


# the cases: each prepares its places and returns the last line that `find` prints


def in_a_folder(place: Place) -> str:
    return place.find(shutil.copytree(MODELS / "asr", place.root / "mine"))


def half_a_folder(place: Place) -> str:
    (
        folder := Path(shutil.copytree(MODELS / "asr", place.root / "mine")),
        (folder / "model.safetensors").unlink(),
    )
    return place.find(str(folder))


def baked(place: Place) -> str:
    place.put("image", "tiny/asr"), place.put("volume", "tiny/asr"), place.put("cache", "tiny/asr")
    return place.find("tiny/asr")


def cached_by_runpod_in_lower_case(place: Place) -> str:
    place.hub.repositories["Tiny/ASR"] = MODELS / "asr"
    place.put("volume", "tiny/asr")
    return place.find("Tiny/ASR")


def cached_by_runpod_without_refs(place: Place) -> str:
    place.put("volume", "tiny/asr", OLDER, main="")
    return place.find("tiny/asr")


def cached_by_runpod_with_two_snapshots(place: Place) -> str:
    place.put("volume", "tiny/asr", OLDER, main=OLDER), place.put("volume", "tiny/asr", main=OLDER)
    return place.find("tiny/asr")


def fetched_before(place: Place) -> str:
    place.put("cache", "tiny/asr")
    return place.find("tiny/asr")


def baked_by_commit(place: Place) -> str:
    place.put("image", "tiny/asr", OLDER, main="")
    return place.find("tiny/asr", OLDER)


def baked_with_another_commit(place: Place) -> str:
    place.put("image", "tiny/asr", OLDER, main=OLDER)
    return place.find("tiny/asr", COMMIT)


def nowhere_but_on_the_hub(place: Place) -> str:
    return place.find("tiny/asr")


def half_a_download_in_the_image(place: Place) -> str:
    (place.put("image", "tiny/asr") / "model.safetensors").unlink()
    return place.find("tiny/asr")


def half_a_download_in_the_cache_and_no_hub(place: Place) -> str:
    snapshot = place.put("cache", "tiny/asr")
    (snapshot.parent.parent / "blobs").mkdir()
    (snapshot.parent.parent / "blobs" / "ab12.incomplete").write_bytes(b"{")
    return place.find("tiny/asr", HF_HUB_OFFLINE="1")


def offline(place: Place) -> str:
    return place.find("tiny/asr", HF_HUB_OFFLINE="1")


def a_hub_that_is_down(place: Place) -> str:
    with socket.socket() as deaf:  # bound, so that nobody else gets the port, but not listening
        deaf.bind(("127.0.0.1", 0))
        return place.find("tiny/asr", HF_ENDPOINT=f"http://127.0.0.1:{deaf.getsockname()[1]}")


def a_name_that_is_wrong(place: Place) -> str:
    return place.find("tiny/asr-9000B")


def a_name_that_can_be_none(place: Place) -> str:
    return place.find("./models/asr")


def a_revision_that_is_wrong(place: Place) -> str:
    return place.find("tiny/asr", "v9")


MISSES = "no such local folder; not in /image; not in /volume; not in /cache; "
ADVICE = (
    " Set MODEL_NAME and MODEL_REVISION to a model that is available or to a local folder, or "
    "build an image with this one."
)
CANT = "error: The recogniser tiny/asr, revision main, is not available: "
CASES = {  # case → (that line, requests that the hub gets: 0 or "some")
    in_a_folder: ("a local folder", 0),
    half_a_folder: (
        "error: MODEL_NAME names the folder /mine, which holds no complete recogniser: "
        "/mine/model.safetensors is missing;"
        " it must hold weights of the checkpoint.",
        0,
    ),
    baked: (f"commit {COMMIT}, baked into the image", 0),
    baked_by_commit: (f"commit {OLDER}, baked into the image", 0),
    baked_with_another_commit: (f"commit {COMMIT}, fetched from the hub", "some"),
    cached_by_runpod_in_lower_case: (f"commit {COMMIT}, of RunPod's cached models", 0),
    cached_by_runpod_without_refs: (f"commit {OLDER}, of RunPod's cached models", 0),
    cached_by_runpod_with_two_snapshots: (f"commit {OLDER}, of RunPod's cached models", 0),
    fetched_before: (f"commit {COMMIT}, in the hub's cache", 0),
    nowhere_but_on_the_hub: (f"commit {COMMIT}, fetched from the hub", "some"),
    half_a_download_in_the_image: (f"commit {COMMIT}, fetched from the hub", "some"),
    half_a_download_in_the_cache_and_no_hub: (
        CANT + "no such local folder; not in /image; not in /volume; incomplete in /cache, "
        "/cache/models--tiny--asr/blobs/ab12.incomplete"
        " is an incomplete download; the hub was not asked, because HF_HUB_OFFLINE is set."
        + ADVICE,
        0,
    ),
    offline: (CANT + MISSES + "the hub was not asked, because HF_HUB_OFFLINE is set." + ADVICE, 0),
    a_hub_that_is_down: (
        CANT
        + MISSES
        + (
            "http://127.0.0.1:N did not deliver it, ConnectionRefusedError: [Errno 111] "
            "Connection refused."
        )
        + ADVICE,
        0,
    ),
    a_name_that_is_wrong: (
        CANT.replace("asr", "asr-9000B")
        + MISSES
        + "HUB has no such model, or requires another HF_TOKEN."
        + ADVICE,
        "some",
    ),
    a_name_that_can_be_none: (
        CANT.replace("tiny/asr", "./models/asr")
        + MISSES
        + "this is not a valid name of a model on the hub."
        + ADVICE,
        0,
    ),
    a_revision_that_is_wrong: (
        CANT.replace("main", "v9") + MISSES + "HUB has the model, but not this revision." + ADVICE,
        "some",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.replace("_", " "))
def test_a_model_is_found_in_the_first_place_that_has_it_complete(case, place):
    expected, asked = CASES[case]
    line = case(place)
    print(f"\n{case.__name__.replace('_', ' '):42} {line}")
    assert line == expected
    assert (len(place.hub.requests) > 0) == (asked == "some")


def test_a_fetched_model_is_found_without_the_hub_at_the_next_start(place):
    place.find("tiny/asr")
    asked = len(place.hub.requests)
    assert place.find("tiny/asr") == f"commit {COMMIT}, in the hub's cache"
    assert len(place.hub.requests) == asked


def test_the_places_are_those_of_the_image_and_of_runpod():
    from speech.models.weights import BAKED, CACHED_BY_RUNPOD

    assert (
        re.search(rf"\bHF_HOME={BAKED.parent}\n", (SRC.parent / "Dockerfile").read_text())
        and BAKED.name == "hub"
    )
    assert Path("/runpod-volume/huggingface-cache/hub") == CACHED_BY_RUNPOD


def test_a_worker_without_its_model_ends_with_that_sentence(place):
    """Before anything is loaded, with exit code 1 and no traceback."""
    environ = os.environ | {
        "MODEL_NAME": "tiny/none",
        "HF_ENDPOINT": place.hub.url,
        "HF_HOME": str(place.root),
        "HF_HUB_OFFLINE": "0",
    }
    run = subprocess.run(
        [sys.executable, HANDLER, "--rp_serve_api"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert re.search(
        r"^error: The recogniser tiny/none, revision main, is not available: .* MODEL_NAME .*\.$",
        run.stderr,
        re.MULTILINE,
    )
