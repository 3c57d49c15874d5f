"""The main module of vLLM's processes, in the place of the worker's: they end with their parent.

multiprocessing imports the main module's file in every process that it spawns, and the processes
that such a process spawns import the same file. vLLM's processes do not need the worker, but each
of them must end when its parent is killed: else it keeps its share of the GPU's memory for good.
"""

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PR_SET_PDEATHSIG = 1  # an option of prctl(2)


@contextmanager
def main_module_of_children() -> Iterator[None]:
    """Processes that are spawned within the context import this file as their main module.

    Each of them is killed when the thread that spawned it ends.
    """
    main = vars(sys.modules["__main__"])
    replaced = ("__file__", "__spec__")
    before: dict[str, Any] = {name: main[name] for name in replaced if name in main}
    main.update(__file__=__file__, __spec__=None)
    try:
        yield
    finally:
        del main["__file__"], main["__spec__"]
        main.update(before)


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, however it ends."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__mp_main__":
    end_with_parent()
