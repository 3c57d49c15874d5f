"""What must not get into an image: an incomplete checkpoint, or the wrong one. And the download, against a stand-in hub."""

import functools
import http.server
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetch_models import Checkpoint, CheckpointError, fetch, load_config, main, safetensors_length, verify, wanted

MODELS = Path(__file__).parent / "models"
FOLDERS = {"recogniser": "asr", "aligner": "aligner"}  # by role
SCRIPT = Path(__file__).parent.parent / "builder" / "fetch_models.py"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEADLINE_SECONDS = 120


@pytest.fixture
def copy(tmp_path):
    """A function: role → a copy of that checkpoint which the test may break."""

    def make(role: str) -> Path:
        return Path(shutil.copytree(MODELS / FOLDERS[role], tmp_path / role))

    return make


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path, role: str) -> str:
    """Why `folder` is refused."""
    with pytest.raises(CheckpointError) as caught:
        verify(folder, role)
    return str(caught.value)


# which checkpoints


def test_the_environment_names_both_checkpoints_and_main_is_their_revision_unless_it_says_otherwise():
    environ = {"MODEL_NAME": "some/asr", "ALIGNER_NAME": "some/aligner", "ALIGNER_REVISION": "v2", "MODEL_REVISION": ""}
    assert wanted(environ) == (Checkpoint("recogniser", "some/asr", "main"), Checkpoint("aligner", "some/aligner", "v2"))


@pytest.mark.parametrize("name", ["MODEL_NAME", "ALIGNER_NAME"])
def test_a_name_that_is_not_set_is_said_to_be_missing(name):
    environ = {"MODEL_NAME": "some/asr", "ALIGNER_NAME": "some/aligner"} | {name: " "}
    with pytest.raises(CheckpointError, match=f"^{name} is not set; it must name"):
        wanted(environ)


# what is complete


@pytest.mark.parametrize("role", FOLDERS)
def test_a_complete_checkpoint_passes(role):
    verify(MODELS / FOLDERS[role], role)


