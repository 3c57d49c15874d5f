"""vLLM's CUDA platform without a card: what it makes of the worker's arguments on every card.

    python fake_card.py FOLDER REPORT

FOLDER has the checkpoints 0.6B, 1.7B and aligner. REPORT becomes JSON.

vLLM's Python files are the same in its builds for CPUs and for CUDA, except for the version (see
cuda_wheel.py). So the CPU build shows what a GPU would do, up to the start of the engine's process.
What is replaced is the card, vLLM's look at its own version, kernels that the CPU build lacks, and
the engine's process, each in a function of its own. With the CUDA build first on the path, its own
version and kernels are used.
"""

import asyncio
import json
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

MIB, GIB = 1024**2, 1024**3
# The engine's answer to every chunk, with a special token that a model should not write.
ANSWER = "language English<asr_text>Hello<|audio_pad|> there.<|im_end|>"
NAMES = "iPhone YouTube GitHub GmbH"
CHUNK_SECONDS = (1, 60, 180)
# The first is imported by the CUDA platform, FlashAttention 2 and 3 by the model's class.
COMPILED_MODULES = (
    "vllm._C_stable_libtorch",
    "vllm.vllm_flash_attn._vllm_fa2_C",
    "vllm.vllm_flash_attn._vllm_fa3_C",
)
# The model's class also asks the kernels what quantised weights they multiply. Ours are not.
QUESTIONS_TO_KERNELS = (
    "cutlass_scaled_mm_supports_fp8",
    "cutlass_scaled_mm_supports_block_fp8",
    "cutlass_group_gemm_supported",
)


@dataclass(frozen=True, slots=True)
class FakeCard:
    """A GPU as NVML describes it."""

    name: str
    capability: tuple[int, int]
    mib: int  # all of its memory, in MiB
    visible_gib: float  # what the driver leaves to CUDA's processes, in GiB
    cuda: int = 13000  # the newest CUDA of its driver, as NVML writes it: 12090 is 12.9


CARDS = {
    card.name: card
    for card in (
        FakeCard("RTX A4000", (8, 6), 16376, 15.72),
        FakeCard("RTX 4000 Ada", (8, 9), 20475, 19.67),
        FakeCard("L4", (8, 9), 23034, 22.03),
        FakeCard("RTX 3090", (8, 6), 24576, 23.68),
        FakeCard("RTX 4090", (8, 9), 24564, 23.52),
        FakeCard("RTX 5090", (12, 0), 32607, 31.36),
        FakeCard("A40", (8, 6), 46068, 44.40),
        FakeCard("L40S", (8, 9), 46068, 44.40),
        FakeCard("A100 80GB", (8, 0), 81920, 79.25),
        FakeCard("H100", (9, 0), 81559, 79.19),
        FakeCard("H200", (9, 0), 143771, 139.80),
    )
}
REFUSED_CARDS = {
    "old driver": FakeCard("L4", (8, 9), 23034, 22.03, cuda=11080),
    "old card": FakeCard("T4", (7, 5), 15360, 14.56),
    "small card": FakeCard("RTX A2000", (8, 6), 6138, 5.78),
}


# what is replaced


def insert(card: FakeCard) -> None:
    """Make NVML report `card`: before vLLM chooses its platform, and again for another card."""
    from vllm.third_party import pynvml

    total = card.mib * MIB
    reserved = total - int(card.visible_gib * GIB)
    memory = SimpleNamespace(total=total, free=total - reserved, reserved=reserved, used=0)
    pynvml.nvmlInit = pynvml.nvmlShutdown = lambda: None
    pynvml.nvmlDeviceGetCount = lambda: 1
    pynvml.nvmlDeviceGetHandleByIndex = lambda index: index
    pynvml.nvmlDeviceGetName = lambda handle: f"NVIDIA {card.name}"
    pynvml.nvmlDeviceGetCudaComputeCapability = lambda handle: card.capability
    pynvml.nvmlDeviceGetMemoryInfo = lambda handle, version=None: memory
    pynvml.nvmlSystemGetCudaDriverVersion_v2 = lambda: card.cuda


def has_kernels() -> bool:
    """Whether this vLLM is its build for CUDA."""
    import vllm

    return any(Path(vllm.__path__[0]).glob("_C_stable_libtorch.*"))


def bind_lazily() -> None:
    """Load kernels although the driver's functions are missing, which they look for when called."""
    sys.setdlopenflags(os.RTLD_LAZY)


def hide_cpu_build() -> None:
    """vLLM chooses CUDA where NVML reports a card and the installed version is not one for CPUs."""
    import vllm.platforms

    vllm.platforms.vllm_version_matches_substr = lambda substring: False


def hide_missing_driver() -> None:
    """The worker looks for the driver's library before it imports vLLM. libc is always there."""
    import speech.models.device

    speech.models.device.NVML = "libc.so.6"


