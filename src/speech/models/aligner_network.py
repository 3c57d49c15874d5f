"""The forward pass of Qwen3-ForcedAligner for a batch of clips. Knows no chunks, texts or times.

It calls the modules of qwen-asr's model. The package's own forward pass encodes one clip after
another, leaves out the attention windows of the encoder (QwenLM/Qwen3-ASR#213), and reads lengths
back from the device about 63 times a minute of audio. Here the clips pass the encoder together, and
lengths and positions are computed on the CPU: nothing is read back before the result.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from speech.models.gpu_memory import ALIGNER_BLOCKS_CONVOLVED

if TYPE_CHECKING:
    from torch import Tensor

WINDOWED = "windowed"  # the name under which transformers finds `windowed_attention`


def use_windows(tower: Any) -> None:
    """Make the layers of the audio encoder `tower` attend within the windows of `encode`."""
    from transformers import AttentionInterface

    AttentionInterface.register(WINDOWED, windowed_attention)
    tower.set_attn_implementation(WINDOWED)


def predicted_classes(
    thinker: Any, token_ids: Sequence["Tensor"], spectra: Sequence["Tensor"], timestamp_id: int
) -> "Tensor":
    """The class predicted at each token `timestamp_id`.

    `token_ids`: for each clip (tokens,) int64. `spectra`: for each clip (mel bands, frames) float.
    Both are on the CPU. Returns (timestamps of all clips,) int64, on the device. There is no
    attention mask: attention is causal and the padding comes last, so no token of a clip sees it.
    """
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence(list(token_ids), batch_first=True)
    embeddings = thinker.get_input_embeddings()(ids.to(thinker.device))
    tokens = embeddings.flatten(0, 1)
    audio_positions = _positions(ids, thinker.config.audio_token_id).to(thinker.device)
    tokens = tokens.index_copy(0, audio_positions, encode(thinker.audio_tower, spectra))
    hidden = thinker.model(inputs_embeds=tokens.view_as(embeddings), use_cache=False)
    timestamp_positions = _positions(ids, timestamp_id).to(thinker.device)
    at_timestamps = hidden.last_hidden_state.flatten(0, 1).index_select(0, timestamp_positions)
    return thinker.lm_head(at_timestamps).argmax(dim=-1)


def _positions(ids: "Tensor", token_id: int) -> "Tensor":
    """Where `token_id` stands in the flattened `ids`."""
    return (ids.flatten() == token_id).nonzero().flatten()


def encode(tower: Any, spectra: Sequence["Tensor"]) -> "Tensor":
    """The features of all clips, one after another, on the device.

    `spectra`: for each clip (mel bands, frames) float on the CPU. Returns (audio tokens of all
    clips, size). Every clip is padded with zeros to whole windows of `n_window_infer` frames, which
    hold whole blocks of 2 * `n_window` frames. No other token attends to one of the padding, which
    is left out of the result.
    """
    import torch

    block_frames = 2 * tower.n_window
    blocks = torch.cat([_blocks(mel, block_frames, tower.n_window_infer) for mel in spectra])
    blocks = blocks.to(tower.device, tower.dtype)
    parts = [_convolved(tower, part) for part in blocks.split(ALIGNER_BLOCKS_CONVOLVED)]
    hidden = torch.cat(parts).flatten(0, 1)
    block_tokens = parts[0].shape[1]
    window_tokens = block_tokens * (tower.n_window_infer // block_frames)
    is_audio = torch.cat([_is_audio(mel.shape[1], block_frames, window_tokens) for mel in spectra])
    mask = is_audio[:, None, None].to(tower.device)
    on_the_cpu = torch.tensor([0, len(hidden)])  # the layer takes its maximum, and nothing uses it
    for layer in tower.layers:
        (hidden,) = layer(hidden, on_the_cpu, attention_mask=mask)
    audio_positions = is_audio.flatten().nonzero().flatten().to(tower.device)
    hidden = tower.ln_post(hidden.index_select(0, audio_positions))
    return tower.proj2(tower.act(tower.proj1(hidden)))


def _blocks(mel: "Tensor", block_frames: int, window_frames: int) -> "Tensor":
    """(mel bands, frames) → (blocks, mel bands, block_frames), with zeros up to a whole window."""
    from torch.nn.functional import pad

    padded = pad(mel, (0, -mel.shape[1] % window_frames))
    return padded.unflatten(1, (-1, block_frames)).transpose(0, 1)


def _convolved(tower: Any, blocks: "Tensor") -> "Tensor":
    """(blocks, mel bands, frames) → (blocks, tokens of a block, size), with their positions."""
    from torch.nn.functional import gelu

    convolved = blocks.unsqueeze(1)
    for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
        convolved = gelu(convolution(convolved))
    tokens = tower.conv_out(convolved.permute(0, 3, 1, 2).flatten(2))
    return tokens + tower.positional_embedding(tokens.shape[1]).to(tokens.dtype)


def _is_audio(frames: int, block_frames: int, window_tokens: int) -> "Tensor":
    """(windows, tokens of a window) bool: which tokens of a clip's windows are not padding."""
    import torch
    from qwen_asr.core.transformers_backend.processing_qwen3_asr import (
        _get_feat_extract_output_lengths,
    )

    tokens = _get_feat_extract_output_lengths(frames)
    windows = -(-tokens // window_tokens)
    return (torch.arange(windows * window_tokens) < tokens).view(windows, window_tokens)


def windowed_attention(
    module: Any,
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attention_mask: "Tensor",
    scaling: float,
    **_: object,
) -> tuple["Tensor", None]:
    """Attention within windows, in the signature of transformers' AttentionInterface.

    `query`, `key`, `value`: (1, heads, tokens of all windows, head size). `attention_mask`:
    (windows, 1, 1, tokens of a window) bool, False for padding. Returns (1, tokens of all windows,
    heads, head size), and None in the place of the attention weights.
    """
    from torch.nn.functional import scaled_dot_product_attention

    windows, tokens = attention_mask.shape[0], attention_mask.shape[-1]
    query, key, value = (
        x[0].unflatten(1, (windows, tokens)).transpose(0, 1) for x in (query, key, value)
    )
    attended = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling
    )
    return attended.transpose(1, 2).flatten(0, 1)[None], None
