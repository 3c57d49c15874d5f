"""A small model in the exact layout of Qwen3-ASR or Qwen3-ForcedAligner, and the forward pass that
trains it.

transformers 4.57.6, qwen-asr 0.0.6. qwen-asr's own forward encodes one clip at a time; `encode`
here is the same computation over a batch.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from qwen_asr.core.transformers_backend import (
    Qwen3ASRConfig,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
)
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2TokenizerFast, WhisperFeatureExtractor
from utterance import SAMPLE_RATE

SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role']=='system' %}<|im_start|>system\n{% if m['content'] is string %}{{ "
    "m['content'] }}"
    "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif "
    "%}<|im_end|>\n{% endif %}"
    "{% if m['role']=='user' %}<|im_start|>user\n{% for c in m['content'] %}"
    "{% if c['type']=='audio' %}<|audio_start|><|audio_pad|><|audio_end|>{% elif 'text' in "
    "c %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BLOCK, BLOCK_TOKENS = 100, 13  # mel frames (1 s) encoded at a time, and the audio tokens they give
# vLLM has an attention window; qwen-asr's SDPA path attends over the whole clip.
WINDOW = 8 * BLOCK_TOKENS
CLASSES = 5000  # the aligner's classes of time
CLASS_SECONDS = 0.08
VOCABULARY = 420  # pieces learned; with the special tokens, rounded up to 448

Mels = list[np.ndarray]  # each (128, frames) float16, 100 frames a second


def new(
    out: str, texts: list[str], aligner: bool
) -> tuple[Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor]:
    """A tokenizer learned from `texts`, random weights. Writes the processor's files to `out`."""
    processor = _processor(Path(out), texts)
    config = _config(processor.tokenizer, aligner)
    model = Qwen3ASRForConditionalGeneration(config)
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = config.eos_token_id, config.pad_token_id
    generation.do_sample = False
    return model, processor


def _config(tokenizer: Qwen2TokenizerFast, aligner: bool) -> Qwen3ASRConfig:
    token = tokenizer.convert_tokens_to_ids
    thinker = dict(
        audio_config=_audio_config(),
        text_config=_text_config(len(tokenizer), aligner),
        dtype="float32",
        user_token_id=0,
        audio_token_id=token("<|audio_pad|>"),
        audio_start_token_id=token("<|audio_start|>"),
        audio_end_token_id=token("<|audio_end|>"),
        model_type="qwen3_forced_aligner" if aligner else "qwen3_asr",
    )
    # The head is untied, or transformers ties it to the embeddings and drops it from the file.
    if aligner:
        thinker |= dict(classify_num=CLASSES, tie_word_embeddings=False)
    config = Qwen3ASRConfig(
        thinker_config=thinker,
        support_languages=["English", "Chinese"],
        timestamp_token_id=token("<timestamp>") if aligner else None,
        timestamp_segment_time=round(1000 * CLASS_SECONDS) if aligner else None,
    )
    if aligner:
        config.tie_word_embeddings = False
    config.architectures = ["Qwen3ASRForConditionalGeneration"]
    config.eos_token_id = [token("<|im_end|>"), token("<|endoftext|>")]
    config.pad_token_id = token("<|endoftext|>")
    return config


def _text_config(tokens: int, aligner: bool) -> dict:
    return dict(
        vocab_size=-(-tokens // 64) * 64,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4 if aligner else 3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        hidden_act="silu",
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        attention_bias=False,
        tie_word_embeddings=not aligner,
        rope_scaling=dict(
            interleaved=True,
            mrope_interleaved=True,
            mrope_section=[6, 5, 5],
            rope_type="default",
            type="default",
        ),
    )


def _audio_config() -> dict:
    return dict(
        num_mel_bins=128,
        encoder_layers=4,
        encoder_attention_heads=4,
        encoder_ffn_dim=512,
        d_model=128,
        dropout=0.0,
        attention_dropout=0.0,
        activation_function="gelu",
        activation_dropout=0.0,
        scale_embedding=False,
        max_source_positions=1500,
        n_window=50,
        output_dim=192,
        n_window_infer=800,
        conv_chunksize=500,
        downsample_hidden_size=32,
    )


def save(model: Qwen3ASRForConditionalGeneration, out: str) -> None:
    """Into the folder `out`. save_pretrained writes the class's default model type over the
    aligner's, which would then load with a recogniser's head.
    """
    model.save_pretrained(out)
    path = Path(out, "config.json")
    config = json.loads(path.read_text())
    if config["thinker_config"].get("classify_num"):
        config["thinker_config"]["model_type"] = "qwen3_forced_aligner"
        path.write_text(json.dumps(config, indent=2))


def load(checkpoint: str) -> tuple[Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor]:
    """A checkpoint in float32, and its processor."""
    model = Qwen3ASRForConditionalGeneration(Qwen3ASRConfig.from_pretrained(checkpoint)).float()
    take_weights(model, checkpoint)
    return model, Qwen3ASRProcessor.from_pretrained(checkpoint)


def take_weights(model: torch.nn.Module, checkpoint: str) -> None:
    """Every tensor of the checkpoint that fits by name and shape: for an aligner, all of a
    recogniser's but the head.
    """
    own = model.state_dict()
    stored = load_file(f"{checkpoint}/model.safetensors")
    fitting = {k: v.float() for k, v in stored.items() if k in own and own[k].shape == v.shape}
    missing, _ = model.load_state_dict(fitting, strict=False)
    print(f"{len(fitting)} tensors from {checkpoint}; not in it: {missing}")


def _processor(out: Path, texts: list[str]) -> Qwen3ASRProcessor:
    out.mkdir(parents=True, exist_ok=True)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    (out / "vocab.json").write_text(json.dumps(learned["vocab"], ensure_ascii=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in learned["merges"]]
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    tokenizer = Qwen2TokenizerFast(
        vocab_file=str(out / "vocab.json"),
        merges_file=str(out / "merges.txt"),
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token=None,
        additional_special_tokens=SPECIALS[1:],
        extra_special_tokens=dict(
            audio_token="<|audio_pad|>",
            audio_bos_token="<|audio_start|>",
            audio_eos_token="<|audio_end|>",
        ),
    )
    tokenizer.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in ("<asr_text>", "<timestamp>")]
    )
    features = WhisperFeatureExtractor(
        feature_size=128,
        sampling_rate=SAMPLE_RATE,
        hop_length=160,
        chunk_length=30,
        n_fft=400,
        return_attention_mask=True,
        padding_value=0.0,
    )
    processor = Qwen3ASRProcessor(
        feature_extractor=features, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE
    )
    processor.save_pretrained(out)
    return processor