def stand_in_for_compiled_modules() -> None:
    """Empty modules for kernels that are imported here, and called only on a GPU."""
    for name in COMPILED_MODULES:
        sys.modules[name] = types.ModuleType(name)
    from vllm import _custom_ops

    for name in QUESTIONS_TO_KERNELS:
        getattr(_custom_ops, name)  # fails where vLLM no longer asks it
        setattr(_custom_ops, name, lambda capability: False)


class Core:
    """In the place of vLLM's connection to its engine's process: answers requests with ANSWER."""

    def __init__(self, vllm_config, **_):
        from vllm.tokenizers import cached_tokenizer_from_config

        self.requests: list[Any] = []
        self.resources = SimpleNamespace(engine_dead=False)
        self._answer = cached_tokenizer_from_config(vllm_config.model_config).encode(ANSWER)
        self._outputs: asyncio.Queue = asyncio.Queue()

    async def get_supported_tasks_async(self):
        return ("generate",)

    async def add_request_async(self, request) -> None:
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

        self.requests.append(request)
        output = EngineCoreOutput(request.request_id, self._answer, finish_reason=FinishReason.STOP)
        self._outputs.put_nowait(EngineCoreOutputs(outputs=[output]))

    async def get_output_async(self):
        return await self._outputs.get()

    def shutdown(self, timeout=None) -> None:
        pass


def replace_engine_process() -> None:
    """Configuration, rendering, checks and detokenising stay real: they are in this process."""
    from vllm.v1.engine.core_client import EngineCoreClient

    EngineCoreClient.make_async_mp_client = Core


def inspect_models_here() -> None:
    """vLLM inspects the model's class in a new process, where nothing would be replaced."""
    import vllm.model_executor.models.registry as registry

    registry._run_in_subprocess = lambda function: function()


def pretend() -> None:
    """Replace all of it. Before anything else asks vLLM for its platform."""
    insert(CARDS["L4"])
    hide_missing_driver()
    if has_kernels():
        bind_lazily()
    else:
        hide_cpu_build()
        stand_in_for_compiled_modules()
    inspect_models_here()
    replace_engine_process()


# what is reported


def options_for(card: FakeCard, model: Path, aligner: Path):
    """The worker's own choice for `card`, as startup.py makes it."""
    from contract.settings import Settings
    from speech.models.device import find_device
    from speech.models.engine_args import plan
    from vllm.platforms import current_platform

    insert(card)
    type(current_platform).get_device_capability.__func__.cache_clear()
    settings = Settings(str(model), str(aligner))
    return plan(settings, str(model), str(aligner), find_device("auto"))


def configuration(card: FakeCard, model: Path, aligner: Path) -> dict[str, Any]:
    """What vLLM makes of the worker's arguments on `card`."""
    from vllm import AsyncEngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.encoder_budget import MultiModalBudget
    from vllm.usage.usage_lib import UsageContext

    options = options_for(card, model, aligner)
    args = AsyncEngineArgs(**options.engine_args())
    config = args.create_engine_config(UsageContext.ENGINE_CONTEXT)
    scheduler = config.scheduler_config
    encoder = MultiModalBudget(config, MULTIMODAL_REGISTRY)
    audio = config.model_config.hf_config.thinker_config.audio_config
    return attention_of(config) | {
        "device": options.device,
        "asked": options.engine_args(),
        "dtype": str(config.model_config.dtype),
        "max_model_len": config.model_config.max_model_len,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "policy": scheduler.policy,
        "chunked_prefill": scheduler.enable_chunked_prefill,
        "prefix_caching": config.cache_config.enable_prefix_caching,
        "gpu_memory_utilization": config.cache_config.gpu_memory_utilization,
        "eager": config.model_config.enforce_eager,
        "graph_sizes": config.compilation_config.cudagraph_capture_sizes,
        "graph_mode": config.compilation_config.cudagraph_mode.name,
        "encoder_tokens": encoder.encoder_compute_budget,
        "encoder_cache_tokens": encoder.encoder_cache_size,
        "conv_chunksize": audio.conv_chunksize,
        "encoder_width": audio.d_model,
        "sampling_defaults": config.model_config.get_diff_sampling_param(),
        "vllms_ids": _tokenized(config.model_config),
        "worker": config.parallel_config.worker_cls,
        "executor": config.parallel_config.distributed_executor_backend,
    }


