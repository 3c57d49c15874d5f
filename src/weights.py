"""Where the files of a model are. In this order: a local folder, the image, RunPod's cached models, the hub's cache, the hub.

`find` takes the first place that holds the whole checkpoint; half a download counts as none. The hub is asked only where no
other place has it, so that a start with baked weights does not depend on it. What huggingface_hub reads of the environment
counts: HF_HOME (where its cache is), HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.

The image's layer with the weights is built from this file, checkpoint.py and builder/fetch_models.py: imports nothing else.
"""

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint import CheckpointError, verify

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

BAKED = Path("/models/hub")  # where the Dockerfile puts the weights; no volume is mounted over it
CACHED_BY_RUNPOD = Path("/runpod-volume/huggingface-cache/hub")  # https://docs.runpod.io/serverless/endpoints/model-caching
PAUSES_SECONDS = (2, 8, 30)  # before the hub is tried again
ANSWER_SECONDS = 30  # for the hub to say what a model consists of
TELL_SECONDS = 10  # between two lines about a download
VARIABLES = {"recogniser": "MODEL", "aligner": "ALIGNER"}  # by role: how its settings begin


class WeightsError(Exception):
    """A model that can't be had; the message names it, the places looked at and what to do."""


class HubError(Exception):
    """The hub did not give a model; the message says why."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A complete checkpoint on this machine."""

    folder: Path
    place: str  # for people
    commit: str = ""  # of the hub's repository; a local folder has none

    def __str__(self) -> str:
        return f"commit {self.commit}, {self.place}" if self.commit else self.place


def find(
    role: str, name: str, revision: str, say: Callable[[str], None], baked: Path = BAKED, cached: Path = CACHED_BY_RUNPOD
) -> Weights:
    """The checkpoint of `role` ("recogniser" or "aligner"); `name` is a local folder or a hub id, `revision` a branch, tag or commit.

    `say` gets lines for the log. Raises WeightsError where no place has it whole.
    """
    from huggingface_hub import constants

    if Path(name).is_dir():
        return _local(role, name)
    misses = ["no such local folder"]
    caches = {baked: "baked into the image", cached: "of RunPod's cached models", Path(constants.HF_HUB_CACHE): "in the hub's cache"}
    for cache, place in caches.items():
        miss = f"not in {cache}"
        for folder in snapshots(cache, name, revision):
            try:
                _verify_snapshot(folder, role)
                return Weights(folder, place, folder.name)
            except CheckpointError as error:
                miss = f"not whole in {cache}, {str(error).rstrip('.')}"
        misses.append(miss)
    try:
        folder, _ = fetch(name, revision, say)
        verify(folder, role)
    except (HubError, CheckpointError) as error:
        variable = VARIABLES[role]
        raise WeightsError(
            f"The {role} {name}, revision {revision}, can't be had: {'; '.join(misses)}; {str(error).rstrip('.')}. Set {variable}_NAME"
            f" and {variable}_REVISION to a model that can be had or to a local folder, or build an image with this one."
        ) from error
    return Weights(folder, "fetched from the hub", folder.name)


def _local(role: str, name: str) -> Weights:
    try:
        verify(Path(name), role)
    except CheckpointError as error:
        raise WeightsError(f"{VARIABLES[role]}_NAME names the folder {name}, which holds no complete {role}: {error}") from error
    return Weights(Path(name), "a local folder")


