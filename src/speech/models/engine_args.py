"""Settings and device → vLLM's arguments for Qwen3-ASR, each with its reason.

`plan` chooses what the settings leave open. `EngineOptions.engine_args` is everything that vLLM is
given. Knows nothing of requests.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import SettingsError
from contract.settings import Settings
from speech.models.gpu_memory import RECOGNISER_BLOCKS_CONVOLVED, Card, allocate
from speech.models.token_limits import max_prompt_tokens, max_request_tokens

STEP_ON_CPU = (128, 8192)  # chunks and tokens in one step
SHARE_ON_CPU = 0.3  # on a CPU vLLM requires a share of the free memory as well
ENVIRONMENT = {
    # On CUDA vLLM would fork its process: from a thread, and with Python's garbage collector off
    # for the whole life of the child. On a CPU it spawns it, so both devices take the same path.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "HF_HUB_OFFLINE": "1",  # both models are local folders
    # FlashInfer compiles its sampler at the first start with nvcc, which a machine without the CUDA
    # toolkit lacks (vllm#49497, vllm#50705). It serves top-k and top-p, which are never used here.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",  # vLLM would report each start to its makers
}
IMAGE_CACHE = Path("/var/cache/vllm")  # VLLM_CACHE_ROOT in the image, filled by the build
# Threads that compute spectra. One computes 1500 x real time, and more than two wait for the GIL.
RENDERERS = 2
# Numbers of chunks for which vLLM captures CUDA graphs. Its own fifty take most of a start.
CAPTURE_SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of one engine, and what the aligner beside it gets."""

    model: str  # local folder
    device: str  # "cuda" or "cpu"
    dtype: str  # "bfloat16" or "float32", of both models
    max_chunk_seconds: float
    max_num_seqs: int  # chunks in one step
    max_num_batched_tokens: int  # tokens in one step
    gpu_memory_utilization: float  # vLLM's share of the GPU's memory
    aligner_share: float = 1.0  # the share of the GPU's memory for the aligner's tensors

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request.

        vLLM's cache must hold at least one such request; the model's own 65536 would be too many.
        """
        return max_request_tokens(self.max_chunk_seconds)

    @property
    def step_tokens(self) -> int:
        """Tokens in one step, which must hold the longest prompt.

        vLLM's default of 2048 rejects audio over 157 s (vllm#39408). The answer comes token by
        token in later steps.
        """
        return max(self.max_num_batched_tokens, max_prompt_tokens(self.max_chunk_seconds))

    def engine_args(self) -> dict[str, Any]:
        """Arguments of vLLM's AsyncEngineArgs."""
        on_gpu = self.device == "cuda"
        smaller = [size for size in CAPTURE_SIZES if size < self.max_num_seqs]
        graphs = dict(cudagraph_capture_sizes=[*smaller, self.max_num_seqs])
        audio_config = {"conv_chunksize": RECOGNISER_BLOCKS_CONVOLVED}
        return dict(
            model=self.model,
            dtype=self.dtype,
            enforce_eager=not on_gpu,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.step_tokens,
            gpu_memory_utilization=self.gpu_memory_utilization,
            hf_overrides={"thinker_config": {"audio_config": audio_config}},
            limit_mm_per_prompt={"audio": 1},
            # Early chunks come first, so that short recordings do not wait for long ones.
            scheduling_policy="priority",
            enable_prefix_caching=False,  # no input is repeated
            mm_processor_cache_gb=0,
            renderer_num_workers=RENDERERS,
            disable_log_stats=True,
            skip_mm_profiling=not on_gpu,  # it measures GPU memory, and on a CPU only takes time
            **(graphs if on_gpu else {}),
        )


def plan(settings: Settings, model: str, aligner: str, card: Card | None) -> EngineOptions:
    """The settings; for those that are 0 or "auto", what suits the GPU.

    `card`: the GPU, or None on a CPU. `model`, `aligner`: local folders. Raises SettingsError where
    the GPU, or vLLM's share of it, is too small.
    """
    dtype = _dtype(settings.dtype, on_gpu=card is not None)
    sizes = _on_gpu(settings, model, aligner, card) if card else _on_cpu(settings)
    return EngineOptions(
        model=model,
        device="cuda" if card else "cpu",
        dtype=dtype,
        max_chunk_seconds=settings.chunk_limit_seconds,
        **sizes,
    )


def _dtype(wanted: str, on_gpu: bool) -> str:
    """The memory of a GPU is planned for bfloat16; on a CPU float32 is the faster one."""
    if on_gpu and wanted == "float32":
        raise SettingsError(
            "DTYPE is 'float32', which is for CPUs; on a GPU it must be 'auto' or 'bfloat16'."
        )
    if wanted == "auto":
        return "bfloat16" if on_gpu else "float32"
    return wanted


def _on_gpu(settings: Settings, model: str, aligner: str, card: Card) -> dict[str, Any]:
    allocation = allocate(settings, model, aligner, card)
    return dict(
        max_num_seqs=allocation.max_num_seqs,
        max_num_batched_tokens=allocation.max_num_batched_tokens,
        gpu_memory_utilization=round(allocation.vllm_share, 3),
        aligner_share=allocation.aligner_share,
    )


def _on_cpu(settings: Settings) -> dict[str, Any]:
    sequences, tokens = STEP_ON_CPU
    return dict(
        max_num_seqs=settings.max_num_seqs or sequences,
        max_num_batched_tokens=settings.max_num_batched_tokens or tokens,
        gpu_memory_utilization=settings.gpu_memory_utilization or SHARE_ON_CPU,
    )


def copy_model_info(cache: Path, source_cache: Path = IMAGE_CACHE) -> None:
    """Copy vLLM's description of the model's class from the image to `cache`.

    `cache` may be on a network volume. Without it the first start with that volume takes 11 s
    longer: a subprocess imports all of vLLM to describe the class.
    """
    for source in (source_cache / "modelinfos").glob("*.json"):
        with suppress(OSError):  # a cache that cannot be written to only costs time
            _copy(source, cache / "modelinfos" / source.name)


def _copy(source: Path, target: Path) -> None:
    """Copy a file in one step, because other workers may read the same volume."""
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(target)
