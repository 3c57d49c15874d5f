"""A GPU's memory and two checkpoints → how much each model gets, and the chunks in one step.

All sizes are computed: weights and cache from the checkpoints, activations from the shapes of the
layers. Nothing here has been measured on a GPU. Knows nothing of vLLM's arguments or of requests.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contract.errors import SettingsError
from contract.settings import Settings
from speech.models.token_limits import (
    AUDIO_TOKENS_PER_SECOND,
    max_request_tokens,
    usual_request_tokens,
)

GIB = 1024**3
BFLOAT16_BYTES = 2
# A step of more than ten chunks of a minute reads more cache than weights, so more chunks gain
# little. On a simulated L4, 128 chunks instead of 64 save 5 % of a long job's time, and a job of
# 5 s beside 16 long ones takes 3.1 s instead of 2.8 s.
STEP_BY_MEMORY = (  # (a GPU's memory in GiB at most, chunks in a step, tokens in a step)
    (20, 32, 4096),
    (32, 64, 8192),
    (64, 128, 8192),
    (float("inf"), 256, 16384),
)
MAX_SHARE = 0.85  # vLLM gets at most this much of a GPU's memory
# Each of the two processes has a CUDA context of about 0.45 GiB. Neither vLLM's share nor PyTorch's
# limit includes it.
CONTEXT_BYTES = GIB // 2
GRAPH_BYTES = GIB // 3  # vLLM's CUDA graphs, by vLLM's own profiles of models of this size
LOGIT_BYTES = 24  # per logit: the sampler's warm-up sorts those of a full step in float32
# The recogniser convolves this many seconds of audio together. The checkpoint's 500 would take
# 3.6 GiB.
RECOGNISER_BLOCKS_CONVOLVED = 128
ALIGNER_BLOCKS_CONVOLVED = 30  # the same for the aligner; see aligner_network.py
MAX_UNITS_PER_SECOND = 10  # words or characters for the aligner; fast Chinese has 7
UNIT_TOKENS = 3  # the aligner's prompt has a unit and two timestamps
FRAGMENTATION = 1.5  # PyTorch's allocator holds more than the tensors it was asked for


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU's memory as a CUDA process sees it: without what the driver keeps for itself."""

    total: int  # bytes
    free: int  # bytes that no process uses


@dataclass(frozen=True, slots=True)
class Allocation:
    """What each model gets of a GPU."""

    max_num_seqs: int  # chunks in one step
    max_num_batched_tokens: int  # tokens in one step
    vllm_share: float  # the share of the card's memory that vLLM may use
    aligner_share: float  # PyTorch's limit in the aligner's process, as a share of the card
    cache_bytes: int  # the size of vLLM's cache

    def cached_chunks(self, model: str, seconds: float) -> int:
        """How many chunks of `seconds` the cache holds."""
        chunk_bytes = usual_request_tokens(seconds) * cache_bytes_per_token(model)
        return self.cache_bytes // chunk_bytes


def allocate(settings: Settings, model: str, aligner: str, card: Card) -> Allocation:
    """The settings; for those that are 0, what suits the card.

    `model`, `aligner`: local folders. Raises SettingsError where the card, or vLLM's share of it,
    is too small.
    """
    sequences, tokens = next(step for gib, *step in STEP_BY_MEMORY if card.total <= gib * GIB)
    sequences = settings.max_num_seqs or sequences
    tokens = settings.max_num_batched_tokens or tokens
    for_aligner = aligner_bytes(aligner, settings.aligner_batch_seconds)
    for_both = card.free - 2 * CONTEXT_BYTES
    default_share = min(MAX_SHARE, max(0, for_both - for_aligner) / card.total)
    share = settings.gpu_memory_utilization or default_share
    fixed = weight_bytes(model) + working_bytes(model, sequences, tokens)
    longest = max_request_tokens(settings.chunk_limit_seconds) * cache_bytes_per_token(model)
    _check_fit(settings, card, share, fixed + longest, for_aligner)
    found = Allocation(
        max_num_seqs=sequences,
        max_num_batched_tokens=tokens,
        vllm_share=share,
        aligner_share=for_both / card.total - share,
        cache_bytes=int(share * card.total) - fixed,
    )
    if settings.max_num_seqs:
        return found
    return _with_cached_chunks(found, model, settings.chunk_target_seconds)


def _with_cached_chunks(allocation: Allocation, model: str, seconds: float) -> Allocation:
    """The same with no more chunks in a step than the cache holds.

    vLLM would throw away the work on the others.
    """
    chunks = max(1, allocation.cached_chunks(model, seconds))
    return replace(allocation, max_num_seqs=min(allocation.max_num_seqs, chunks))


