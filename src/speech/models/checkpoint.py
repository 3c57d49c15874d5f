"""Checks that a folder holds a complete checkpoint that the worker can run. Knows nothing of where it came from.

Checked: the kind of the model, its tokenizer, preprocessor and chat template, and that no weights are missing or cut short. Not
checked: the values of the weights. Takes milliseconds, because only the headers of the weights are read.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

MODEL_TYPE = "qwen3_asr"  # model_type of both the recogniser and the aligner in config.json
ALIGNER_TYPE = "qwen3_forced_aligner"  # model_type of the aligner in config.json's thinker_config
ATTENTION_KEY = "attn_implementation"  # such keys begin with this, after underscores
LENGTH_BYTES = (
    8  # a safetensors file is: the header's length, little-endian; the header, in JSON; the tensors
)
TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
)  # one of these sets of files is enough


class CheckpointError(Exception):
    """A checkpoint that the worker cannot run; the message names the file and what it must be."""


def verify(folder: Path, role: str) -> None:
    """Raises CheckpointError unless `folder` holds a complete checkpoint for `role`, "recogniser" or "aligner"."""
    verify_role(folder / "config.json", role)
    verify_tokenizer(folder)
    _json_object(folder / "preprocessor_config.json")
    if role == "recogniser":  # the aligner's prompt uses no chat template
        verify_chat_template(folder)
    for path in weight_files(folder):
        verify_safetensors(path)


def verify_role(path: Path, role: str) -> None:
    """Raises CheckpointError for the other role: an aligner loads as a recogniser, and the other way round, but its output is nonsense."""
    config = _json_object(path)
    verify_no_attention(path, config)
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f'{path}: model_type is {config.get("model_type")!r}; it must be "{MODEL_TYPE}".'
        )
    if not isinstance(config.get("thinker_config"), dict):
        raise CheckpointError(f"{path} has no thinker_config; it must hold the sizes of the model.")
    is_aligner = _is_aligner(config)
    if role == "aligner" and not is_aligner:
        raise CheckpointError(
            f'{path} is no aligner\'s; it must have timestamp_token_id, and thinker_config.model_type "{ALIGNER_TYPE}"'
            " or thinker_config.classify_num."
        )
    if role == "recogniser" and (is_aligner or config.get("timestamp_token_id") is not None):
        raise CheckpointError(
            f"{path} is an aligner's; a recogniser must have no timestamp_token_id and no classify_num."
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


def _is_aligner(config: dict) -> bool:
    thinker = config["thinker_config"]
    has_head = thinker.get("model_type") == ALIGNER_TYPE or bool(thinker.get("classify_num"))
    return has_head and config.get("timestamp_token_id") is not None


def verify_tokenizer(folder: Path) -> None:
    _json_object(folder / "tokenizer_config.json")
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        raise CheckpointError(
            f"{folder} has no tokenizer; it must hold tokenizer.json, or vocab.json and merges.txt."
        )


def verify_chat_template(folder: Path) -> None:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return
    if not _json_object(folder / "tokenizer_config.json").get("chat_template"):
        raise CheckpointError(
            f"{folder} has no chat template; it must be in chat_template.jinja, chat_template.json or tokenizer_config.json."
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
    yield from (folder / name for name in sorted(set(shards.values())))


def verify_safetensors(path: Path) -> None:
    """Raises CheckpointError unless the file has the length that its header declares: one cut short does not."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; it must hold weights of the checkpoint.")
    size, expected = path.stat().st_size, safetensors_length(path)
    if size != expected:
        raise CheckpointError(f"{path} has {size} bytes; by its header it must have {expected}.")


def safetensors_length(path: Path) -> int:
    """Bytes of a complete file by its header, a JSON object: name → dtype, shape, data_offsets.

    Source of the format: https://huggingface.co/docs/safetensors/index#format
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(LENGTH_BYTES))
            if length > path.stat().st_size:
                raise ValueError(f"its header of {length} bytes does not fit in")
            header = json.loads(file.read(length))
        ends = [
            int(tensor["data_offsets"][1])
            for name, tensor in header.items()
            if name != "__metadata__"
        ]
    except (struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} must begin with the header of a safetensors file, but: {error}."
        ) from error
    return LENGTH_BYTES + length + max(ends, default=0)


def _json_object(path: Path) -> dict:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; every checkpoint must have one.")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} must hold JSON, but: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(value).__name__}.")
    return value
