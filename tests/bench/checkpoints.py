"""Checkpoints of the tiny or the true shape with random weights: the shape makes the speed."""

import json
import math
import shutil
from pathlib import Path

import torch
from qwen_asr.core.transformers_backend import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
from safetensors.torch import save_file

TINY = Path(__file__).parent.parent / "models"  # tokenizer and processor come from there
# The published 0.6B shapes. The aligner has the larger encoder and another vocabulary.
TRUE_TEXT = dict(
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151_936,
    max_position_embeddings=65_536,
    rope_theta=1e6,
)
TRUE_AUDIO = dict(
    encoder_layers=18,
    num_hidden_layers=18,
    d_model=896,
    encoder_attention_heads=14,
    encoder_ffn_dim=3584,
    downsample_hidden_size=480,
    output_dim=1024,
)
TRUE_ALIGNER_TEXT = TRUE_TEXT | dict(vocab_size=152_064, max_position_embeddings=8192)
TRUE_ALIGNER_AUDIO = TRUE_AUDIO | dict(
    encoder_layers=24,
    num_hidden_layers=24,
    d_model=1024,
    encoder_attention_heads=16,
    encoder_ffn_dim=4096,
)
TRUE = {"asr": (TRUE_AUDIO, TRUE_TEXT), "aligner": (TRUE_ALIGNER_AUDIO, TRUE_ALIGNER_TEXT)}
SPREAD = 0.02  # standard deviation of the weights
# Random values that are drawn; larger tensors repeat them, because to draw 1.7 billion takes
# most of a minute. The number is odd, so that no two rows of a matrix begin at the same value.
POOL = (1 << 24) + 1


def build(out: Path, true_shape: bool) -> tuple[Path, Path]:
    """(recogniser, aligner): folders in `out`, of the published 0.6B shapes or of the tiny ones.

    Folders that an earlier call has completed are used again.
    """
    pool = (torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * SPREAD).to(
        torch.bfloat16
    )
    for name in TRUE:
        if not (out / name / "model.safetensors").exists():
            _copy_configuration(name, out / name, true_shape)
            _fill(out / name, pool)
    return out / "asr", out / "aligner"


def _copy_configuration(name: str, folder: Path, true_shape: bool) -> None:
    shutil.copytree(
        TINY / name, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True
    )
    if not true_shape:
        return
    path = folder / "config.json"
    config = json.loads(path.read_text())
    thinker, (audio, text) = config["thinker_config"], TRUE[name]
    thinker["audio_config"] |= audio
    thinker["text_config"] |= text
    thinker["text_config"]["rope_scaling"]["mrope_section"] = [24, 20, 20]
    path.write_text(json.dumps(config, indent=2))


def _fill(folder: Path, pool: torch.Tensor) -> None:
    """Write random weights.

    The embeddings of tokens that the tokenizer does not know are zero: they are never generated.
    """
    vocabularies = [
        json.loads((folder / name).read_text()) for name in ("vocab.json", "added_tokens.json")
    ]
    known = sum(map(len, vocabularies))
    has_classes = bool(
        json.loads((folder / "config.json").read_text())["thinker_config"].get("classify_num")
    )
    tensors, first = {}, 0
    for name, shape in _shapes(folder).items():
        if name.endswith("lm_head.weight") and not has_classes:
            continue  # tied to the embeddings
        tensors[name] = _norm(name, shape) if _is_norm(name) else _random(shape, pool, first)
        first += math.prod(shape)
        if name.endswith("embed_tokens.weight"):
            tensors[name][known:] = 0
    partial = folder / "partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.rename(folder / "model.safetensors")


def _shapes(folder: Path) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = Qwen3ASRForConditionalGeneration(Qwen3ASRConfig.from_pretrained(folder))
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _is_norm(name: str) -> bool:
    return name.endswith(("norm.weight", "ln_post.weight")) or "layer_norm" in name


def _norm(name: str, shape: torch.Size) -> torch.Tensor:
    return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)


def _random(shape: torch.Size, pool: torch.Tensor, first: int) -> torch.Tensor:
    """(shape) bfloat16: values of the pool, from about `first` on; a larger tensor repeats them."""
    count = math.prod(shape)
    if count > len(pool):
        return pool.repeat(-(-count // len(pool)))[:count].clone().reshape(shape)
    first %= len(pool) - count + 1
    return pool[first : first + count].clone().reshape(shape)