def snapshots(cache: Path, name: str, revision: str) -> Iterator[Path]:
    """Folders of that revision in a cache of the hub's layout, whether complete or not; asks nobody.

    RunPod's names come in lower case, so that case doesn't count; a cache without a note of what `main` is has one snapshot.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = f"models--{name.replace('/', '--')}"
    for repository in sorted(cache.glob("models--*"), key=lambda path: path.name != wanted):
        if repository.name.lower() != wanted.lower():
            continue
        cased = repository.name.removeprefix("models--").replace("--", "/")
        try:
            yield Path(snapshot_download(cased, revision=revision, cache_dir=cache, local_files_only=True))
        except LocalEntryNotFoundError:
            present = [*(repository / "snapshots").glob("*")]
            if revision == "main" and len(present) == 1:
                yield present[0]


def _verify_snapshot(folder: Path, role: str) -> None:
    verify(folder, role)
    if left := sorted((folder.parent.parent / "blobs").glob("*.incomplete")):  # a file that no check of ours asks for
        raise CheckpointError(f"{left[0]} is half a download.")


def fetch(name: str, revision: str, say: Callable[[str], None]) -> tuple[Path, str]:
    """(folder, what was compared): the model out of the hub into its cache, every file compared with the hub's size and hash.

    Tries again after each of PAUSES_SECONDS and goes on where it was cut off. Raises HubError.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    hub = constants.ENDPOINT
    for pause in (*PAUSES_SECONDS, None):
        try:
            return _fetch_once(name, revision, say)
        except OfflineModeIsEnabled as error:
            raise HubError("the hub was not asked, for HF_HUB_OFFLINE is set") from error
        except HFValidationError as error:
            raise HubError("the hub can have no model of this name") from error
        except RepositoryNotFoundError as error:
            raise HubError(f"{hub} has no such model, or asks for the right HF_TOKEN") from error
        except RevisionNotFoundError as error:
            raise HubError(f"{hub} has the model, but not this revision") from error
        except (OSError, ValueError, RuntimeError) as error:  # the connection's and the disk's; an answer's; hf_xet's
            reason = f"{hub} did not give it, {_root(error)}"
            if pause is None:
                raise HubError(reason) from error
            say(f"{reason}; once more in {pause} s")
            time.sleep(pause)


def _root(error: BaseException) -> str:
    """What began a chain of errors, on one line: requests and urllib3 each wrap it in a longer one."""
    while error.__context__:
        error = error.__context__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _fetch_once(name: str, revision: str, say: Callable[[str], None]) -> tuple[Path, str]:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()  # one line without an end, in a log; ours stand there instead
    info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS)
    total, began = sum(file.size or 0 for file in info.siblings), time.monotonic()
    say(f"fetching {name}, commit {info.sha}, {total / 1e6:.0f} MB, from {constants.ENDPOINT} into {constants.HF_HUB_CACHE}")
    with _progress(Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "blobs"), total, say):
        folder = Path(snapshot_download(name, revision=revision))
    if folder.name != info.sha:
        raise OSError(f"revision {revision} moved from {info.sha} to {folder.name} meanwhile")
    compared = compare(folder, info.siblings)
    say(f"fetched {name} in {time.monotonic() - began:.0f} s, {compared}")
    return folder, compared


@contextmanager
def _progress(blobs: Path, total: int, say: Callable[[str], None]) -> Iterator[None]:
    """Says every TELL_SECONDS how much has come."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(TELL_SECONDS):
            with suppress(FileNotFoundError):  # renamed between the two looks
                say(f"{sum(blob.stat().st_size for blob in blobs.glob('*')) / 1e6:.0f} of {total / 1e6:.0f} MB")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def compare(folder: Path, files: Sequence["RepoSibling"]) -> str:
    """What was compared with the hub's own metadata. A file that differs is removed, to be fetched anew, and raises OSError."""
    told = [file for file in files if file.size is not None and (file.lfs or file.blob_id)]
    for file in told:
        path = folder / file.rfilename
        expected = (file.size, file.lfs.sha256 if file.lfs else file.blob_id)
        found = (path.stat().st_size, _sha256(path) if file.lfs else _git_hash(path))
        if found != expected:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise OSError("{} has {} bytes with hash {}; it must have {} with {}".format(file.rfilename, *found, *expected))
    if len(told) < len(files):
        return f"{len(files) - len(told)} of {len(files)} files not compared, for the hub told no hash"
    return f"size and hash of {len(files)} files as on the hub"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_hash(path: Path) -> str:
    """The name that git gives a file by its content, https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
