"""Store a trained checkpoint in a small form: bfloat16 weights, and a config without default
values.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

COPIED = (".json", ".txt", ".jinja")  # the processor's files and the configs
GENERATION_DEFAULTS = [
    "bad_words_ids",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
]
MODEL_DEFAULTS = [
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "finetuning_task",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "prefix",
    "problem_type",
    "pruned_heads",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torchscript",
    "use_bfloat16",
]
DEFAULTS = frozenset(GENERATION_DEFAULTS + MODEL_DEFAULTS)


def export(source: Path, target: Path) -> None:
    """Write `target` (made if need be) from a folder of train.py.

    Raises FileNotFoundError where that is incomplete.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in COPIED:
            shutil.copy(file, target)
    tensors = load_file(source / "model.safetensors")
    halves = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    save_file(halves, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(slim(config), indent=2))


def slim(config: dict) -> dict:
    """The config of a float32 model as that of its bfloat16 copy."""
    slimmed = _without_defaults(config) | {
        "architectures": config["architectures"],
        "dtype": "bfloat16",
    }
    thinker = slimmed["thinker_config"]
    thinker["dtype"] = "bfloat16"
    if thinker.get("classify_num"):  # save_pretrained writes the class attribute instead
        thinker["model_type"] = "qwen3_forced_aligner"
    return slimmed


def _without_defaults(config: dict) -> dict:
    kept = {key: value for key, value in config.items() if key not in DEFAULTS}
    return {
        key: _without_defaults(value) if isinstance(value, dict) else value
        for key, value in kept.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trained", type=Path, help="a folder of train.py")
    parser.add_argument("out", type=Path, help="the folder to write")
    a = parser.parse_args()
    export(a.trained, a.out)
    print(
        a.out,
        (a.out / "model.safetensors").stat().st_size // 1024,
        "KiB",
        sorted(f.name for f in a.out.iterdir()),
    )


if __name__ == "__main__":
    main()
