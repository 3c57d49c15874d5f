"""The folders of all caches: below vLLM's own, in those that are already set, and writable."""

import os
from pathlib import Path

import pytest
from contract.errors import SettingsError
from speech.models.caches import CACHES, cache_environment


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
    expected = envs.environment_variables["VLLM_CACHE_ROOT"]()
    assert cache_environment(os.environ)["VLLM_CACHE_ROOT"] == expected


def test_a_cache_that_cannot_be_written_to_ends_the_start_with_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        SettingsError, match=f"cannot write to {tmp_path}/file/vllm, .*VLLM_CACHE_ROOT"
    ):
        cache_environment({"VLLM_CACHE_ROOT": str(tmp_path / "file" / "vllm")})
