"""builder/fetch_models.py: which models it fetches, and downloads that are complete or reported as
incomplete.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract import defaults
from contract.settings import Settings
from fetch_models import DEFAULTS, Model, load_config, main, models_in
from speech.models.checkpoint import CheckpointError
from standin_hub import COMMIT, MODELS, Hub, etag

SCRIPT = Path(__file__).parent.parent / "builder" / "fetch_models.py"
DOCKERFILE = SCRIPT.parent.parent / "Dockerfile"
DEADLINE_SECONDS = 120


# which models


def test_the_environment_names_both_models_and_their_revisions():
    environ = {
        "MODEL_NAME": "some/asr",
        "ALIGNER_NAME": "some/aligner",
        "ALIGNER_REVISION": "v2",
        "MODEL_REVISION": "main",
    }
    assert models_in(environ) == [
        Model("recogniser", "some/asr", "main"),
        Model("aligner", "some/aligner", "v2"),
    ]


def test_the_defaults_are_those_of_the_workers_settings():
    names = ("MODEL_NAME", "ALIGNER_NAME", "MODEL_REVISION", "ALIGNER_REVISION")
    assert {name: getattr(Settings(), name.lower()) for name in names} == DEFAULTS


# the command


def test_local_folders_are_only_checked_and_reported(monkeypatch, capsys):
    set_environment(monkeypatch, MODELS / "asr", MODELS / "aligner")
    assert main() == 0
    recogniser, aligner = capsys.readouterr().out.splitlines()[-2:]
    told = r"\d+\.\d MB, complete, a local folder, hashes not compared with the hub's"
    assert re.fullmatch(rf"recogniser: .*models/asr, {told}", recogniser)
    assert re.fullmatch(rf"aligner: .*models/aligner, {told}", aligner)


def test_a_failure_is_one_sentence_and_exit_code_1(monkeypatch, capsys):
    set_environment(monkeypatch, MODELS / "aligner", MODELS / "aligner")
    assert main() == 1
    assert re.fullmatch(
        r"error: MODEL_NAME names the folder .*config\.json is an aligner's; .*\n",
        capsys.readouterr().err,
    )


def set_environment(monkeypatch, model: Path, aligner: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch_models.py"])
    monkeypatch.setenv("MODEL_NAME", str(model))
    monkeypatch.setenv("ALIGNER_NAME", str(aligner))


def test_a_configuration_that_its_own_class_refuses_is_refused(tmp_path):
    config = json.loads((MODELS / "asr" / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"thinker_config": ["audio_config", "text_config"]})
    )
    with pytest.raises(
        CheckpointError, match=r"config\.json must load as qwen-asr's Qwen3ASRConfig"
    ):
        load_config(tmp_path)


def test_help_names_the_environment_variables():
    named = set(re.findall(r"[A-Z_]{6,}", python([str(SCRIPT), "--help"], os.environ).stdout))
    assert {
        "MODEL_NAME",
        "ALIGNER_NAME",
        "MODEL_REVISION",
        "ALIGNER_REVISION",
        "HF_HOME",
        "HF_TOKEN",
    } <= named


# the download


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


# The command without pauses and without qwen-asr's configuration class, whose import takes half a
# minute.
FETCH = """
import sys, fetch_models
from speech.models import weights
fetch_models.load_config = lambda folder: None
weights.PAUSES_SECONDS = (0, 0)
sys.argv = ["fetch_models.py"]
sys.exit(fetch_models.main())
"""


def environment(hub: Hub, cache: Path, **more: str) -> dict[str, str]:
    ours = {
        name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")
    }
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    models = {
        "MODEL_NAME": "tiny/asr",
        "ALIGNER_NAME": "tiny/aligner",
        "MODEL_REVISION": "main",
        "ALIGNER_REVISION": "",
    }
    return (
        clean
        | {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "PYTHONPATH": str(SCRIPT.parent)}
        | models
        | more
    )


def python(arguments: list[str], environ) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


def snapshot(cache: Path, model: str) -> Path:
    return cache / "hub" / f"models--tiny--{model}" / "snapshots" / COMMIT


def test_a_download_is_compared_with_the_hub_and_reported_with_its_commit(hub, tmp_path):
    run = python(["-c", FETCH], environment(hub, tmp_path))
    assert run.returncode == 0, run.stderr
    begin, end, report = run.stdout.splitlines()[:3]
    assert re.fullmatch(
        rf"fetching tiny/asr, commit {COMMIT}, 4 MB, from {hub.url} into {tmp_path}/hub", begin
    )
    assert re.fullmatch(r"fetched tiny/asr in \d+ s, size and hash of 11 files as on the hub", end)
    told = (
        rf"recogniser: tiny/asr, revision main, commit {COMMIT}, 4\.\d MB, complete, size and "
        r"hash of 11 files as on the hub"
    )
    assert re.fullmatch(told, report)


def test_a_fetched_model_is_found_offline_and_reported_as_not_compared(hub, tmp_path):
    python(["-c", FETCH], environment(hub, tmp_path))
    requests_online = len(hub.requests)
    run = python(["-c", FETCH], environment(hub, tmp_path, HF_HUB_OFFLINE="1"))
    assert run.returncode == 0, run.stderr
    assert len(hub.requests) == requests_online > 0
    assert run.stdout.splitlines()[0].endswith(
        "complete, in the hub's cache, hashes not compared with the hub's"
    )


def test_files_without_a_hash_on_the_hub_are_reported_as_not_compared(hub, tmp_path):
    hub.tells_hashes = False
    run = python(["-c", FETCH], environment(hub, tmp_path))
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[2].endswith(
        "complete, 11 of 11 files not compared, because the hub gave no hash"
    )


def test_a_partial_file_of_an_earlier_download_is_resumed(hub, tmp_path):
    weights = MODELS / "asr" / "model.safetensors"
    blobs = snapshot(tmp_path, "asr").parent.parent / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{etag(weights)}.incomplete").write_bytes(weights.read_bytes()[:1000])
    run = python(["-c", FETCH], environment(hub, tmp_path))
    assert run.returncode == 0, run.stderr
    assert "bytes=1000-" in [asked for *_, asked in hub.requests]
    assert [*blobs.glob("*.incomplete")] == []


def test_a_broken_connection_and_wrong_bytes_are_each_retried(hub, tmp_path):
    hub.faults = ["cut", "wrong"]
    run = python(["-c", FETCH], environment(hub, tmp_path))
    assert run.returncode == 0, run.stderr
    assert "model.safetensors has" in run.stdout and run.stdout.count("retry in 0 s") == 2
    assert (snapshot(tmp_path, "asr") / "model.safetensors").read_bytes() == (
        MODELS / "asr" / "model.safetensors"
    ).read_bytes()


def test_wrong_bytes_at_every_attempt_end_the_build(hub, tmp_path):
    hub.faults = ["wrong"] * 3
    run = python(["-c", FETCH], environment(hub, tmp_path))
    assert run.returncode == 1 and hub.faults == []
    sentence = (
        r"error: The recogniser tiny/asr, revision main, is not available: .* did not deliver "
        r"it, OSError: model\.safetensors has "
    )
    assert re.match(sentence, run.stderr)
    assert not (snapshot(tmp_path, "asr") / "model.safetensors").exists()


def test_a_file_that_changed_in_the_cache_is_fetched_again(hub, tmp_path):
    python(["-c", FETCH], environment(hub, tmp_path))
    (snapshot(tmp_path, "aligner") / "merges.txt").resolve().write_text("#version: 0.2\n")
    run = python(["-c", FETCH], environment(hub, tmp_path))
    assert run.returncode == 0, run.stderr
    assert "merges.txt has 14 bytes with hash" in run.stdout
    assert (snapshot(tmp_path, "aligner") / "merges.txt").read_bytes() == (
        MODELS / "aligner" / "merges.txt"
    ).read_bytes()


def test_a_complete_model_of_the_wrong_role_is_refused(hub, tmp_path):
    run = python(["-c", FETCH], environment(hub, tmp_path, MODEL_NAME="tiny/aligner"))
    assert run.returncode == 1 and re.match(r"error: .*config\.json is an aligner's", run.stderr)


def test_the_token_is_sent_to_the_hub_and_written_nowhere(hub, tmp_path):
    run = python(["-c", FETCH], environment(hub, tmp_path, HF_TOKEN="hf_secret"))
    assert run.returncode == 0, run.stderr
    assert {token for _, _, token, _ in hub.requests} == {"Bearer hf_secret"}
    assert "hf_secret" not in run.stdout + run.stderr
    assert not any(
        b"hf_secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )


def test_without_a_token_none_is_sent(hub, tmp_path):
    python(["-c", FETCH], environment(hub, tmp_path, HF_TOKEN=""))
    assert {token for _, _, token, _ in hub.requests} == {None}


def test_a_model_that_the_hub_does_not_have_is_reported_after_one_request(hub, tmp_path):
    run = python([str(SCRIPT)], environment(hub, tmp_path, MODEL_NAME="tiny/none"))
    assert run.returncode == 1 and len(hub.requests) == 1
    assert run.stderr == (
        f"error: The recogniser tiny/none, revision main, is not available: {hub.url} has "
        "no such model, or requires another HF_TOKEN.\n"
    )


def test_the_files_that_the_dockerfile_copies_are_enough(tmp_path):
    """Copies them as the Dockerfile does, and asks for the models in an empty working folder."""
    copied = re.findall(r"^COPY (.+) /tmp/fetch/(\S+)/$", DOCKERFILE.read_text(), re.MULTILINE)
    for sources, folder in copied:
        (tmp_path / folder).mkdir(parents=True)
        for source in sources.split():
            shutil.copy(SCRIPT.parent.parent / source, tmp_path / folder)
    program = "import fetch_models; print(fetch_models.models_in(fetch_models.DEFAULTS)[0].name)"
    run = python(["-c", program], os.environ | {"PYTHONPATH": str(tmp_path / "builder")})
    assert run.stdout == f"{defaults.MODEL_NAME}\n", run.stderr
