"""Environment → one frozen `Settings`, checked before anything starts.

The worker's other modules do not read its variables.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from contract.defaults import ALIGNER_NAME, ALIGNER_REVISION, MODEL_NAME, MODEL_REVISION
from contract.errors import SettingsError
from contract.languages import ALIGNED_LANGUAGES

log = logging.getLogger(__name__)  # This module does not import RunPod's SDK, which has another.
ALIGNER_LIMIT_SECONDS = 180  # Qwen3-ForcedAligner is not reliable on longer audio
# Without an aligner, an error in the times goes on to the end of its chunk.
UNALIGNED_TARGET_SECONDS = 20
BUCKET_FIELDS = ("bucket_endpoint_url", "bucket_access_key_id", "bucket_secret_access_key")
RANGES = {  # (lowest, highest) value
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
CHOICES = {
    "device": ("auto", "cuda", "cpu"),
    "dtype": ("auto", "bfloat16", "float32"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting; the environment variable is the field's name in capitals."""

    # A model is a hub id or a local folder.
    model_name: str = MODEL_NAME
    aligner_name: str = ALIGNER_NAME
    model_revision: str = MODEL_REVISION
    aligner_revision: str = ALIGNER_REVISION

    # The CPU is for vLLM's CPU build, without graphs. "auto" is the device that is there.
    device: str = "auto"
    dtype: str = "auto"  # "auto" is bfloat16 on a GPU and float32 on a CPU

    chunk_target_seconds: float = 60
    chunk_limit_seconds: float = ALIGNER_LIMIT_SECONDS
    vad_mode: int = 2  # webrtcvad's aggressiveness: 0 detects the most speech, 3 the least
    max_audio_seconds: float = 36_000
    max_download_bytes: int = 2 * 1024**3
    # With local files, every client can read every file of this machine that the worker can.
    allow_local_files: bool = False
    download_timeout_seconds: float = 600  # per file, with redirects and retries

    max_concurrency: int = 0  # jobs at once; 0: by the engine's capacity
    # The next three are by the GPU's memory where they are 0; see engine_args.py.
    max_num_seqs: int = 0  # chunks in one engine step
    max_num_batched_tokens: int = 0  # tokens in one engine step
    gpu_memory_utilization: float = 0  # vLLM's share; the aligner needs the rest
    aligner_batch_seconds: float = 480  # audio in one aligner batch

    # Per call of the engine or the aligner, with the wait in its queue.
    chunk_timeout_seconds: float = 600
    shutdown_timeout_seconds: float = 300  # running jobs have this time after SIGTERM

    # Bytes of JSON. RunPod takes 10 MB and drops larger results silently.
    max_result_bytes: int = 9_500_000
    # The bucket takes the results that are larger.
    bucket_endpoint_url: str = ""
    bucket_access_key_id: str = ""
    bucket_secret_access_key: str = field(default="", repr=False)
    bucket_name: str = ""  # "": month and year, as in the SDK

    def target_seconds(self, language: str | None) -> float:
        """The usual length of a chunk in `language`; None is for one that is to be detected.

        A detected language does not change it: the cuts, and so the text, would depend on how soon
        the first answer comes.
        """
        if language is None or language in ALIGNED_LANGUAGES:
            return self.chunk_target_seconds
        return min(self.chunk_target_seconds, UNALIGNED_TARGET_SECONDS)

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_choices()
        self._check_bucket()

    def _check_ranges(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingsError(
                    f"{name.upper()} is {value:.16g}; it must be from {low:.16g} to {high:.16g}."
                )

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                *others, last = map(repr, choices)
                expected = f"{', '.join(others)} or {last}"
                raise SettingsError(f"{name.upper()} is {value!r}; it must be {expected}.")

    def _check_bucket(self) -> None:
        missing = [name.upper() for name in BUCKET_FIELDS if not getattr(self, name)]
        if missing and len(missing) < len(BUCKET_FIELDS):
            needed = ", ".join(BUCKET_FIELDS).upper()
            raise SettingsError(f"{missing[0]} is not set; a bucket needs all of {needed}.")


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Settings from environment variables; an empty value counts as not set.

    A chunk target above the chunk limit is lowered to it with a warning, because RunPod's Hub page
    lets users change only one. Raises SettingsError with the variable's name, its value and what is
    accepted.
    """
    given: dict[str, Any] = {}
    for setting in fields(Settings):
        value = environ.get(setting.name.upper(), "").strip()
        if value:
            given[setting.name] = _parse(setting.type, setting.name, value)
    settings = Settings(**given)
    target, limit = settings.chunk_target_seconds, settings.chunk_limit_seconds
    if target > limit:
        log.warning(
            "CHUNK_TARGET_SECONDS is %.16g, above CHUNK_LIMIT_SECONDS; it is lowered to %.16g.",
            target,
            limit,
        )
        settings = replace(settings, chunk_target_seconds=limit)
    return settings


def _parse(kind: object, name: str, value: str) -> str | int | float | bool:
    """`value` as `kind`, the type of the field `name`."""
    parse, expected = PARSERS[kind]
    try:
        return parse(value)
    except (ValueError, KeyError):
        raise SettingsError(f"{name.upper()} is {value!r}; it must be {expected}.") from None


def _boolean(value: str) -> bool:
    return {"true": True, "false": False}[value.lower()]


PARSERS: dict[object, tuple[Callable[[str], str | int | float | bool], str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (_boolean, "true or false"),
}