def attention_of(config) -> dict[str, Any]:
    """The kernels that vLLM would choose for the attention of both parts of the model."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.fa_utils import get_flash_attn_version
    from vllm.v1.attention.selector import AttentionSelectorConfig

    audio = config.model_config.hf_config.thinker_config.audio_config
    head_size, dtype = config.model_config.get_head_size(), config.model_config.dtype
    text = AttentionSelectorConfig(head_size, dtype, kv_cache_dtype="auto", block_size=None)
    encoder_head_size = audio.d_model // audio.encoder_attention_heads
    return {
        "attention": current_platform.get_attn_backend_cls(None, text).rpartition(".")[2],
        "encoder_attention": current_platform.get_vit_attn_backend(encoder_head_size, dtype).name,
        "flash_attention_version": get_flash_attn_version(),
    }


def _tokenized(model_config) -> list[int]:
    """NAMES in the tokenizer that vLLM itself has loaded."""
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model_config).encode(NAMES)


def transcription(recogniser, seconds: float, aligner: Path) -> dict[str, Any]:
    """One chunk on its way to the engine and back. `recogniser` is the worker's own."""
    import torch
    from contract.errors import RecognitionError
    from recording.chunk import SAMPLE_RATE, AudioChunk, waveform
    from transformers import AutoFeatureExtractor

    noise = np.random.default_rng(1).normal(0, 3000, round(seconds * SAMPLE_RATE))
    pcm = noise.clip(-32768, 32767).astype(np.int16)
    chunk = AudioChunk(0, 0, pcm, ((0, len(pcm)),))
    try:
        heard = asyncio.run(recogniser.transcribe(chunk, None, "Names: Tango."))
    except RecognitionError as error:
        return {"failure": repr(error.__cause__)}
    extract = AutoFeatureExtractor.from_pretrained(aligner)
    own = extract(
        waveform(chunk),
        sampling_rate=SAMPLE_RATE,
        padding=True,
        truncation=False,
        return_tensors="pt",
    )["input_features"][0]
    return {
        "text": heard.text,
        "language": heard.language,
        "finish_reason": heard.finish_reason,
        "spectrum_shape": heard.spectrum.shape,
        "spectrum_is_the_aligners": torch.equal(heard.spectrum, own.to(torch.bfloat16)),
        "request": request_of(recogniser._engine.engine_core.requests[-1]),
    }


def request_of(request) -> dict[str, Any]:
    """What the engine's process would be sent."""
    (audio,) = request.mm_features
    features = audio.data["input_audio_features"].data
    sampling = request.sampling_params
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty")
    flags = ("presence_penalty", "seed", "max_tokens", "ignore_eos", "skip_special_tokens")
    return {
        "features_type": str(features.dtype),
        "features_shape": features.shape,
        "audio_tokens": audio.mm_position.length,
        "prompt_token_ids": request.prompt_token_ids,
        "priority": request.priority,
        "stop_ids": sorted(sampling.all_stop_token_ids),
        "sampling": {name: getattr(sampling, name) for name in (*names, *flags)},
    }


def transcriptions(model: Path, aligner: Path) -> list[dict[str, Any]]:
    """A chunk of each of CHUNK_SECONDS on an L4."""
    from speech.models.recogniser import Recogniser

    recogniser = Recogniser(options_for(CARDS["L4"], model, aligner))
    recogniser.wait_until_ready()
    try:
        return [transcription(recogniser, seconds, aligner) for seconds in CHUNK_SECONDS]
    finally:
        recogniser.close()


def environment() -> dict[str, Any]:
    """What vLLM would do in the engine's process because of the worker's variables."""
    from vllm.usage.usage_lib import is_usage_stats_enabled
    from vllm.utils.system_utils import get_mp_context

    return {
        "sampler": sampler(),
        "usage_statistics": is_usage_stats_enabled(),
        "start_method": get_mp_context().get_start_method(),
    }


def sampler() -> str:
    """The name of the sampler that vLLM would use, or of the package that it lacks."""
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    try:
        return TopKTopPSampler().forward.__name__
    except ImportError as error:
        return f"{type(error).__name__}: {error.name}"


def default_sampler() -> str:
    """The same, were it not for the worker's variable."""
    os.environ.pop("VLLM_USE_FLASHINFER_SAMPLER", None)
    return sampler()


def refusal(card: FakeCard, model: Path, aligner: Path) -> str:
    """The worker's sentence about a card that it cannot use."""
    from contract.errors import SettingsError

    try:
        options_for(card, model, aligner)
    except SettingsError as error:
        return str(error)
    return ""


def main(folder: Path, output: Path) -> None:
    pretend()
    import torch

    aligner = folder / "aligner"
    models = {name: folder / name for name in ("0.6B", "1.7B")}
    report = {
        "transcriptions": {name: transcriptions(path, aligner) for name, path in models.items()},
        "configurations": {
            name: {card: configuration(CARDS[card], path, aligner) for card in CARDS}
            for name, path in models.items()
        },
        "own_kernels": has_kernels(),
        "environment": environment(),
        "default_sampler": default_sampler(),
        "refusals": {
            name: refusal(card, models["0.6B"], aligner) for name, card in REFUSED_CARDS.items()
        },
        "cuda_is_initialized": torch.cuda.is_initialized(),
    }
    output.write_text(json.dumps(report))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
    main(Path(sys.argv[1]), Path(sys.argv[2]))
