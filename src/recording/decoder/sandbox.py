"""The rights that the decoder gives up before it reads a byte of a client's file.

Afterwards the process has the descriptors it was started with and can open no other: no file, no
socket, no pipe. If it was root it is nobody, in a network namespace of its own. A step that the
system does not allow is left out; the others still hold. Imported by __main__.py alone.
"""

import ctypes
import os
import resource
from contextlib import suppress

NOBODY = 65534  # user and group
LIMITS = {
    resource.RLIMIT_AS: 1024**3,  # bytes; decoding takes a sixth of it
    resource.RLIMIT_FSIZE: 1 << 16,  # bytes; enough for the report, and no limit for pipes
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 0,  # no new descriptors
    # No new processes and threads. At 0 other processes of the same user do not matter.
    resource.RLIMIT_NPROC: 0,
}
# Constants of unshare(2) and prctl(2).
CLONE_NEWNET = 0x40000000
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38


def confine() -> None:
    """Give up rights for the rest of this process. Nothing can be imported afterwards."""
    libc = ctypes.CDLL(None)
    if os.geteuid() == 0:
        _become_nobody(libc)
    for limit, value in LIMITS.items():
        with suppress(ValueError):  # a lower one is already set
            resource.setrlimit(limit, (value, value))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # RLIMIT_CORE does not stop core dumps into a program. Also, decoders cannot trace each other.
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _become_nobody(libc: ctypes.CDLL) -> None:
    """From root. Other users stay who they are.

    A user namespace would allow them a network namespace of their own, but it exposes more of the
    kernel, and they can open no socket anyway.
    """
    libc.unshare(CLONE_NEWNET)
    with suppress(OSError):
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
