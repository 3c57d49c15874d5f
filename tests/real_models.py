"""The real checkpoints' tokenizer and configurations, without their weights.

The vocabulary is Qwen's own, which the package dashscope carries. Its added tokens and the sizes
are those that the authors published; the encoder of the 1.7B model is the aligner's.
`write_checkpoints` writes all of it, with weights that are empty files of the real size.
"""

import base64
import itertools
import json
import shutil
import struct
from importlib.metadata import distribution
from pathlib import Path

MODELS = Path(__file__).parent / "models"

FIRST_ADDED_ID = 151643
ADDED_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>"),
    *("</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>"),
    *("</think>", "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>"),
    *("<tts_text_eod>", "<tts_text_bos_single>", "<non_speech>", "<|audio_pad|>"),
    *(f"<blank{i}>" for i in range(1, 28)),
    *("<asr_text>", "<timestamp>"),
)
# Added and not special: a decoder that skips special tokens leaves these in the text.
NOT_SPECIAL = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>", "<non_speech>", "<asr_text>", "<timestamp>"),
)
TOKENIZER_CONFIG = {
    "tokenizer_class": "Qwen2Tokenizer",
    "processor_class": "Qwen3ASRProcessor",
    "model_max_length": 131072,
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "unk_token": None,
    "add_bos_token": False,
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "split_special_tokens": False,
    "errors": "replace",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
    "audio_token": "<|audio_pad|>",
    "extra_special_tokens": {
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
        "audio_token": "<|audio_pad|>",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    },
}

AUDIO_0_6B = {
    "model_type": "qwen3_asr_audio_encoder",
    "d_model": 896,
    "encoder_layers": 18,
    "num_hidden_layers": 18,
    "encoder_attention_heads": 14,
    "encoder_ffn_dim": 3584,
    "downsample_hidden_size": 480,
    "output_dim": 1024,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "n_window": 50,
    "n_window_infer": 800,
    "conv_chunksize": 500,
    "activation_function": "gelu",
    "activation_dropout": 0,
    "attention_dropout": 0,
    "dropout": 0,
    "initializer_range": 0.02,
    "scale_embedding": False,
    "tie_word_embeddings": True,
}
AUDIO_1_7B = AUDIO_0_6B | {
    "d_model": 1024,
    "encoder_layers": 24,
    "num_hidden_layers": 24,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "output_dim": 2048,
}
ROPE = {
    "interleaved": True,
    "mrope_interleaved": True,
    "mrope_section": [24, 20, 20],
    "rope_type": "default",
    "type": "default",
}
TEXT_0_6B = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 65536,
    "rope_theta": 1000000,
    "rope_scaling": ROPE,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "use_cache": True,
}
TEXT_1_7B = TEXT_0_6B | {"hidden_size": 2048, "intermediate_size": 6144}
AUDIO = {
    "0.6B": AUDIO_0_6B,
    "1.7B": AUDIO_1_7B,
    "aligner": AUDIO_1_7B | {"output_dim": 1024, "tie_word_embeddings": False},
}
TEXT = {
    "0.6B": TEXT_0_6B,
    "1.7B": TEXT_1_7B,
    "aligner": TEXT_0_6B
    | {"vocab_size": 152064, "tie_word_embeddings": False, "max_position_embeddings": 8192},
}
WEIGHT_BYTES = {"0.6B": 1_876_000_000, "1.7B": 4_698_000_000, "aligner": 1_835_000_000}


def write_checkpoints(folder: Path) -> None:
    """Write folder/0.6B, folder/1.7B and folder/aligner: 15 MB in some seconds."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    write_tokenizer(tokenizer)
    for kind in WEIGHT_BYTES:
        (folder / kind).mkdir()
        write_layout(folder / kind, kind, tokenizer)


def write_tokenizer(folder: Path) -> None:
    """Write the real tokenizer's vocab.json, merges.txt and tokenizer_config.json."""
    ranks = _published_ranks()
    printable = _printable_bytes()
    vocabulary = {_printed(token, printable): rank for token, rank in ranks.items()}
    merges = [
        " ".join(_printed(part, printable) for part in _last_merge(token, ranks))
        for token in sorted(ranks, key=ranks.__getitem__)
        if len(token) > 1
    ]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    config = TOKENIZER_CONFIG | {"added_tokens_decoder": _added_tokens()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_layout(folder: Path, kind: str, tokenizer: Path) -> None:
    """Write every file of a checkpoint but real weights, which are a sparse file of the real size.

    `kind` is "0.6B", "1.7B" or "aligner". `tokenizer` is a folder of `write_tokenizer`.
    """
    (folder / "config.json").write_text(json.dumps(config_of(kind), indent=1))
    generation = {"do_sample": False, "eos_token_id": [151643, 151645], "pad_token_id": 151643}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    for name in ("preprocessor_config.json", "chat_template.jinja"):
        shutil.copy(MODELS / "asr" / name, folder)
    _write_weights(folder / "model.safetensors", WEIGHT_BYTES[kind])


def _write_weights(file: Path, size: int) -> None:
    """A sparse file with one tensor of `size` bytes: vLLM reads its header, the worker its size."""
    tensor = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}
    header = json.dumps({"weight": tensor}).encode()
    with open(file, "wb") as weights:
        weights.write(struct.pack("<Q", len(header)) + header)
        weights.truncate(weights.tell() + size)


def config_of(kind: str) -> dict:
    """The contents of config.json of the checkpoint `kind`."""
    thinker = {
        "model_type": "qwen3_asr",
        "architectures": ["Qwen3ASRForConditionalGeneration"],
        "dtype": "bfloat16",
        "audio_start_token_id": 151669,
        "audio_end_token_id": 151670,
        "audio_token_id": 151676,
        "initializer_range": 0.02,
        "audio_config": AUDIO[kind],
        "text_config": TEXT[kind],
    }
    config = {
        "model_type": "qwen3_asr",
        "architectures": ["Qwen3ASRForConditionalGeneration"],
        "transformers_version": "4.57.6",
        "support_languages": ["Chinese", "English"],
        "thinker_config": thinker,
    }
    if kind == "aligner":
        thinker |= {"model_type": "qwen3_forced_aligner", "classify_num": 5000}
        config |= {"timestamp_token_id": 151705, "timestamp_segment_time": 80}
    return config


def _published_ranks() -> dict[bytes, int]:
    """Token → rank, in the order in which the vocabulary's tokens were merged."""
    file = distribution("dashscope").locate_file("dashscope/resources/qwen.tiktoken")
    pairs = (line.split() for line in Path(str(file)).read_text().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _printable_bytes() -> dict[int, str]:
    """Byte → the character that stands for it in vocab.json and merges.txt, as GPT-2 chose them."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    replacements = itertools.count(256)
    return {byte: chr(byte if byte in kept else next(replacements)) for byte in range(256)}


def _printed(token: bytes, printable: dict[int, str]) -> str:
    return "".join(printable[byte] for byte in token)


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts that make `token`: what is left of its bytes after all merges of lower rank."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        first = min(range(len(joined)), key=joined.__getitem__)
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


def _added_tokens() -> dict[str, dict]:
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {
        str(token_id): {"content": token, "special": token not in NOT_SPECIAL} | flags
        for token_id, token in enumerate(ADDED_TOKENS, FIRST_ADDED_ID)
    }
