"""Host name → addresses, all of them public, so that no client's URL reaches a private network."""

import asyncio
import ipaddress
import socket
import threading
from concurrent.futures import Future

from runpod.serverless.utils import rp_ssrf

NOT_PUBLIC = [  # in addition to the networks that the SDK's check refuses
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # Oracle's metadata service among them
        "168.63.129.16/32",  # Azure's host
        "192.88.99.0/24", "2002::/16", "::ffff:0:0/96",  # 6to4 and IPv4-mapped: IPv6 addresses that lead to IPv4 ones
        "fec0::/10",  # site-local
    )
]  # fmt: skip


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

    Raises NotPublic when any of them is not public, socket.gaierror when there are none, and UnicodeError for a `host` that
    cannot be a name. RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS lifts the check, as in the SDK.
    """
    found = list(
        dict.fromkeys(
            info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
    )
    if rp_ssrf._ssrf_protection_enabled() and not all(map(_is_public, found)):
        raise NotPublic(host)
    return found


def _is_public(address: str) -> bool:
    return rp_ssrf.is_safe_address(address) and not any(
        ipaddress.ip_address(address) in network for network in NOT_PUBLIC
    )
