"""Host name → addresses, all of them public, so that no URL of a stranger leads into a private network."""

import ipaddress
import socket

from runpod.serverless.utils import rp_ssrf

NOT_PUBLIC = [  # though the SDK's check lets them pass
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # Oracle's metadata service among them
        "168.63.129.16/32",  # Azure's host
        "192.88.99.0/24", "2002::/16", "::ffff:0:0/96",  # ways to write or to reach an IPv4 address as an IPv6 one
        "fec0::/10",  # site-local
    )
]  # fmt: skip


class NotPublic(Exception):
    """A host has an address that is not public."""


def public_addresses(host: str, port: int) -> list[str]:
    """The addresses of `host`, in the order to try them; blocks while the resolver is asked.

    Raises NotPublic when one of them is not public, whatever the others are, socket.gaierror when there are none, and
    UnicodeError for what can be no name. RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS lifts the check, as in the SDK.
    """
    found = list(dict.fromkeys(info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    if rp_ssrf._ssrf_protection_enabled() and not all(map(_is_public, found)):
        raise NotPublic(host)
    return found


def _is_public(address: str) -> bool:
    return rp_ssrf.is_safe_address(address) and not any(ipaddress.ip_address(address) in network for network in NOT_PUBLIC)
