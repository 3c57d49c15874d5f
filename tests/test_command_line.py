"""The command line: mistakes are told before anything is loaded, and stdout holds the result alone.

A command here is the real worker, with models that do not exist: it would fail if it loaded them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import single_job

HANDLER = Path(__file__).parent.parent / "src" / "handler.py"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The worker in a folder, as on a machine that is not RunPod's."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("RUNPOD_WEBHOOK")}
    return subprocess.run(
        [sys.executable, HANDLER, *arguments],
        cwd=folder,
        env=environment | {"MODEL_NAME": "/none", "ALIGNER_NAME": "/none"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """Gives the end of a command in an empty folder: what is printed, and the exit's sentence."""

    def ended(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("RUNPOD_WEBHOOK_GET_JOB", raising=False)
        monkeypatch.setattr(sys, "argv", ["handler.py", *arguments])
        with pytest.raises(SystemExit) as end:
            single_job()
        assert end.value.code not in (0, None)
        return f"{capsys.readouterr().err}{end.value}"

    return ended


def test_the_help_tells_what_the_worker_takes_and_gives(tmp_path):
    out = run(tmp_path, "--help")
    assert out.returncode == 0 and out.stderr == ""
    assert "usage: python src/handler.py" in out.stdout
    assert all(name in out.stdout for name in ("--test_input", "--rp_serve_api", "audio_url"))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--test-input", "{}"], "unrecognized arguments: --test-input"),
        (["--test_input"], "argument --test_input: expected one argument"),
        (["--test_input", "talk.mp3"], "error: --test_input is no valid JSON: Expecting value"),
        (["--test_input", "[]"], "error: --test_input must be an object with an object `input`"),
        (["--test_input", '{"audio_url": ""}'], "must be an object with an object `input`"),
        ([], "error: there is no test_input.json in this folder. Give a job, --test_input"),
    ],
)
def test_a_mistake_in_the_command_is_one_sentence(arguments, sentence, refusal):
    assert sentence in refusal(*arguments)


def test_a_mistake_in_test_input_json_names_the_file(tmp_path, refusal):
    (tmp_path / "test_input.json").write_text('{"input": ')
    assert "error: test_input.json is no valid JSON: Expecting value" in refusal()


@pytest.mark.parametrize("name", ["RUNPOD_WEBHOOK_GET_JOB", "--rp_serve_api"])
def test_a_worker_that_takes_jobs_has_none_of_its_own(name, monkeypatch):
    if name.startswith("--"):
        monkeypatch.setattr(sys, "argv", ["handler.py", name])
    else:
        monkeypatch.setattr(sys, "argv", ["handler.py"])
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    assert single_job() is None


def test_a_mistake_ends_the_worker_with_nothing_on_stdout(tmp_path):
    out = run(tmp_path)
    assert out.returncode == 1 and out.stdout == "" and out.stderr.count("\n") == 1


def test_an_invalid_request_is_answered_on_stdout_before_the_models_are_loaded(tmp_path):
    out = run(tmp_path, "--test_input", '{"input": {"language": "Klingon"}}')
    assert out.returncode == 1
    assert json.loads(out.stdout)["error_code"] == "input_invalid"
    assert "starting the recogniser" not in out.stderr
