"""Checkpoints of the tiny or the true shape with random weights: speed does not depend on what a model has learned."""

import json
import shutil
from pathlib import Path

import torch
from qwen_asr.core.transformers_backend import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
from safetensors.torch import save_file

TINY = Path(__file__).parent.parent / "models"  # tokenizer and processor come from there
# The published 0.6B shapes; the aligner has the larger encoder.
TRUE_TEXT = dict(
    hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
    vocab_size=151_936, max_position_embeddings=65_536, rope_theta=1e6,
)  # fmt: skip
TRUE_AUDIO = dict(encoder_layers=18, num_hidden_layers=18, d_model=896, encoder_attention_heads=14, encoder_ffn_dim=3584, downsample_hidden_size=480, output_dim=1024)
TRUE_ALIGNER_AUDIO = TRUE_AUDIO | dict(encoder_layers=24, num_hidden_layers=24, d_model=1024, encoder_attention_heads=16, encoder_ffn_dim=4096)
SPREAD = 0.02  # standard deviation of the weights


def build(out: Path, true_shape: bool) -> tuple[Path, Path]:
    """(recogniser, aligner): folders in `out`, of the published 0.6B shapes or of the tiny ones."""
    folders = []
    for name, audio in (("asr", TRUE_AUDIO), ("aligner", TRUE_ALIGNER_AUDIO)):
        folder = out / name
        shutil.copytree(TINY / name, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        path = folder / "config.json"
        config = json.loads(path.read_text())
        if true_shape:
            thinker = config["thinker_config"]
            thinker["audio_config"] |= audio
            thinker["text_config"] |= TRUE_TEXT
            thinker["text_config"]["rope_scaling"]["mrope_section"] = [24, 20, 20]
            path.write_text(json.dumps(config, indent=2))
        _fill(folder)
        folders.append(folder)
    return folders[0], folders[1]


def _fill(folder: Path) -> None:
    """Random weights; zeros for the embeddings of tokens that the tokenizer does not know, so that they are never generated."""
    known = len(json.loads((folder / "vocab.json").read_text())) + len(json.loads((folder / "added_tokens.json").read_text()))
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in Qwen3ASRForConditionalGeneration(Qwen3ASRConfig.from_pretrained(folder)).state_dict().items()}
    generator, tensors = torch.Generator().manual_seed(0), {}
    config = json.loads((folder / "config.json").read_text())["thinker_config"]
    for name, shape in shapes.items():
        if name.endswith("lm_head.weight") and not config.get("classify_num"):
            continue  # tied to the embeddings
        if name.endswith("norm.weight") or "layer_norm" in name or name.endswith("ln_post.weight"):
            tensors[name] = torch.ones(shape, dtype=torch.bfloat16) * (not name.endswith("bias"))
            continue
        tensors[name] = (torch.randn(shape, generator=generator) * SPREAD).to(torch.bfloat16)
        if name.endswith("embed_tokens.weight"):
            tensors[name][known:] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
