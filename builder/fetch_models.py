"""Put the recogniser and the aligner into the hub's cache and check what arrived, before an image with it is shipped.

The environment says which: MODEL_NAME and ALIGNER_NAME (a hub id or a local folder, which is only checked),
MODEL_REVISION and ALIGNER_REVISION (a branch, tag or commit), HF_HOME (where the cache is) and HF_TOKEN (only for
checkpoints that ask for one). What it doesn't say has the worker's default, from src/settings.py.

A broken download is tried again and goes on where it was cut off. Size and hash of every file are compared with the
hub's; src/checkpoint.py says what else a checkpoint must have.
"""

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src"
sys.path.insert(0, str(SRC))

from checkpoint import CheckpointError, verify  # noqa: E402
from weights import VARIABLES, HubError, WeightsError, fetch, find  # noqa: E402


@dataclass(frozen=True, slots=True)
class Model:
    """What to fetch, and as what."""

    role: str  # "recogniser" or "aligner"
    name: str  # hub id or local folder
    revision: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        for model in wanted(defaults(SRC / "settings.py") | {k: v.strip() for k, v in os.environ.items() if v.strip()}):
            folder, compared = get(model)
            load_config(folder)
            print(report(model, folder, compared), flush=True)
    except (CheckpointError, HubError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def defaults(settings: Path) -> dict[str, str]:
    """MODEL_NAME and so on → the worker's default. Read as text: the Dockerfile keeps just these lines of the file."""
    lines = re.findall(r'^    ((?:model|aligner)_(?:name|revision)): str = "(.+?)"', settings.read_text(), re.MULTILINE)
    return {name.upper(): value for name, value in lines}


def wanted(environ: Mapping[str, str]) -> list[Model]:
    """Recogniser and aligner, as the environment names them."""
    return [Model(role, environ[f"{prefix}_NAME"], environ[f"{prefix}_REVISION"]) for role, prefix in VARIABLES.items()]


def get(model: Model) -> tuple[Path, str]:
    """(folder of the complete checkpoint, what was compared with the hub). Raises CheckpointError, HubError or WeightsError."""
    from huggingface_hub import constants

    if Path(model.name).is_dir() or constants.HF_HUB_OFFLINE:
        weights = find(model.role, model.name, model.revision, print)
        return weights.folder, f"{weights.place}, hashes not compared with the hub's"
    try:
        folder, compared = fetch(model.name, model.revision, print)
    except HubError as error:
        raise HubError(f"The {model.role} {model.name}, revision {model.revision}, is not available: {error}.") from error
    verify(folder, model.role)
    return folder, compared


def load_config(folder: Path) -> None:
    """The configuration through the class that will load it; skipped where qwen-asr is not installed.

    Takes half a minute where it is, for `import qwen_asr` brings torch and vLLM.
    """
    if importlib.util.find_spec("qwen_asr") is None:
        print("qwen-asr is not installed here: its configuration class is not tried.", file=sys.stderr)
        return
    from qwen_asr.core.transformers_backend import Qwen3ASRConfig

    try:
        Qwen3ASRConfig.from_pretrained(str(folder))
    except Exception as error:
        raise CheckpointError(f"{folder / 'config.json'} must load as qwen-asr's Qwen3ASRConfig, but: {error}") from error


def report(model: Model, folder: Path, compared: str) -> str:
    """One line for the build's log: what went into the image."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    where = "" if folder == Path(model.name) else f" revision {model.revision}, commit {folder.name},"
    return f"{model.role}: {model.name},{where} {size / 1e6:.1f} MB, complete, {compared}"


if __name__ == "__main__":
    sys.exit(main())
