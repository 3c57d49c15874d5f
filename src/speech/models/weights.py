"""Finds the files of a model.

`find` takes the first place with a complete checkpoint. In this order: a local folder, the image,
RunPod's cached models, the hub's cache, the hub. The hub is asked only if no other place has one,
so that a start with weights in the image does not depend on it. huggingface_hub reads its own
environment variables: HF_HOME (the folder of its cache), HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.

The image's layer with the weights is built from this file, checkpoint.py and
builder/fetch_models.py, so it imports nothing else of the worker.
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

from speech.models.checkpoint import CheckpointError, verify

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

BAKED = Path("/models/hub")  # where the Dockerfile puts the weights; outside of mounted volumes
# See https://docs.runpod.io/serverless/endpoints/model-caching
CACHED_BY_RUNPOD = Path("/runpod-volume/huggingface-cache/hub")
PAUSES_SECONDS = (2, 8, 30)  # the pause before each retry of the hub
METADATA_SECONDS = 30  # the hub lists the files of a model in this time
PROGRESS_SECONDS = 10  # the time between two log lines of a download
VARIABLES = {"recogniser": "MODEL", "aligner": "ALIGNER"}  # role → prefix of its settings
MEGABYTE = 1e6


class WeightsError(Exception):
    """A model that is not available.

    The message names it, the places that were searched and what to do.
    """


class HubError(Exception):
    """The hub did not deliver a model; the message says why."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A complete checkpoint on this machine."""

    folder: Path
    place: str  # a description for the log
    commit: str = ""  # the commit of the hub's repository; "" for a local folder

    def __str__(self) -> str:
        return f"commit {self.commit}, {self.place}" if self.commit else self.place


def find(
    role: str,
    name: str,
    revision: str,
    log: Callable[[str], None],
    baked: Path = BAKED,
    cached: Path = CACHED_BY_RUNPOD,
) -> Weights:
    """The checkpoint of a model.

    `role`: "recogniser" or "aligner". `name`: a local folder or a hub id. `revision`: a branch, tag
    or commit. `log` gets lines about a download. Raises WeightsError if no place has a complete
    checkpoint.
    """
    from huggingface_hub import constants

    if Path(name).is_dir():
        return _local(role, name)
    misses = ["no such local folder"]
    caches = {
        baked: "baked into the image",
        cached: "of RunPod's cached models",
        Path(constants.HF_HUB_CACHE): "in the hub's cache",
    }
    for cache, place in caches.items():
        miss = f"not in {cache}"
        for folder in snapshots(cache, name, revision):
            try:
                _verify_snapshot(folder, role)
                return Weights(folder, place, folder.name)
            except CheckpointError as error:
                miss = f"incomplete in {cache}, {_clause(error)}"
        misses.append(miss)
    try:
        folder, _ = fetch(name, revision, log)
        verify(folder, role)
    except (HubError, CheckpointError) as error:
        reasons = "; ".join([*misses, _clause(error)])
        variable = VARIABLES[role]
        raise WeightsError(
            f"The {role} {name}, revision {revision}, is not available: {reasons}. Set "
            f"{variable}_NAME and {variable}_REVISION to a model that is available or to a local "
            "folder, or build an image with this one."
        ) from error
    return Weights(folder, "fetched from the hub", folder.name)


def _clause(error: Exception) -> str:
    """The error's sentence, to stand within another one."""
    return str(error).rstrip(".")


def _local(role: str, name: str) -> Weights:
    try:
        verify(Path(name), role)
    except CheckpointError as error:
        variable = f"{VARIABLES[role]}_NAME"
        raise WeightsError(
            f"{variable} names the folder {name}, which holds no complete {role}: {error}"
        ) from error
    return Weights(Path(name), "a local folder")


