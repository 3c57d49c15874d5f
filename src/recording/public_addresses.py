"""Host name → addresses, all of them public, so that no client's URL reaches a private network."""

import asyncio
import ipaddress
import socket
import threading
from concurrent.futures import Future

from runpod.serverless.utils import rp_ssrf

# In addition to the networks that the SDK's check refuses.
NOT_PUBLIC = (
    ipaddress.ip_network("192.0.0.0/24"),  # Oracle's metadata service is in it
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's host
    ipaddress.ip_network("192.88.99.0/24"),  # 6to4 relays
    ipaddress.ip_network("2002::/16"),  # 6to4: IPv6 addresses that lead to IPv4 ones
    ipaddress.ip_network("::ffff:0:0/96"),  # IPv4-mapped addresses lead there, too
    ipaddress.ip_network("fec0::/10"),  # site-local
)

_pending: dict[tuple[str, int], Future[list[str]]] = {}  # look-ups that run now


class NotPublic(Exception):
    """A host has an address that is not public."""


async def look_up(host: str, port: int) -> list[str]:
    """`public_addresses` in a thread, with the same result and errors.

    Each host has a thread of its own, so a resolver that hangs for one delays no other. All who ask
    for the same host share its thread, so hanging ones do not pile up. Cancelling does not wait.
    """
    pending = _pending.get((host, port))
    if pending is None:
        pending = Future()
        arguments = (host, port, pending)
        threading.Thread(target=_resolve, args=arguments, name="resolver", daemon=True).start()
        _pending[host, port] = pending
        pending.add_done_callback(lambda _: _pending.pop((host, port), None))
    return await asyncio.shield(asyncio.wrap_future(pending))


def _resolve(host: str, port: int, pending: Future[list[str]]) -> None:
    try:
        pending.set_result(public_addresses(host, port))
    except Exception as error:
        pending.set_exception(error)


def public_addresses(host: str, port: int) -> list[str]:
    """The addresses of `host`, in the order to try them. Blocks until the resolver answers.

    Raises NotPublic when any of them is not public, socket.gaierror when there are none, and
    UnicodeError for a `host` that cannot be a name. RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS lifts the
    check, as in the SDK.
    """
    found = []
    for *_, socket_address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        address = str(socket_address[0])
        if address not in found:
            found.append(address)
    if rp_ssrf._ssrf_protection_enabled() and not all(map(_is_public, found)):
        raise NotPublic(host)
    return found


def _is_public(address: str) -> bool:
    if not rp_ssrf.is_safe_address(address):
        return False
    parsed = ipaddress.ip_address(address)
    return not any(parsed in network for network in NOT_PUBLIC)
