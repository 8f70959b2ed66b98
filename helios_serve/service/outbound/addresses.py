"""Which network addresses the server may be sent to by somebody else."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

GLOBAL_IPV6 = IPv6Network("2000::/3")
"""All that is routed publicly; the rest is local, or carries an IPv4 address (mapped, NAT64)."""
OTHERS = (
    IPv4Network("192.0.0.0/24"),  # protocols
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv6Network("2001::/23"),  # protocols, among them Teredo, which carries an IPv4 address
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("2002::/16"),  # 6to4, which carries an IPv4 address
    IPv6Network("3fff::/20"),  # documentation
)


def is_public(address: Address) -> bool:
    """Whether it is somebody else's: not private, local, shared, multicast or reserved, and no
    other address in disguise."""
    if isinstance(address, IPv6Address) and address not in GLOBAL_IPV6:
        return False
    if any(address.version == others.version and address in others for others in OTHERS):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


async def system_addresses(host: str, port: int) -> list[Address]:
    """What the system's resolver says; raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(where[0]) for *_, where in found]
