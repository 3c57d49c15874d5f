"""Connections for http_get.py: to public addresses only, and with an end to what a head may send.

Not httpcore's own backend: its streams return each TLS record alone, which takes twice the CPU
time, and it looks the name up once more, which could give another address than the one checked.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

import httpcore
from contract.errors import WorkerFailed, is_shortage
from recording.public_addresses import look_up
from recording.tls_failure import tls_failure

# The head of a response and the interim responses (1xx) before it; h11 limits each to 100 KiB.
MAX_HEAD_BYTES = 1 << 18
BLOCK_BYTES = 1 << 18  # the largest block of a body


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked. TLS and the Host header still use the name."""

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *_: object, **__: object
    ) -> "Connection":
        """Raises NotPublic, socket.gaierror, WorkerFailed, and httpcore.ConnectError."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await look_up(host, port)
            return await _connection_to_one(addresses, port, timeout)
        except socket.gaierror:
            raise
        except OSError as error:  # TimeoutError is one.
            if is_shortage(error):
                sentence = f"The worker could not open a connection: {error.strerror}."
                raise WorkerFailed(sentence) from error
            raise httpcore.ConnectError(str(error)) from error


async def _connection_to_one(
    addresses: list[str], port: int, timeout: float | None
) -> "Connection":
    """Raises the OSError of the last address where none of them answers."""
    for address in addresses:
        try:
            async with asyncio.timeout(timeout):
                streams = await asyncio.open_connection(address, port, limit=BLOCK_BYTES)
            return Connection(*streams)
        except OSError:
            if address == addresses[-1]:
                raise
    raise OSError("the host has no address")


class Connection(httpcore.AsyncNetworkStream):
    """Reads at most MAX_HEAD_BYTES until `allow_body` is called.

    h11 itself would read interim responses without end.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader = reader
        self._writer = writer
        self._bytes_allowed: float = MAX_HEAD_BYTES

    def allow_body(self) -> None:
        """The head has ended: what follows may be of any length."""
        self._bytes_allowed = inf

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> "Connection":
        """Raises TlsFailed where the server's TLS is wrong and stays so."""
        async with _translate_errors(httpcore.ConnectError, timeout):
            try:
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
            except ssl.SSLError as error:
                raise tls_failure(server_hostname or "the host", error) or error from error
        return self

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Bytes that have arrived. Blocks of a body may exceed `max_bytes`: each block costs."""
        if self._bytes_allowed <= 0:
            raise httpcore.RemoteProtocolError("the head of the answer does not end")
        is_body = self._bytes_allowed == inf
        async with _translate_errors(httpcore.ReadError, timeout):
            block = await self._reader.read(BLOCK_BYTES if is_body else max_bytes)
        self._bytes_allowed -= len(block)
        return block

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        async with _translate_errors(httpcore.WriteError, timeout):
            self._writer.write(buffer)
            await self._writer.drain()

    async def aclose(self) -> None:
        # Not close(): a server can delay the closing handshake of TLS.
        self._writer.transport.abort()

    def get_extra_info(self, info: str) -> object:
        return self._writer.get_extra_info(info)


@asynccontextmanager
async def _translate_errors(
    kind: type[httpcore.NetworkError], timeout: float | None
) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise httpcore.ReadTimeout from error
    except OSError as error:  # ssl.SSLError is one.
        raise kind(str(error)) from error
