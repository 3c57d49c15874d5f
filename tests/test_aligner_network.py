"""The aligner's forward pass against that of qwen-asr's package, its windows, its memory, and what
it reads back.
"""

import contextlib
import json
import os
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import speech.models.aligner_network as aligner_network
import torch
from material import CHINESE, ENGLISH, chunk_of
from qwen_asr import Qwen3ForcedAligner
from qwen_asr.core.transformers_backend.processing_qwen3_asr import _get_feat_extract_output_lengths
from real_models import config_of
from recording.chunk import SAMPLE_RATE, waveform
from speech.models.aligner_network import WINDOWED, encode, predicted_classes, use_windows
from speech.models.gpu_memory import BFLOAT16_BYTES, activation_bytes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SECONDS = (1, 3.21, 7.99, 8, 8.01, 16, 28.3)
LONGER_THAN_A_WINDOW = (8.01, 16, 28.3, 60)


@pytest.fixture(scope="module")
def package() -> Qwen3ForcedAligner:
    """The package's aligner with the tiny checkpoint, in float32."""
    folder = os.environ["ALIGNER_NAME"]
    loaded = Qwen3ForcedAligner.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    use_windows(loaded.model.thinker.audio_tower)
    return loaded


@pytest.fixture
def tower(package):
    return package.model.thinker.audio_tower


def spectrum(package, pool, seconds: float) -> torch.Tensor:
    """(128, 100 * seconds) of utterances one after another."""
    pcm = np.resize(np.concatenate([u.pcm for u in pool]), round(seconds * SAMPLE_RATE))
    wave = pcm.astype(np.float32) / 32768
    extract = package.processor.feature_extractor
    inputs = extract(wave, sampling_rate=SAMPLE_RATE, padding=False, return_tensors="pt")
    return inputs.input_features[0]


