"""Check the packages of an image before it ships: python3 check_image.py requirements.txt

These faults would otherwise appear only on a GPU, at the first job: another version of a pinned
package, a second torch or vLLM beside the base image's, a torch for a CUDA that the hosts' drivers
do not support, a module that does not import. Prints one line for each fault; the exit status is
then 1.
"""

import importlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

# The base image's tag has this version; .runpod/hub.json allows hosts whose driver is as new.
CUDA = "12.9"
# Several GB each, and built for each other: they must not be installed again.
FROM_BASE = ("vllm", "torch")
# The worker imports these; qwen-asr and transformers import some of them on demand: nagisa for
# Japanese, soynlp for Korean, accelerate for the aligner.
IMPORTED = (
    "accelerate",
    "aiohttp",
    "av",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "librosa",
    "nagisa",
    "numpy",
    "opencc",
    "qwen_asr",
    "requests",
    "runpod",
    "safetensors",
    "soundfile",
    "soynlp.tokenizer",
    "torch",
    "transformers",
    "vllm",
    "webrtcvad",
)


def main(path: str) -> int:
    faults = [
        *wrong_versions(Path(path).read_text()),
        *second_copies(sys.prefix),
        *wrong_cuda(CUDA),
        *failed_imports(IMPORTED),
    ]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


def wrong_versions(requirements: str) -> Iterator[str]:
    """A sentence for each package that is not installed in the version that `requirements` pins.

    A local version label such as +cu129 is ignored.
    """
    for name, pinned in re.findall(r"^([\w.-]+)==([\w.]+)", requirements, flags=re.M):
        try:
            found = version(name)
        except PackageNotFoundError:
            yield f"{name} is not installed; it must be {pinned}."
            continue
        if found.partition("+")[0] != pinned:
            yield f"{name} is {found}; it must be {pinned}."


def second_copies(environment: str) -> Iterator[str]:
    """A sentence for each package of FROM_BASE that is in the folder `environment` as well."""
    for name in FROM_BASE:
        try:
            where = Path(distribution(name).locate_file(""))
        except PackageNotFoundError:
            continue  # wrong_versions reports it
        if where.is_relative_to(environment):
            again = f"{name} was installed a second time, in {where}"
            yield f"{again}; it must be the base image's own."


def wrong_cuda(expected: str) -> Iterator[str]:
    """A sentence if torch was built for another CUDA than `expected`."""
    import torch

    if torch.version.cuda != expected:
        yield f"torch is built for CUDA {torch.version.cuda}; it must be {expected}."


def failed_imports(modules: tuple[str, ...]) -> Iterator[str]:
    """A sentence for each module that does not import, with the reason.

    Takes half a minute, because qwen_asr imports vLLM.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # an extension module may raise anything
            yield f"{module} does not import: {type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
