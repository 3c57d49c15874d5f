"""Where the libraries keep what they compile, and as whom.

Any user can run the worker, and one volume keeps all caches.
"""

import getpass
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from contract.errors import SettingsError

# Variable → folder below VLLM_CACHE_ROOT. vLLM itself moves only a part of these caches there.
CACHES = {
    "CUDA_CACHE_PATH": "cuda",  # kernels that the driver compiles for a GPU newer than the build
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "NUMBA_CACHE_DIR": "numba",  # librosa cannot be imported without a folder to write to
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}


def cache_environment(given: Mapping[str, str]) -> dict[str, str]:
    """The variables, of those that `given` does not set, with which any user can compile and cache.

    All libraries then keep what they compile below vLLM's own cache, so one volume keeps all of it.
    They must be set before torch or vLLM is imported. Raises SettingsError where the cache is not
    writable.
    """
    home = given.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(os.path.expanduser(given.get("VLLM_CACHE_ROOT") or f"{home}/vllm"))
    _check_writable(root)
    wanted = {name: str(root / folder) for name, folder in CACHES.items()}
    wanted["VLLM_CACHE_ROOT"] = str(root)
    wanted["LOGNAME"] = _user_name()
    return {name: value for name, value in wanted.items() if not given.get(name)}


def _check_writable(cache: Path) -> None:
    """Make the folder `cache`. Raises SettingsError where it is not there and writable then."""
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    if not os.access(cache, os.W_OK | os.X_OK, effective_ids=True):
        raise SettingsError(
            f"User {os.getuid()} cannot write to {cache}, where vLLM keeps what it compiles; "
            "VLLM_CACHE_ROOT must name a folder that this user can write to."
        )


def _user_name() -> str:
    """The user's name, or the number of a user without an entry in /etc/passwd.

    When torch is imported it asks for a name, and fails where neither LOGNAME nor /etc/passwd has
    one.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 raises OSError
        return str(os.getuid())
