"""Download the recogniser and the aligner into the hub's cache and check them.

The build of the image does this. Environment variables: MODEL_NAME and ALIGNER_NAME (a hub id, or a
local folder, which is only checked), MODEL_REVISION and ALIGNER_REVISION (a branch, tag or commit),
HF_HOME (the folder of the cache) and HF_TOKEN (only for checkpoints that require one). Unset
variables have the worker's defaults, from src/contract/defaults.py.

A failed download is retried and resumed. Size and hash of every file are compared with the hub's;
src/speech/models/checkpoint.py lists what else a checkpoint must have.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src"
sys.path.insert(0, str(SRC))

from contract import defaults  # noqa: E402
from speech.models.checkpoint import CheckpointError, verify  # noqa: E402
from speech.models.weights import VARIABLES, HubError, WeightsError, fetch, find  # noqa: E402

DEFAULTS = {name: value for name, value in vars(defaults).items() if name.isupper()}


@dataclass(frozen=True, slots=True)
class Model:
    """A model to fetch."""

    role: str  # "recogniser" or "aligner"
    name: str  # hub id or local folder
    revision: str


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    try:
        given = {name: value.strip() for name, value in os.environ.items() if value.strip()}
        for model in models_in(DEFAULTS | given):
            folder, compared = fetch_and_verify(model)
            load_config(folder)
            print(report(model, folder, compared), flush=True)
    except (CheckpointError, HubError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def models_in(environ: Mapping[str, str]) -> list[Model]:
    """The recogniser and the aligner that the environment names."""
    return [
        Model(role, environ[f"{prefix}_NAME"], environ[f"{prefix}_REVISION"])
        for role, prefix in VARIABLES.items()
    ]


def fetch_and_verify(model: Model) -> tuple[Path, str]:
    """(folder of the complete checkpoint, what was compared with the hub).

    Raises CheckpointError, HubError or WeightsError.
    """
    from huggingface_hub import constants

    if Path(model.name).is_dir() or constants.HF_HUB_OFFLINE:
        weights = find(model.role, model.name, model.revision, print)
        return weights.folder, f"{weights.place}, hashes not compared with the hub's"
    try:
        folder, compared = fetch(model.name, model.revision, print)
    except HubError as error:
        asked = f"The {model.role} {model.name}, revision {model.revision},"
        raise HubError(f"{asked} is not available: {error}.") from error
    verify(folder, model.role)
    return folder, compared


def load_config(folder: Path) -> None:
    """Load config.json with the class that the worker uses.

    Does nothing where qwen-asr is not installed. Takes half a minute, because `import qwen_asr`
    imports torch and vLLM. Raises CheckpointError.
    """
    if importlib.util.find_spec("qwen_asr") is None:
        print(
            "qwen-asr is not installed here: config.json is not loaded with its class.",
            file=sys.stderr,
        )
        return
    from qwen_asr.core.transformers_backend import Qwen3ASRConfig

    try:
        Qwen3ASRConfig.from_pretrained(str(folder))
    except Exception as error:
        raise CheckpointError(
            f"{folder / 'config.json'} must load as qwen-asr's Qwen3ASRConfig, but: {error}"
        ) from error


def report(model: Model, folder: Path, compared: str) -> str:
    """One line for the build's log: what is in the image."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    where = (
        "" if folder == Path(model.name) else f" revision {model.revision}, commit {folder.name},"
    )
    return f"{model.role}: {model.name},{where} {size / 1e6:.1f} MB, complete, {compared}"


if __name__ == "__main__":
    sys.exit(main())
