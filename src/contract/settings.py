"""Environment → one frozen `Settings`, checked before anything starts. The worker's other modules do not read its variables."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from contract.defaults import ALIGNER_NAME, ALIGNER_REVISION, MODEL_NAME, MODEL_REVISION
from contract.errors import SettingsError

log = logging.getLogger(
    __name__
)  # the standard library's: this module does not import RunPod's SDK
ALIGNER_LIMIT_SECONDS = 180  # the longest audio that Qwen3-ForcedAligner aligns reliably


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting; the environment variable is the field's name in capitals."""

    model_name: str = MODEL_NAME  # a hub id or a local folder
    aligner_name: str = ALIGNER_NAME
    model_revision: str = MODEL_REVISION
    aligner_revision: str = ALIGNER_REVISION
    device: str = "auto"  # "cuda", "cpu" (vLLM's CPU build: float32, no graphs) or "auto", the one that is available
    dtype: str = "auto"  # "bfloat16", "float32", or "auto": bfloat16 on a GPU, float32 on a CPU
    chunk_target_seconds: float = 60
    chunk_limit_seconds: float = ALIGNER_LIMIT_SECONDS
    vad_mode: int = 2  # webrtcvad's aggressiveness: 0 detects the most speech, 3 the least
    max_audio_seconds: float = 36_000
    max_download_bytes: int = 2 * 1024**3
    allow_local_files: bool = (
        False  # audio_url may be a path on this machine: only if every client may read every file
    )
    download_timeout_seconds: float = 600  # for the whole file, with redirects and retries
    max_concurrency: int = 0  # jobs at once; 0: by the engine's capacity
    max_num_seqs: int = 0  # chunks in one engine step; 0, here and in the next two: by the GPU's memory, see engine.py
    max_num_batched_tokens: int = 0  # tokens in one engine step
    gpu_memory_utilization: float = 0  # vLLM's share; the aligner needs the rest
    aligner_batch_seconds: float = 480  # audio in one aligner batch
    chunk_timeout_seconds: float = (
        600  # for one call of the engine or the aligner, with the wait in its queue
    )
    shutdown_timeout_seconds: float = 300  # for the running jobs, after SIGTERM
    max_result_bytes: int = (
        9_500_000  # of JSON; RunPod takes 10 MB and drops larger results silently
    )
    bucket_endpoint_url: str = (
        ""  # with the two keys: where results over max_result_bytes are stored
    )
    bucket_access_key_id: str = ""
    bucket_secret_access_key: str = field(default="", repr=False)
    bucket_name: str = ""  # "": month and year, as in the SDK
    worker_version: str = "dev"  # shown in a result's usage; the image's build sets it

    def __post_init__(self) -> None:
        low_high = {
            "chunk_limit_seconds": (2, ALIGNER_LIMIT_SECONDS),
            "chunk_target_seconds": (1, ALIGNER_LIMIT_SECONDS),
            "vad_mode": (0, 3),
            "max_audio_seconds": (1, 7 * 86_400),
            "max_download_bytes": (1, 2**40),
            "download_timeout_seconds": (1, 86_400),
            "max_concurrency": (0, 1000),
            "max_num_seqs": (0, 10_000),
            "max_num_batched_tokens": (0, 2**20),
            "gpu_memory_utilization": (0, 0.95),
            "aligner_batch_seconds": (1, 10_000),
            "chunk_timeout_seconds": (1, 86_400),
            "shutdown_timeout_seconds": (0, 86_400),
            "max_result_bytes": (10_000, 2**30),
        }
        for name, (low, high) in low_high.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingsError(
                    f"{name.upper()} is {value:.16g}; it must be from {low:.16g} to {high:.16g}."
                )
        if self.device not in ("auto", "cuda", "cpu"):
            raise SettingsError(f"DEVICE is {self.device!r}; it must be 'auto', 'cuda' or 'cpu'.")
        if self.dtype not in ("auto", "bfloat16", "float32"):
            raise SettingsError(
                f"DTYPE is {self.dtype!r}; it must be 'auto', 'bfloat16' or 'float32'."
            )
        bucket = ("bucket_endpoint_url", "bucket_access_key_id", "bucket_secret_access_key")
        missing = [name.upper() for name in bucket if not getattr(self, name)]
        if missing and len(missing) < len(bucket):
            raise SettingsError(
                f"{missing[0]} is not set; a bucket needs all of {', '.join(map(str.upper, bucket))}."
            )


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Settings from environment variables; an empty value counts as not set.

    A chunk target above the chunk limit is lowered to it with a warning, because RunPod's Hub page lets users change only one.
    Raises SettingsError with the variable's name, its value and what is accepted.
    """
    given = {f.name: environ.get(f.name.upper(), "").strip() for f in fields(Settings)}
    settings = Settings(
        **{f.name: _parse(f.type, f.name, given[f.name]) for f in fields(Settings) if given[f.name]}
    )
    target, limit = settings.chunk_target_seconds, settings.chunk_limit_seconds
    if target > limit:
        log.warning(
            "CHUNK_TARGET_SECONDS is %.16g, above CHUNK_LIMIT_SECONDS; it is lowered to %.16g.",
            target,
            limit,
        )
        settings = replace(settings, chunk_target_seconds=limit)
    return settings


def _parse(kind: type, name: str, value: str) -> str | int | float | bool:
    try:
        return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError):
        expected = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise SettingsError(f"{name.upper()} is {value!r}; it must be {expected}.") from None
