"""One child process: started outside the event loop, and ended with its context whatever happens.

asyncio's own subprocesses are not used. On Python 3.11 to 3.13 a cancelled `create_subprocess_exec`
may wait for ever for a pipe that is paused (CPython gh-103847, gh-133536). They also start in the
thread of the event loop: 64 at once held it for 4 to 8 s on 2 cores. Started one after the other in
another thread, they hold it for about 0.1 s each, because a start holds the GIL until its exec.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import IO, BinaryIO

from recording.shield import to_the_end

POLL_SECONDS = 0.01  # between two looks whether a process has ended
MAX_KILL_SECONDS = 30  # a killed process that needs longer to end hangs in the kernel

_starter = ThreadPoolExecutor(1, "process-starter")


class Child:
    """A running process. Its `stdout` is read by the event loop."""

    def __init__(self, process: subprocess.Popen[bytes], stdout: asyncio.StreamReader):
        self.stdout = stdout
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        return self._process.poll()

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self._process.kill()

    def close_stdin(self) -> None:
        """Nothing is ever written to it; the process sees its end."""
        _close(self._process.stdin)

    async def wait(self) -> int:
        """The exit status, once the process has ended."""
        while (status := self._process.poll()) is None:
            await asyncio.sleep(POLL_SECONDS)
        return status


@asynccontextmanager
async def child_process(
    command: Sequence[str], *, stderr: BinaryIO, descriptors: Sequence[int], buffer_bytes: int
) -> AsyncIterator[Child]:
    """Run `command` with an empty environment. The end of the context kills it, if it still runs.

    `descriptors`: open files that it inherits. `buffer_bytes`: up to twice as many bytes of its
    stdout are read ahead. Raises OSError where it cannot be started. A cancellation during the
    start waits until the process is there, and ends it.
    """
    loop = asyncio.get_running_loop()
    starting = loop.run_in_executor(_starter, _start, command, stderr, descriptors)
    transport = None
    try:
        process = await asyncio.shield(starting)
        stdout = asyncio.StreamReader(buffer_bytes)
        protocol = asyncio.StreamReaderProtocol(stdout)
        transport, _ = await loop.connect_read_pipe(lambda: protocol, process.stdout)
        yield Child(process, stdout)
    finally:
        if transport is not None:
            transport.close()
        await to_the_end(_end(starting))


def _start(
    command: Sequence[str], stderr: BinaryIO, descriptors: Sequence[int]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={},
        pass_fds=descriptors,
    )


async def _end(starting: asyncio.Future[subprocess.Popen[bytes]]) -> None:
    """Kill and reap the process, once its start has succeeded."""
    await asyncio.wait([starting])
    if starting.exception():
        return
    process = starting.result()
    process.kill()
    _close(process.stdin)
    _close(process.stdout)
    with suppress(TimeoutError):
        async with asyncio.timeout(MAX_KILL_SECONDS):
            while process.poll() is None:
                await asyncio.sleep(POLL_SECONDS)


def _close(pipe: IO[bytes] | None) -> None:
    """Close a pipe of a process; Popen's type allows for processes without pipes."""
    if pipe is not None:
        pipe.close()
