"""The rights that the decoder gives up before it reads a byte of a client's file; imported by __main__.py alone.

Afterwards the process has the descriptors it was started with and can open no other: no file, no socket, no pipe. If it was
root it is nobody, in a network namespace of its own. A step that the system does not allow is left out; the others still hold.
"""

import ctypes
import os
import resource
from contextlib import suppress

NOBODY = 65534  # user and group
LIMITS = {
    resource.RLIMIT_AS: 1024**3,  # bytes; six times what decoding takes
    resource.RLIMIT_FSIZE: 1 << 16,  # bytes; enough for the report. Pipes are not limited by it
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 0,  # new descriptors
    resource.RLIMIT_NPROC: 0,  # new processes and threads; at 0 other processes of the same user do not matter
}
CLONE_NEWNET = 0x40000000  # of unshare(2)
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38  # of prctl(2)


def confine() -> None:
    """Give up rights for the rest of this process. Nothing can be imported afterwards."""
    libc = ctypes.CDLL(None)
    if os.geteuid() == 0:
        # other users do without: a user namespace would allow it but exposes more of the kernel, and no socket can be opened anyway
        libc.unshare(CLONE_NEWNET)
        with suppress(OSError):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    for limit, most in LIMITS.items():
        with suppress(ValueError):  # a lower one is already set
            resource.setrlimit(limit, (most, most))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(
        PR_SET_DUMPABLE, 0, 0, 0, 0
    )  # RLIMIT_CORE does not stop core dumps into a program; and decoders cannot trace each other
