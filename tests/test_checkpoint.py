"""A folder that the worker could not run is refused: an incomplete checkpoint, or the wrong one."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from speech.models.checkpoint import CheckpointError, verify

MODELS = Path(__file__).parent / "models"
SRC = MODELS.parent.parent / "src"
FOLDERS = {"recogniser": "asr", "aligner": "aligner"}  # by role


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


# code: a checkpoint that brings some is refused


@pytest.mark.parametrize("role", FOLDERS)
@pytest.mark.parametrize(
    "key", ["_attn_implementation_internal", "_attn_implementation", "attn_implementation"]
)
@pytest.mark.parametrize("value", ["someone/kernels", {"audio_config": "someone/kernels"}])
def test_a_key_that_names_the_code_of_attention_is_refused_at_any_depth(copy, role, key, value):
    folder = copy(role)
    thinker = json.loads((folder / "config.json").read_text())["thinker_config"]
    deep = thinker | {"audio_config": thinker["audio_config"] | {"layers": [{key: value}]}}
    for changes in (
        {key: value},
        {"thinker_config": thinker | {key: value}},
        {"thinker_config": deep},
    ):
        edit_config(folder, **changes)
        assert f"has the key {key!r}; a checkpoint must not choose" in refusal(folder, role)
        shutil.copy(MODELS / FOLDERS[role] / "config.json", folder)


def test_a_key_about_attention_that_names_no_code_passes(copy):
    folder = copy("recogniser")
    edit_config(folder, _attn_implementation_autoset=True, _attn_implementation_internal=None)
    verify(folder, "recogniser")


# accepted


@pytest.mark.parametrize("role", FOLDERS)
def test_a_complete_checkpoint_passes(role):
    verify(MODELS / FOLDERS[role], role)


def test_shards_pass_where_all_in_the_index_are_there(copy):
    folder = copy("recogniser")
    shard(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    verify(folder, "recogniser")


def shard(folder: Path, *names: str) -> None:
    """Replace the weights in `folder` by shards with these names and an index; each shard is a copy
    of all weights.
    """
    for name in names:
        shutil.copy(folder / "model.safetensors", folder / name)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {f"layer.{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_vocab_json_and_merges_txt_are_enough_for_a_tokenizer(copy):
    folder = copy("recogniser")
    (folder / "tokenizer.json").unlink()
    verify(folder, "recogniser")


def test_a_recogniser_without_a_chat_template_passes(copy):
    """The worker writes the prompt itself."""
    folder = copy("recogniser")
    (folder / "chat_template.jinja").unlink()
    verify(folder, "recogniser")


def test_the_check_does_not_import_torch():
    """The build of the image would wait for it."""
    code = (
        "import sys, pathlib, speech.models.checkpoint as checkpoint\n"
        f"checkpoint.verify(pathlib.Path({str(MODELS / 'asr')!r}), 'recogniser')\n"
        "print('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert out.stdout == "False\n", out.stderr


# refused


@pytest.mark.parametrize(
    "kept", [0, 4, 1000, -1], ids=["nothing", "half a length", "half a header", "all but a byte"]
)
def test_weights_cut_short_are_refused(copy, kept):
    folder = copy("recogniser")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors must be a complete safetensors" in refusal(folder, "recogniser")


def test_weights_with_trailing_bytes_are_refused(copy):
    folder = copy("aligner")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert "model.safetensors must be a complete safetensors" in refusal(folder, "aligner")


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"a": 1}', b'{"a": {}}', b'{"a": {"data_offsets": [0]}}', b"\xff\xfe"]
)
def test_a_header_that_describes_no_tensors_is_refused(copy, header):
    folder = copy("recogniser")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "model.safetensors must be a complete safetensors" in refusal(folder, "recogniser")


def test_missing_weights_are_refused(copy):
    folder = copy("recogniser")
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(folder, "recogniser")


def test_a_missing_shard_of_the_index_is_refused(copy):
    folder = copy("recogniser")
    shard(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(folder, "recogniser")


def test_an_index_without_shards_is_refused(copy):
    folder = copy("recogniser")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "weight_map must say" in refusal(folder, "recogniser")


@pytest.mark.parametrize(
    "gone", [("tokenizer.json", "vocab.json"), ("tokenizer.json", "merges.txt")]
)
def test_a_missing_tokenizer_is_refused(copy, gone):
    folder = copy("aligner")
    for name in gone:
        (folder / name).unlink()
    assert "has no tokenizer; it must hold tokenizer.json, or vocab.json and merges.txt" in refusal(
        folder, "aligner"
    )


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize(
    "content",
    [None, '{"model_type": ', "[]", "\x00"],
    ids=["missing", "cut short", "a list", "no JSON"],
)
def test_a_configuration_that_is_missing_or_broken_is_refused_by_its_name(copy, name, content):
    folder = copy("aligner")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    assert re.search(rf"/{name} (is missing|must hold)", refusal(folder, "aligner"))


def test_the_checkpoint_of_the_other_role_is_refused():
    assert "config.json is an aligner's" in refusal(MODELS / "aligner", "recogniser")
    assert "config.json is no aligner's" in refusal(MODELS / "asr", "aligner")


def test_an_aligner_without_a_timestamp_token_is_refused(copy):
    folder = copy("aligner")
    edit_config(folder, timestamp_token_id=None)
    assert "it must have timestamp_token_id" in refusal(folder, "aligner")


def test_a_checkpoint_of_another_model_type_is_refused(copy):
    folder = copy("recogniser")
    edit_config(folder, model_type="whisper")
    assert "model_type is 'whisper'; it must be \"qwen3_asr\"" in refusal(folder, "recogniser")
    edit_config(folder, model_type="qwen3_asr", thinker_config=None)
    assert "has no thinker_config" in refusal(folder, "recogniser")
