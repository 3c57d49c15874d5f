"""builder/setup.sh on a system without libnuma, which vLLM's CPU build is linked with."""

import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUP = ROOT / "builder" / "setup.sh"
ABSENT = "libabsent.so.1"  # a library that no system has

((NAME, VERSION),) = re.findall(r"^LIBNUMA_WHEEL=(\S+)==(\S+)", SETUP.read_text(), flags=re.M)


@pytest.fixture
def wheels(tmp_path) -> Path:
    """A folder with a wheel of that name and version.

    In the place of libnuma, where auditwheel puts it, is libsndfile.
    """
    import _soundfile_data

    (library,) = Path(_soundfile_data.__file__).parent.glob("libsndfile*.so")
    package = NAME.replace("-", "_")
    info = f"{package}-{VERSION}.dist-info"
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(
        tmp_path / "wheels" / f"{package}-{VERSION}-py3-none-any.whl", "w"
    ) as wheel:
        wheel.write(library, f"{package}.libs/libnuma-3387f5e3.so.1.0.0")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(
            f"{info}/RECORD",
            "".join(f"{name},,\n" for name in [*wheel.namelist(), f"{info}/RECORD"]),
        )
    return tmp_path / "wheels"


def find_libnuma(
    name: str, root: Path, then: str = "true", **environ: str
) -> subprocess.CompletedProcess:
    """setup.sh's find_libnuma for the library `name`, for a checkout in `root`, and a command after
    it, offline.
    """
    environment = os.environ | {"UV_OFFLINE": "1"} | environ
    script = (
        f'source "{SETUP}" && ROOT="{root}" LD_LIBRARY_PATH=/before && find_libnuma {name} && '
        f'echo "$LD_LIBRARY_PATH" && {then}'
    )
    return subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )


def test_where_the_system_has_the_library_nothing_is_changed(tmp_path):
    out = find_libnuma("libc.so.6", tmp_path)
    assert (out.returncode, out.stdout) == (0, "/before\n")
    assert not any(tmp_path.iterdir())


def test_where_the_system_has_none_python_finds_the_one_of_the_wheel(tmp_path, wheels):
    load = f'"$PYTHON" -c \'import ctypes; print(ctypes.CDLL("{ABSENT}").sf_open.__name__)\''
    out = find_libnuma(ABSENT, tmp_path, load, UV_FIND_LINKS=str(wheels))
    assert out.stdout.splitlines() == [f"{tmp_path}/.venv/libnuma:/before", "sf_open"]
    assert os.listdir(tmp_path / ".venv" / "libnuma") == [ABSENT]


def test_the_wheel_is_fetched_once(tmp_path, wheels):
    find_libnuma(ABSENT, tmp_path, UV_FIND_LINKS=str(wheels))
    again = find_libnuma(ABSENT, tmp_path)
    assert again.returncode == 0 and again.stderr == ""


def test_where_the_wheel_cannot_be_fetched_the_last_line_says_what_to_install(tmp_path):
    out = find_libnuma(ABSENT, tmp_path)
    assert out.returncode == 1 and out.stdout == ""
    assert (
        f"needs {ABSENT}: install libnuma1 (Debian, Ubuntu) or numactl-libs"
        in out.stderr.splitlines()[-1]
    )
