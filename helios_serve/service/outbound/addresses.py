"""Public network addresses: the only ones to which the server sends requests for a client."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

GLOBAL_IPV6 = IPv6Network("2000::/3")
"""All publicly routed IPv6 addresses. Others are local, or embed an IPv4 address (mapped, NAT64).
"""
SPECIAL_NETWORKS = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv6Network("2001::/23"),  # protocol assignments, including Teredo, which embeds IPv4
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("2002::/16"),  # 6to4, which embeds an IPv4 address
    IPv6Network("3fff::/20"),  # documentation
)


def is_public(address: Address) -> bool:
    """Return whether an address is publicly routed.

    Private, local, shared, multicast and reserved addresses are not, nor are IPv6 addresses that
    embed an IPv4 address.
    """
    if isinstance(address, IPv6Address) and address not in GLOBAL_IPV6:
        return False
    if any(address.version == each.version and address in each for each in SPECIAL_NETWORKS):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


async def system_addresses(host: str, port: int) -> list[Address]:
    """Return all addresses of a host, from the system's resolver. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(sockaddr[0]) for *_, sockaddr in found]