def snapshots(cache: Path, name: str, revision: str) -> Iterator[Path]:
    """Folders of that revision in a cache of the hub's layout, complete or not.

    Case does not count, because RunPod's cache has names in lower case. A cache without refs/main
    has its one snapshot as `main`. Does not use the network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = f"models--{name.replace('/', '--')}"
    for repository in sorted(cache.glob("models--*"), key=lambda path: path.name != wanted):
        if repository.name.lower() != wanted.lower():
            continue
        cased = repository.name.removeprefix("models--").replace("--", "/")
        try:
            folder = snapshot_download(
                cased, revision=revision, cache_dir=cache, local_files_only=True
            )
            yield Path(folder)
        except LocalEntryNotFoundError:
            present = list((repository / "snapshots").glob("*"))
            if revision == "main" and len(present) == 1:
                yield present[0]


def _verify_snapshot(folder: Path, role: str) -> None:
    """Raises CheckpointError also where a file that `verify` does not need is incomplete."""
    verify(folder, role)
    partial = sorted((folder.parent.parent / "blobs").glob("*.incomplete"))
    if partial:
        raise CheckpointError(f"{partial[0]} is an incomplete download.")


def fetch(name: str, revision: str, log: Callable[[str], None]) -> tuple[Path, str]:
    """Download the model into the hub's cache and compare every file with the hub's size and hash.

    Returns (folder, what was compared). Retries after each of PAUSES_SECONDS and resumes partial
    files. Raises HubError.
    """
    for pause in PAUSES_SECONDS:
        try:
            return _fetched(name, revision, log)
        except _Transient as error:
            log(f"{error}; retry in {pause} s")
            time.sleep(pause)
    return _fetched(name, revision, log)


class _Transient(HubError):
    """The hub may deliver the model at another attempt."""


def _fetched(name: str, revision: str, log: Callable[[str], None]) -> tuple[Path, str]:
    """One attempt of `fetch`. Raises HubError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = constants.ENDPOINT
    try:
        return _fetch_once(name, revision, log)
    except OfflineModeIsEnabled as error:
        raise HubError("the hub was not asked, because HF_HUB_OFFLINE is set") from error
    except HFValidationError as error:
        raise HubError("this is not a valid name of a model on the hub") from error
    except RepositoryNotFoundError as error:
        raise HubError(f"{hub} has no such model, or requires another HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{hub} has the model, but not this revision") from error
    except (OSError, ValueError, RuntimeError) as error:
        # The connection or the disk failed, a response was broken, or hf_xet failed.
        raise _Transient(f"{hub} did not deliver it, {_root_cause(error)}") from error


def _root_cause(error: BaseException) -> str:
    """The first error of a chain, on one line.

    requests and urllib3 each wrap it in a longer one.
    """
    while error.__context__:
        error = error.__context__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _fetch_once(name: str, revision: str, log: Callable[[str], None]) -> tuple[Path, str]:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()  # they fill a log; _log_progress takes their place
    began = time.monotonic()
    info = HfApi().model_info(
        name, revision=revision, files_metadata=True, timeout=METADATA_SECONDS
    )
    files = info.siblings or []
    total = sum(file.size or 0 for file in files)
    cache = constants.HF_HUB_CACHE
    log(
        f"fetching {name}, commit {info.sha}, {total / MEGABYTE:.0f} MB, "
        f"from {constants.ENDPOINT} into {cache}"
    )
    blobs = Path(cache, f"models--{name.replace('/', '--')}", "blobs")
    with _log_progress(blobs, total, log):
        folder = Path(snapshot_download(name, revision=revision))
    if folder.name != info.sha:
        raise OSError(
            f"revision {revision} changed from {info.sha} to {folder.name} during the download"
        )
    compared = compare(folder, files)
    log(f"fetched {name} in {time.monotonic() - began:.0f} s, {compared}")
    return folder, compared


@contextmanager
def _log_progress(blobs: Path, total: int, log: Callable[[str], None]) -> Iterator[None]:
    """Log the size of the folder every PROGRESS_SECONDS."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(PROGRESS_SECONDS):
            with suppress(FileNotFoundError):  # a file was renamed after it was listed
                present = sum(blob.stat().st_size for blob in blobs.glob("*"))
                log(f"{present / MEGABYTE:.0f} of {total / MEGABYTE:.0f} MB")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def compare(folder: Path, files: Sequence["RepoSibling"]) -> str:
    """Compare the files with the hub's metadata; returns what was compared.

    A file that differs is removed. Raises OSError where one differs.
    """
    comparable = [file for file in files if file.size is not None and (file.lfs or file.blob_id)]
    for file in comparable:
        path = folder / file.rfilename
        expected = (file.size, file.lfs.sha256 if file.lfs else file.blob_id)
        found = (path.stat().st_size, _sha256(path) if file.lfs else _git_hash(path))
        if found != expected:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise OSError(
                f"{file.rfilename} has {found[0]} bytes with hash {found[1]}; "
                f"it must have {expected[0]} with {expected[1]}"
            )
    others = len(files) - len(comparable)
    if others:
        return f"{others} of {len(files)} files not compared, because the hub gave no hash"
    return f"size and hash of {len(files)} files as on the hub"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_hash(path: Path) -> str:
    """The id that git gives to the content of a file.

    See https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    """
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