def test_shards_pass_when_the_index_finds_them_all(copy):
    folder = copy("recogniser")
    shard(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    verify(folder, "recogniser")


def test_a_length_by_the_header_is_that_of_the_real_file():
    path = MODELS / "asr" / "model.safetensors"
    assert safetensors_length(path) == path.stat().st_size


def shard(folder: Path, *names: str) -> None:
    """Give `folder` an index of `names`, each of which holds the same weights; enough for a check of files."""
    for name in names:
        shutil.copy(folder / "model.safetensors", folder / name)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {f"layer.{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_vocabulary_and_merges_do_for_a_tokenizer(copy):
    folder = copy("recogniser")
    (folder / "tokenizer.json").unlink()
    verify(folder, "recogniser")


def test_a_chat_template_may_be_inside_the_tokenizer_configuration(copy):
    folder = copy("recogniser")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    verify(folder, "recogniser")


# what is not


@pytest.mark.parametrize("kept", [0, 4, 1000, -1], ids=["nothing", "half a length", "half a header", "all but a byte"])
def test_weights_cut_short_are_refused(copy, kept):
    folder = copy("recogniser")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    reason = refusal(folder, "recogniser")
    assert re.search(r"model\.safetensors (has \d+ bytes; by its header it must have \d+|must begin with the header)", reason)


def test_weights_with_something_behind_them_are_refused(copy):
    folder = copy("aligner")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert "by its header it must have" in refusal(folder, "aligner")


@pytest.mark.parametrize("header", [b"[]", b"{", b'{"a": 1}', b'{"a": {}}', b'{"a": {"data_offsets": [0]}}', b"\xff\xfe"])
def test_a_header_that_describes_no_tensors_is_refused(copy, header):
    folder = copy("recogniser")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "model.safetensors must begin with the header" in refusal(folder, "recogniser")


def test_missing_weights_are_refused(copy):
    folder = copy("recogniser")
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(folder, "recogniser")


def test_a_shard_that_the_index_names_and_nobody_downloaded_is_refused(copy):
    folder = copy("recogniser")
    shard(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(folder, "recogniser")


def test_an_index_of_nothing_is_refused(copy):
    folder = copy("recogniser")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "weight_map must say" in refusal(folder, "recogniser")


@pytest.mark.parametrize("gone", [("tokenizer.json", "vocab.json"), ("tokenizer.json", "merges.txt")])
def test_a_missing_tokenizer_is_refused(copy, gone):
    folder = copy("aligner")
    for name in gone:
        (folder / name).unlink()
    assert "has no tokenizer; it must hold tokenizer.json, or vocab.json and merges.txt" in refusal(folder, "aligner")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, '{"model_type": ', "[]", "\x00"], ids=["missing", "cut short", "a list", "no JSON"])
def test_a_configuration_that_is_missing_or_broken_is_refused_by_its_name(copy, name, content):
    folder = copy("aligner")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    assert re.search(rf"/{name} (is missing|must hold)", refusal(folder, "aligner"))


def test_a_recogniser_without_a_chat_template_is_refused(copy):
    folder = copy("recogniser")
    (folder / "chat_template.jinja").unlink()
    assert "has no chat template" in refusal(folder, "recogniser")


def test_recogniser_and_aligner_are_not_taken_for_each_other():
    assert "config.json is an aligner's" in refusal(MODELS / "aligner", "recogniser")
    assert "config.json is no aligner's" in refusal(MODELS / "asr", "aligner")


def test_an_aligner_that_lost_its_timestamp_token_is_refused(copy):
    folder = copy("aligner")
    edit_config(folder, timestamp_token_id=None)
    assert "it must have timestamp_token_id" in refusal(folder, "aligner")


def test_a_checkpoint_of_another_kind_is_refused(copy):
    folder = copy("recogniser")
    edit_config(folder, model_type="whisper")
    assert "model_type is 'whisper'; it must be \"qwen3_asr\"" in refusal(folder, "recogniser")
    edit_config(folder, model_type="qwen3_asr", thinker_config=None)
    assert "has no thinker_config" in refusal(folder, "recogniser")


# the command


def test_local_folders_are_only_checked_and_reported(monkeypatch, capsys):
    set_environment(monkeypatch, MODELS / "asr", MODELS / "aligner")
    assert main() == 0
    recogniser, aligner = capsys.readouterr().out.splitlines()[-2:]
    assert re.fullmatch(r"recogniser: .*models/asr, local folder, \d+\.\d MB, complete", recogniser)
    assert re.fullmatch(r"aligner: .*models/aligner, local folder, \d+\.\d MB, complete", aligner)


def test_a_failure_is_one_sentence_and_exit_code_1(monkeypatch, capsys):
    set_environment(monkeypatch, MODELS / "aligner", MODELS / "aligner")
    assert main() == 1
    assert re.fullmatch(r"error: .*config\.json is an aligner's; .*\n", capsys.readouterr().err)


def set_environment(monkeypatch, model: Path, aligner: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch_models.py"])
    monkeypatch.setenv("MODEL_NAME", str(model))
    monkeypatch.setenv("ALIGNER_NAME", str(aligner))


def test_a_configuration_that_its_own_class_refuses_is_refused(copy):
    folder = copy("recogniser")
    edit_config(folder, thinker_config=["audio_config", "text_config"])
    with pytest.raises(CheckpointError, match=r"config\.json must load as qwen-asr's Qwen3ASRConfig"):
        load_config(folder)


def test_help_says_which_variables_count():
    named = set(re.findall(r"[A-Z_]{6,}", python([str(SCRIPT), "--help"], os.environ).stdout))
    assert {"MODEL_NAME", "ALIGNER_NAME", "MODEL_REVISION", "ALIGNER_REVISION", "HF_HOME", "HF_TOKEN"} <= named


# the download


class StandInHub(http.server.BaseHTTPRequestHandler):
    """What snapshot_download asks of the hub: a revision's files, then each file's headers and content."""

    def __init__(self, tokens: list, *args):
        self._tokens = tokens
        super().__init__(*args)

    def do_GET(self, body: bool = True):
        self._tokens.append(self.headers.get("Authorization"))
        if match := re.fullmatch(r"/api/models/tiny/(asr|aligner)/revision/main", self.path.partition("?")[0]):
            files = [{"rfilename": path.name} for path in (MODELS / match[1]).iterdir()]
            self._answer(200, json.dumps({"id": f"tiny/{match[1]}", "sha": COMMIT, "siblings": files}).encode(), body)
        elif match := re.fullmatch(rf"/tiny/(asr|aligner)/resolve/{COMMIT}/([\w.]+)", self.path):
            content = (MODELS / match[1] / match[2]).read_bytes()
            self._answer(200, content, body, {"ETag": f'"{match[1]}-{match[2]}"', "X-Repo-Commit": COMMIT})
        else:
            self._answer(404, b"", body, {"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self):
        self.do_GET(body=False)

    def _answer(self, status: int, content: bytes, body: bool, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list]]:
    """The address of a stand-in hub and the Authorization headers that it got."""
    tokens = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(StandInHub, tokens)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", tokens
        server.shutdown()
        thread.join()


# the command, but for qwen-asr's configuration class: importing it takes half a minute
FETCH = """
import os, fetch_models as f
for checkpoint in f.wanted(os.environ):
    folder = f.fetch(checkpoint, os.environ.get("HF_TOKEN"))
    f.verify(folder, checkpoint.role)
    print(folder, f.report(checkpoint, folder), sep="\\n")
"""


def environment(endpoint: str, cache: Path, **more: str) -> dict[str, str]:
    ours = {name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")}
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    models = {"MODEL_NAME": "tiny/asr", "ALIGNER_NAME": "tiny/aligner", "MODEL_REVISION": "main", "ALIGNER_REVISION": "main"}
    return clean | hub | models | {"PYTHONPATH": str(SCRIPT.parent)} | more


def python(arguments: list[str], environ) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, text=True, timeout=DEADLINE_SECONDS)


def test_what_was_fetched_once_is_found_offline(hub, tmp_path):
    endpoint, tokens = hub
    online = python(["-c", FETCH], environment(endpoint, tmp_path))
    assert online.returncode == 0, online.stderr
    requests_online = len(tokens)
    offline = python(["-c", FETCH], environment(endpoint, tmp_path, HF_HUB_OFFLINE="1"))
    assert (offline.returncode, offline.stdout) == (0, online.stdout), offline.stderr
    assert len(tokens) == requests_online > 0
    folder, report = online.stdout.splitlines()[:2]
    assert Path(folder).parts[-5:] == (tmp_path.name, "hub", "models--tiny--asr", "snapshots", COMMIT)
    assert re.fullmatch(rf"recogniser: tiny/asr, revision main, commit {COMMIT}, 4\.\d MB, complete", report)


def test_the_token_is_shown_to_the_hub_and_nowhere_else(hub, tmp_path):
    endpoint, tokens = hub
    run = python(["-c", FETCH], environment(endpoint, tmp_path, HF_TOKEN="hf_secret"))
    assert run.returncode == 0, run.stderr
    assert set(tokens) == {"Bearer hf_secret"}
    assert "hf_secret" not in run.stdout + run.stderr
    assert not any(b"hf_secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_without_a_token_none_is_made_up(hub, tmp_path):
    endpoint, tokens = hub
    python(["-c", FETCH], environment(endpoint, tmp_path, HF_TOKEN=""))
    assert set(tokens) == {None}


def test_a_model_that_the_hub_does_not_have_is_named(hub, tmp_path):
    run = python([str(SCRIPT)], environment(hub[0], tmp_path, MODEL_NAME="tiny/none"))
    assert run.returncode == 1
    assert run.stderr.startswith("error: The recogniser tiny/none at revision main could not be fetched; name and revision must")
    assert "Traceback" not in run.stderr


def test_a_name_that_can_be_no_model_is_refused():
    with pytest.raises(CheckpointError, match="The aligner not/a/model at revision main could not be fetched"):
        fetch(Checkpoint("aligner", "not/a/model", "main"))