def encoded(tower, *spectra: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return encode(tower, spectra)


def full_attention(tower, mel: torch.Tensor) -> torch.Tensor:
    """The features as the package computes them: without windows."""
    tower.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            return tower(mel, feature_lens=torch.tensor([mel.shape[1]])).last_hidden_state
    finally:
        tower.set_attn_implementation(WINDOWED)


@contextlib.contextmanager
def the_packages_own_mask(tower) -> Iterator[None]:
    """The package makes this mask for attention that does not read `cu_seqlens`, and never applies
    it.
    """

    def with_mask(_, args, kwargs):
        mask = tower._prepare_attention_mask(kwargs["hidden_states"], kwargs["cu_seqlens"])
        return args, kwargs | {"attention_mask": mask}

    attentions = [layer.self_attn for layer in tower.layers]
    hooks = [a.register_forward_pre_hook(with_mask, with_kwargs=True) for a in attentions]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# the encoder


def test_the_features_of_the_first_8_s_do_not_change_with_what_is_said_after_second_20(
    package, tower
):
    one, other = spectrum(package, ENGLISH[:20], 40), spectrum(package, CHINESE[:20], 40)
    spliced = torch.cat([one[:, :2000], other[:, 2000:]], dim=1)
    assert torch.equal(encoded(tower, one)[:104], encoded(tower, spliced)[:104])
    without = full_attention(tower, one)[:104], full_attention(tower, spliced)[:104]
    assert not torch.allclose(*without, atol=1e-3)


@pytest.mark.parametrize("seconds", [1, 3.21, 7.99, 8])
def test_a_clip_of_one_window_has_the_features_of_the_package(package, tower, seconds):
    mel = spectrum(package, ENGLISH[:4], seconds)
    assert torch.allclose(encoded(tower, mel), full_attention(tower, mel), atol=1e-4)


@pytest.mark.parametrize("seconds", LONGER_THAN_A_WINDOW)
def test_the_windows_are_those_of_the_packages_own_mask(package, tower, seconds):
    mel = spectrum(package, ENGLISH[:40], seconds)
    with the_packages_own_mask(tower):
        masked = full_attention(tower, mel)
    assert torch.allclose(encoded(tower, mel), masked, atol=1e-4)


def test_the_features_of_a_clip_do_not_depend_on_the_clips_beside_it(package, tower):
    """Half a second as well, which the package convolves without the padding of longer clips."""
    clips = [spectrum(package, ENGLISH[:20], seconds) for seconds in (0.5, *SECONDS)]
    alone = torch.cat([encoded(tower, mel) for mel in clips])
    assert torch.allclose(encoded(tower, *clips), alone, atol=1e-4)


def test_the_number_of_blocks_convolved_together_changes_no_feature(package, tower, monkeypatch):
    """The checkpoint's own number is 500."""
    mel = spectrum(package, ENGLISH[:40], 60)
    by_30 = encoded(tower, mel)
    monkeypatch.setattr(aligner_network, "ALIGNER_BLOCKS_CONVOLVED", 500)
    assert torch.allclose(encoded(tower, mel), by_30, atol=1e-5)


# the whole forward pass


def inputs_of(package, utterances) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(token ids, spectra) as the package's processor makes them."""
    ids, spectra = [], []
    for u in utterances:
        _, prompt = package.aligner_processor.encode_timestamp(u.text, u.language)
        wave = waveform(chunk_of(u.pcm))
        made = package.processor(text=[prompt], audio=[wave], return_tensors="pt")
        ids.append(made["input_ids"][0])
        spectra.append(made["input_features"][0])
    return ids, spectra


def test_the_classes_of_a_batch_are_those_of_the_package_for_each_clip_alone(package):
    thinker, pool = package.model.thinker, [*ENGLISH[:10], *CHINESE[:10]]
    ids, spectra = inputs_of(package, pool)
    with torch.inference_mode():
        ours = predicted_classes(thinker, ids, spectra, package.timestamp_token_id)
        theirs = []
        for token_ids, mel in zip(ids, spectra):
            frames = torch.ones(1, mel.shape[1], dtype=torch.long)
            inputs = dict(
                input_ids=token_ids[None], input_features=mel[None], feature_attention_mask=frames
            )
            with the_packages_own_mask(thinker.audio_tower):
                thinker.audio_tower.set_attn_implementation("sdpa")
                logits = thinker(**inputs, attention_mask=torch.ones_like(token_ids[None])).logits[
                    0
                ]
                thinker.audio_tower.set_attn_implementation(WINDOWED)
            theirs.append(logits[token_ids == package.timestamp_token_id].argmax(-1))
    assert torch.equal(ours, torch.cat(theirs))


@pytest.fixture
def without_autocast(monkeypatch):
    """The package's rotary embedding turns autocast off, which torch does not know for the meta
    device.
    """
    monkeypatch.setattr(torch, "autocast", lambda **_: contextlib.nullcontext())


def test_nothing_is_read_back_from_the_device_before_the_result(package, without_autocast):
    """On the meta device tensors have no values: every read of one raises."""
    ids, spectra = inputs_of(package, [*ENGLISH[:3], *CHINESE[:3]])
    thinker = Qwen3ForcedAligner.from_pretrained(
        os.environ["ALIGNER_NAME"], dtype=torch.bfloat16, device_map="cpu"
    ).model.thinker.to("meta")
    use_windows(thinker.audio_tower)
    with torch.inference_mode():
        classes = predicted_classes(thinker, ids, spectra, package.timestamp_token_id)
        assert classes.device.type == "meta"
        assert len(classes) == sum((i == package.timestamp_token_id).sum() for i in ids)
        with pytest.raises(Exception, match="meta"):  # the package's own pass reads lengths
            tower = thinker.audio_tower
            tower(spectra[0].to("meta"), feature_lens=torch.tensor([800], device="meta"))


class Operations(TorchDispatchMode):
    """Counts torch's operations that are no views: on a GPU each is a kernel or a copy."""

    VIEWS = (
        "view slice select squeeze transpose permute expand split unbind alias detach as_strided"
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_view = any(view in str(function) for view in self.VIEWS.split())
        self.count += not is_view
        return function(*args, **(kwargs or {}))


def test_a_batch_of_sixteen_clips_takes_a_fraction_of_the_packages_operations(package):
    """The package encodes clip by clip."""
    thinker = package.model.thinker
    ids, spectra = inputs_of(package, [ENGLISH[0]] * 16)
    together = dict(input_ids=torch.stack(ids), input_features=torch.stack(spectra))
    frames = torch.ones(16, spectra[0].shape[1], dtype=torch.long)
    with torch.inference_mode(), Operations() as ours:
        predicted_classes(thinker, ids, spectra, package.timestamp_token_id)
    thinker.audio_tower.set_attn_implementation("sdpa")
    with torch.inference_mode(), Operations() as theirs:
        attended = torch.ones_like(together["input_ids"])
        thinker(**together, attention_mask=attended, feature_attention_mask=frames).logits.argmax(
            -1
        )
    thinker.audio_tower.set_attn_implementation(WINDOWED)
    print(f"\noperations of a batch of 16 clips: {ours.count}, the package {theirs.count}")
    assert ours.count < theirs.count / 3


# memory


class LiveBytes(TorchDispatchMode):
    """The bytes of all tensors that live at the same time on the meta device."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def attention_without_its_matrix(query, key, value, **_):
    """What a fused kernel allocates.

    On the meta device torch would take the one that is not fused.
    """
    return torch.empty_like(query)


@pytest.fixture(scope="module")
def real_aligner(tmp_path_factory):
    """(folder with the configuration of the real aligner, its thinker without weights)."""
    from qwen_asr.core.transformers_backend import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration

    folder = tmp_path_factory.mktemp("real-aligner")
    (folder / "config.json").write_text(json.dumps(config_of("aligner")))
    with torch.device("meta"):
        config = Qwen3ASRConfig.from_pretrained(folder)
        model = Qwen3ASRForConditionalGeneration(config).to(torch.bfloat16)
    use_windows(model.thinker.audio_tower)
    return folder, model.eval().thinker


@pytest.mark.parametrize("clips, seconds", [(16, 30), (8, 60), (2, 180)])
def test_a_batch_of_the_real_aligner_takes_the_memory_that_is_set_aside(
    real_aligner, without_autocast, monkeypatch, clips, seconds
):
    folder, thinker = real_aligner
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", attention_without_its_matrix
    )
    audio, timestamp = thinker.config.audio_token_id, 151_705
    units = [100, timestamp, timestamp] * (10 * seconds)
    tokens = _get_feat_extract_output_lengths(100 * seconds)
    ids = [torch.tensor([audio] * tokens + units)] * clips
    spectra = [torch.zeros(128, 100 * seconds)] * clips
    live = LiveBytes()
    with torch.inference_mode(), live:
        predicted_classes(thinker, ids, spectra, timestamp)
    set_aside = activation_bytes(str(folder), clips * seconds)
    print(f"{clips} x {seconds} s: {live.peak / 2**30:.2f} GiB of {set_aside / 2**30:.2f}")
    assert set_aside / 3 < live.peak <= set_aside
    assert thinker.dtype.itemsize == BFLOAT16_BYTES