def _check_fit(
    settings: Settings, card: Card, share: float, for_vllm: int, for_aligner: int
) -> None:
    """Raises SettingsError where vLLM would refuse to start, or the aligner would not fit."""
    for_both = card.free - 2 * CONTEXT_BYTES
    needs = (
        f"{settings.model_name} needs {for_vllm / GIB:.1f} GiB and, beside it, "
        f"{settings.aligner_name} {for_aligner / GIB:.1f} GiB"
    )
    if for_vllm + for_aligner > for_both:
        used = card.total - card.free
        of_others = f", of which other programs use {used / GIB:.1f} GiB" if used > GIB / 4 else ""
        raise SettingsError(
            f"The GPU has {card.total / GIB:.1f} GiB of memory{of_others}; {needs}, and the driver "
            f"{2 * CONTEXT_BYTES / GIB:.1f} GiB for both. Choose a larger GPU, or a smaller model."
        )
    gpu = f"GPU_MEMORY_UTILIZATION {share:.2f} of the GPU's {card.total / GIB:.1f} GiB"
    if share * card.total < for_vllm:
        raise SettingsError(
            f"{gpu} is {share * card.total / GIB:.1f} GiB; {settings.model_name} needs "
            f"{for_vllm / GIB:.1f} GiB, so it must be at least {for_vllm / card.total:.2f}."
        )
    if share * card.total + for_aligner > for_both * 1.001:
        left = max(0, for_both - share * card.total)
        raise SettingsError(
            f"{gpu} leaves {left / GIB:.1f} GiB; {settings.aligner_name} needs "
            f"{for_aligner / GIB:.1f} GiB, so it must be at most "
            f"{(for_both - for_aligner) / card.total:.2f}."
        )


def working_bytes(model: str, sequences: int, tokens: int) -> int:
    """What vLLM takes beside weights and cache for a step of the recogniser."""
    config = _thinker_config(model)
    text = config["text_config"]
    convolution = RECOGNISER_BLOCKS_CONVOLVED * block_bytes(config["audio_config"])
    logits: int = sequences * text["vocab_size"] * LOGIT_BYTES
    return convolution + tokens * token_bytes(text) + logits + GRAPH_BYTES


def aligner_bytes(aligner: str, batch_seconds: float) -> int:
    """What the aligner takes for weights and for batches of `batch_seconds` of dense speech."""
    return weight_bytes(aligner) + int(FRAGMENTATION * activation_bytes(aligner, batch_seconds))


def activation_bytes(aligner: str, batch_seconds: float) -> int:
    """The tensors of one batch of the aligner with MAX_UNITS_PER_SECOND."""
    config = _thinker_config(aligner)
    units = batch_seconds * MAX_UNITS_PER_SECOND
    tokens = int(batch_seconds * AUDIO_TOKENS_PER_SECOND + units * UNIT_TOKENS)
    convolution = ALIGNER_BLOCKS_CONVOLVED * block_bytes(config["audio_config"])
    scores = int(2 * units * config.get("classify_num", 0) * BFLOAT16_BYTES)
    return convolution + tokens * token_bytes(config["text_config"]) + scores


def block_bytes(audio: dict[str, Any]) -> int:
    """The tensors of the encoder's convolutions for a second of audio, at their largest.

    The second convolution reads the first one's output (half the mel bands, half the frames) and
    halves both again. cuDNN may copy its input and output for another memory layout.
    """
    frames = 2 * audio["n_window"]
    first: int = audio["downsample_hidden_size"] * (audio["num_mel_bins"] // 2) * (frames // 2)
    second = first // 4
    return 2 * (first + second) * BFLOAT16_BYTES


def token_bytes(text: dict[str, Any]) -> int:
    """The tensors of one token in a layer of the language model, at their largest.

    Attention holds the residual, its norm, queries, keys and values, and copies of both for the
    rotation; the feed-forward part its gate, its input and their product.
    """
    heads = text["num_attention_heads"] + text["num_key_value_heads"] / 2
    attention: int = 4 * text["hidden_size"] + 4 * int(heads * text["head_dim"])
    feed_forward: int = 4 * text["hidden_size"] + 3 * text["intermediate_size"]
    return max(attention, feed_forward) * BFLOAT16_BYTES


def weight_bytes(folder: str) -> int:
    """Size of a checkpoint's weights, which take no more memory than disk."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def cache_bytes_per_token(model: str) -> int:
    """Size of the keys and values of one token in all layers, in bfloat16."""
    text = _thinker_config(model)["text_config"]
    values: int = text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"]
    return 2 * values * BFLOAT16_BYTES


def _thinker_config(folder: str) -> dict[str, Any]:
    config = json.loads((Path(folder) / "config.json").read_text())
    thinker: dict[str, Any] = config["thinker_config"]
    return thinker
