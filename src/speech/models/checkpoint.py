"""Checks that a folder holds a complete checkpoint that the worker can run.

Checked: the kind of the model, its tokenizer and preprocessor, and that no weights are missing or
cut short. Not checked: the values of the weights. Takes milliseconds, because only the headers of
the weights are read. Knows nothing of where the folder came from.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL_TYPE = "qwen3_asr"  # model_type of both the recogniser and the aligner in config.json
ALIGNER_TYPE = "qwen3_forced_aligner"  # model_type of the aligner in config.json's thinker_config
ATTENTION_KEY = "attn_implementation"  # such keys begin with this, after underscores
# One of these sets of files is enough for a tokenizer.
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


class CheckpointError(Exception):
    """A checkpoint that the worker cannot run; the message names the file and what it must be."""


def verify(folder: Path, role: str) -> None:
    """Raises CheckpointError unless `folder` holds a complete checkpoint for `role`.

    `role`: "recogniser" or "aligner".
    """
    verify_role(folder / "config.json", role)
    verify_tokenizer(folder)
    _json_object(folder / "preprocessor_config.json")
    for path in weight_files(folder):
        verify_safetensors(path)


def verify_role(path: Path, role: str) -> None:
    """Raises CheckpointError for the other role.

    An aligner loads as a recogniser, and the other way round, but its output is nonsense.
    """
    config = _json_object(path)
    verify_no_attention(path, config)
    model_type = config.get("model_type")
    if model_type != MODEL_TYPE:
        raise CheckpointError(f'{path}: model_type is {model_type!r}; it must be "{MODEL_TYPE}".')
    if not isinstance(config.get("thinker_config"), dict):
        raise CheckpointError(f"{path} has no thinker_config; it must hold the sizes of the model.")
    has_timestamps = config.get("timestamp_token_id") is not None
    is_aligner = has_timestamps and _has_aligner_head(config["thinker_config"])
    if role == "aligner" and not is_aligner:
        raise CheckpointError(
            f"{path} is no aligner's; it must have timestamp_token_id, and "
            f'thinker_config.model_type "{ALIGNER_TYPE}" or thinker_config.classify_num.'
        )
    if role == "recogniser" and has_timestamps:
        raise CheckpointError(
            f"{path} is an aligner's; a recogniser must have no timestamp_token_id and no "
            "classify_num."
        )


def verify_no_attention(path: Path, value: object) -> None:
    """Raises CheckpointError for a key that chooses the code of attention, at any depth.

    transformers before 5.3 downloads the code that such a key names and runs it, whatever
    `trust_remote_code` says (CVE-2026-4372). A key with true, false or null names no code: older
    versions of transformers have written `"_attn_implementation_autoset": true` into checkpoints.
    """
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        names_code = item is not None and not isinstance(item, bool)
        if str(key).lstrip("_").startswith(ATTENTION_KEY) and names_code:
            raise CheckpointError(
                f"{path} has the key {key!r}; a checkpoint must not choose the code of attention."
            )
        verify_no_attention(path, item)


def _has_aligner_head(thinker: dict[str, Any]) -> bool:
    return thinker.get("model_type") == ALIGNER_TYPE or bool(thinker.get("classify_num"))


def verify_tokenizer(folder: Path) -> None:
    """Raises CheckpointError unless the folder holds a tokenizer and its configuration."""
    _json_object(folder / "tokenizer_config.json")
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        raise CheckpointError(
            f"{folder} has no tokenizer; it must hold tokenizer.json, or vocab.json and merges.txt."
        )


def weight_files(folder: Path) -> Iterator[Path]:
    """Every safetensors file that the checkpoint declares, whether it exists or not."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        yield folder / "model.safetensors"
        return
    shards = _json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: weight_map must say which file each tensor is in.")
    for name in sorted(set(shards.values())):
        yield folder / name


def verify_safetensors(path: Path) -> None:
    """Raises CheckpointError unless the file has the tensors that its header declares.

    The header declares the length of the file, so that a file cut short is noticed. With the
    framework "numpy" torch is not imported, which the build of the image would have to wait for.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path} is missing; it must hold weights of the checkpoint.")
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} must be a complete safetensors file, but: {error}."
        ) from error


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; every checkpoint must have one.")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} must hold JSON, but: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(value).__name__}.")
    return value
