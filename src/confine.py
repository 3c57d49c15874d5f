"""What the decoder gives up before it reads a byte of a stranger's file; imported by decoder.py alone.

Afterwards it holds the descriptors it was started with and can make no other: no file, no socket, no pipe. Where it was root it
is nobody, in a network of its own. A right that the system does not grant is gone without: the rest holds.
"""

import ctypes
import os
import resource
from contextlib import suppress

NOBODY = 65534  # user and group
LIMITS = {
    resource.RLIMIT_AS: 1024**3,  # bytes; six times what decoding takes
    resource.RLIMIT_FSIZE: 1 << 16,  # bytes: of a short report; a pipe is no file
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 0,  # descriptors beside those that are open
    resource.RLIMIT_NPROC: 0,  # processes and threads beside this one; those of others with its user do not matter to 0
}
CLONE_NEWNET = 0x40000000  # of unshare(2)
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38  # of prctl(2)


def confine() -> None:
    """For the rest of this process. Nothing can be imported afterwards."""
    libc = ctypes.CDLL(None)
    if os.geteuid() == 0:
        libc.unshare(CLONE_NEWNET)  # not a user namespace, for who may not: all rights within one are more to attack than a socket nobody can open
        with suppress(OSError):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    for limit, most in LIMITS.items():
        with suppress(ValueError):  # there is a lower one already
            resource.setrlimit(limit, (most, most))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # RLIMIT_CORE does not hold where cores go to a program; and decoders cannot trace each other