def mel(processor: Qwen3ASRProcessor, pcm: np.ndarray) -> np.ndarray:
    """(128, frames) float16 log-mel of mono int16 at SAMPLE_RATE, 100 frames a second."""
    x = pcm.astype(np.float32) / 32768
    features = processor.feature_extractor(
        x, sampling_rate=SAMPLE_RATE, padding=True, truncation=False, return_tensors="np"
    )
    return features["input_features"][0].astype(np.float16)


def audio_tokens(frames: int) -> int:
    """How many tokens the encoder makes of this number of mel frames."""
    return frames // BLOCK * BLOCK_TOKENS + _halved(frames % BLOCK)


def _halved(frames: int) -> int:
    for _ in range(3):  # three convolutions of stride 2
        frames = (frames + 1) // 2
    return frames


def token_times(count: int) -> np.ndarray:
    """Seconds at the middle of each audio token:

    13 to the second, 80 ms each, the last of a second only 40.
    """
    k = np.arange(count)
    return k // BLOCK_TOKENS + (k % BLOCK_TOKENS + 0.5) * CLASS_SECONDS


def encode(model, mels: Mels, windowed: bool) -> torch.Tensor:
    """All audio tokens of all clips, one after another:

    (tokens, hidden). `windowed`: attention as in vLLM.
    """
    tower = model.thinker.audio_tower
    counts = torch.tensor([audio_tokens(m.shape[1]) for m in mels])
    valid = torch.arange(int(counts.max()))[None] < counts[:, None]  # (clips, tokens)
    flat = _convolve(tower, mels)
    h = flat.new_zeros(*valid.shape, flat.shape[-1]).masked_scatter(valid.unsqueeze(-1), flat)
    h = _attend(tower, h, _attention_mask(valid, windowed))
    return tower.proj2(F.gelu(tower.proj1(tower.ln_post(h))))[valid]


def _convolve(tower, mels: Mels) -> torch.Tensor:
    """(tokens, d_model) of all clips, a second at a time, with positions that begin again each
    second.
    """
    blocks = [m[:, s : s + BLOCK] for m in mels for s in range(0, m.shape[1], BLOCK)]
    lengths = [_halved(b.shape[1]) for b in blocks]
    padded = np.stack([np.pad(b, ((0, 0), (0, BLOCK - b.shape[1]))) for b in blocks])
    x = torch.from_numpy(padded.astype(np.float32)).unsqueeze(1)
    for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
        x = F.gelu(convolution(x))
    x = tower.conv_out(x.permute(0, 3, 1, 2).flatten(2))
    x = x + tower.positional_embedding.positional_embedding[: x.shape[1]]
    return torch.cat([b[:n] for b, n in zip(x, lengths)])


def _attention_mask(valid: torch.Tensor, windowed: bool) -> torch.Tensor:
    mask = valid[:, None, None, :].expand(-1, 1, valid.shape[1], -1)
    if windowed:
        window = torch.arange(valid.shape[1]) // WINDOW
        mask = mask & (window[:, None] == window) | torch.eye(valid.shape[1], dtype=torch.bool)
    return mask


def _attend(tower, h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    heads = tower.config.encoder_attention_heads
    for layer in tower.layers:
        y, a = layer.self_attn_layer_norm(h), layer.self_attn
        q, k, v = (
            p(y).unflatten(-1, (heads, -1)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj)
        )
        h = h + a.out_proj(
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        )
        h = h + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(h))))
    return h


def decode(model, audio: torch.Tensor, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Hidden states (batch, tokens, hidden), the audio tokens of `encode` in the places of
    <|audio_pad|>.

    ids and attention (1 for a token, 0 for padding): (batch, tokens).
    """
    thinker = model.thinker
    e = thinker.model.embed_tokens(ids)
    e = e.masked_scatter((ids == thinker.config.audio_token_id).unsqueeze(-1), audio)
    positions = torch.arange(ids.shape[1])[None, None].expand(3, len(ids), -1)
    return thinker.model(
        inputs_embeds=e, attention_mask=attention, position_ids=positions, use_cache=False
    )[0]
