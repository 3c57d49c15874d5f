"""The rights and descriptors that a confined decoder has left: read from outside in /proc, and
tried from inside.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import media
import pytest
from conftest import ROOT
from material import silence
from recording.chunk import SAMPLE_RATE
from recording.pcm_stream import decode
from sandbox import NOBODY

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
# after the imports, because root's Python may be readable by root alone
AS_USER = "import os\nif {user}:\n    os.setgroups([]), os.setgid({user}), os.setuid({user})\n"
TRIES = """
import encodings.idna, json, os, socket, sys
sys.path.insert(0, {src!r})
from sandbox import confine
{as_user}
def outcome(does):
    try:
        return str(does())
    except (OSError, MemoryError) as error:
        return type(error).__name__
confine()
print(json.dumps([outcome(does) for does in (
    lambda: open("/etc/passwd"),
    lambda: socket.create_connection(("127.0.0.1", {port})),
    os.pipe,
    os.fork,
    lambda: os.setuid(0),
    lambda: len(bytearray(2 * 1024**3)),
)]))
"""
DECODES = """
import sys
sys.path.insert(0, {src!r})
import importlib.util
spec = importlib.util.spec_from_file_location("decoder", {src!r} + "/__main__.py")
decoder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(decoder)
{as_user}
sys.exit(decoder._main(rate=16000, descriptor={descriptor}))
"""
NO_MORE = "OSError"  # EMFILE


@pytest.fixture
def confined(tmp_path, monkeypatch):
    """Name → content in /proc/PID of a decoder that waits for the rest of a growing file."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    media.encode(silence(60), tmp_path / "a.wav")
    os.truncate(tmp_path / "a.wav", 30 * 2 * SAMPLE_RATE)

    async def look() -> dict:
        inherited = os.open("/etc/passwd", os.O_RDONLY)
        os.set_inheritable(inherited, True)
        async with decode(tmp_path / "a.wav", 3600, complete_marker=tmp_path / "complete") as pcm:
            await anext(aiter(pcm))
            proc = Path(f"/proc/{pcm._child.pid}")
            found = {name: (proc / name).read_text() for name in ("status", "environ", "limits")}
            found["descriptors"] = {
                int(each.name): os.readlink(each) for each in (proc / "fd").iterdir()
            }
            found["network"] = os.readlink(proc / "ns" / "net")
        os.close(inherited)
        return found

    return asyncio.run(look())


def status(confined: dict, name: str) -> list[str]:
    return confined["status"].partition(f"\n{name}:")[2].partition("\n")[0].split()


def test_the_decoder_has_an_empty_environment(confined):
    assert confined["environ"] == ""


def test_the_decoder_has_no_capability_and_can_gain_no_right(confined):
    assert status(confined, "NoNewPrivs") == ["1"]
    assert {
        *status(confined, "CapEff"),
        *status(confined, "CapPrm"),
        *status(confined, "CapInh"),
        *status(confined, "CapAmb"),
    } == {"0" * 16}


@as_root
def test_started_by_root_the_decoder_becomes_nobody(confined):
    assert (
        status(confined, "Uid") == status(confined, "Gid") == [str(NOBODY)] * 4
        and status(confined, "Groups") == []
    )


@as_root
@pytest.mark.skipif(
    subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0,
    reason="no right to namespaces here",
)
def test_the_decoder_has_a_network_of_its_own(confined):
    assert confined["network"] != os.readlink("/proc/self/ns/net")


def test_the_decoder_holds_its_two_pipes_its_report_and_the_file_only(confined, tmp_path):
    (descriptor,) = confined["descriptors"].keys() - {0, 1, 2}
    assert confined["descriptors"][descriptor] == str(tmp_path / "a.wav")
    assert (
        all(confined["descriptors"][n].startswith(("pipe:", "socket:")) for n in (0, 1))
        and "(deleted)" in confined["descriptors"][2]
    )


@pytest.mark.parametrize(
    "name", ["address space", "file size", "core file size", "open files", "processes"]
)
def test_the_decoder_cannot_raise_its_limits(confined, name):
    soft, hard = confined["limits"].partition(f"Max {name} ")[2].split()[:2]
    assert soft == hard == {"address space": str(1024**3), "file size": str(1 << 16)}.get(name, "0")


each_user = pytest.mark.parametrize(
    "user", [pytest.param(0, id="as now"), pytest.param(1234, id="ordinary user", marks=as_root)]
)


def run(script: str, user: int, *descriptors: int, **names) -> bytes:
    script = script.format(
        src=str(ROOT / "src" / "recording" / "decoder"), as_user=AS_USER.format(user=user), **names
    )
    command = [sys.executable, "-B", "-c", script]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, pass_fds=descriptors
    ).stdout


@each_user
def test_after_confine_files_sockets_processes_rights_and_memory_are_denied(file_server, user):
    outcomes = json.loads(run(TRIES, user, port=file_server.url("").split(":")[2].strip("/")))
    assert outcomes == [
        NO_MORE,
        NO_MORE,
        NO_MORE,
        "BlockingIOError",
        "PermissionError",
        "MemoryError",
    ]


@each_user
def test_after_confine_a_file_is_still_decoded(tmp_path, user):
    media.encode(silence(1), tmp_path / "a.flac")
    with (tmp_path / "a.flac").open("rb") as file:
        assert run(DECODES, user, file.fileno(), descriptor=file.fileno()) == bytes(2 * SAMPLE_RATE)
