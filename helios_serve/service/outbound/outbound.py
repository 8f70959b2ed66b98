"""HTTP client for requests on a client's behalf, safe against server-side request forgery."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import h11

from helios_serve.service.outbound.urls import AllowedDomains, Url, parse_url

PIECE = 1 << 16
"""Maximum bytes read at a time."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
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


class OutboundError(Exception):
    """A request that was not allowed or failed. The message contains the URL's host at most."""


class OutboundResponse:
    """Status, headers and body of a response. Header names are lower case."""

    def __init__(
        self,
        host: str,
        response: h11.Response,
        connection: h11.Connection,
        reader: asyncio.StreamReader,
    ) -> None:
        self.status = response.status_code
        self.headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers
        }
        self._host = host
        self._connection = connection
        self._reader = reader

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, without decompression. Raises OutboundError."""
        while True:
            with connection_errors(self._host):
                event = await next_event(self._connection, self._reader)
            if not isinstance(event, h11.Data):
                return
            yield bytes(event.data)


class Outbound:
    """Sends HTTP requests to allowed hosts at public addresses.

    The host name is resolved once. All of its addresses must be public, and the connection goes to
    one of them, so DNS rebinding has no effect. Redirects are not followed, and proxies are not
    used.

    Args:
        domains: The allowed hosts.
        schemes: The allowed URL schemes.
        resolve: Resolver; tests replace it, because they have no network except loopback.
        is_allowed: Which addresses are allowed; tests replace it, too.
        tls: TLS settings; the system's by default.
    """

    def __init__(
        self,
        domains: AllowedDomains,
        schemes: Sequence[str],
        *,
        resolve: Resolve = system_addresses,
        is_allowed: Callable[[Address], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.domains = domains
        self.schemes = schemes
        self.resolve = resolve
        self.is_allowed = is_allowed
        self._tls = tls

    def parse(self, text: str) -> Url:
        """Parse a URL. Raises OutboundError if it is invalid or its host is not allowed."""
        try:
            url = parse_url(text, self.schemes)
            self.domains.check(url.host)
        except ValueError as error:
            raise OutboundError(str(error)) from error
        return url

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: Url,
        headers: Sequence[tuple[str, str]],
        body: bytes = b"",
        *,
        seconds: float,
    ) -> AsyncIterator[OutboundResponse]:
        """Send a request and yield its response.

        The request and the `async with` block together may take `seconds`. Raises OutboundError.
        """
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(seconds):
                with connection_errors(url.host):
                    reader, writer = await self._connect(url)
                    connection = h11.Connection(h11.CLIENT)
                    writer.write(encode_request(connection, method, url, headers, body))
                    await writer.drain()
                    response = await read_response(connection, reader)
                yield OutboundResponse(url.host, response, connection, reader)
        except TimeoutError as error:
            message = f"no complete response from {url.host} within {seconds:g} seconds"
            raise OutboundError(message) from error
        finally:
            if writer is not None:
                writer.transport.abort()

    async def _connect(self, url: Url) -> Streams:
        """Connect to the first address that accepts the connection."""
        failure = OSError(0, "host has no address")
        tls = self._context() if url.scheme == "https" else None
        for address in await self._addresses(url):
            try:
                return await asyncio.open_connection(
                    str(address), url.port, ssl=tls, server_hostname=url.host if tls else None
                )
            except OSError as error:
                failure = error
        raise failure

    async def _addresses(self, url: Url) -> Sequence[Address]:
        try:
            found = await self.resolve(url.host, url.port)
        except (OSError, UnicodeError) as error:
            raise OutboundError(f"host {url.host} cannot be resolved") from error
        if not all(self.is_allowed(address) for address in found):
            raise OutboundError(f"host {url.host} has an address that is not public")
        return list(dict.fromkeys(found))

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


@contextmanager
def connection_errors(host: str) -> Iterator[None]:
    """Convert connection errors to OutboundErrors, whose messages may be shown to clients."""
    try:
        yield
    except (h11.ProtocolError, EOFError) as error:
        raise OutboundError(f"incomplete or invalid HTTP response from {host}") from error
    except ssl.SSLCertVerificationError as error:
        raise OutboundError(
            f"invalid TLS certificate from {host}: {error.verify_message}"
        ) from error
    except OSError as error:
        raise OutboundError(f"cannot connect to {host}: {error.strerror or error}") from error


def encode_request(
    connection: h11.Connection,
    method: str,
    url: Url,
    headers: Sequence[tuple[str, str]],
    body: bytes,
) -> bytes:
    """Return a complete HTTP request as bytes."""
    own = [
        ("host", url.host_header),
        ("user-agent", "helios-serve"),
        ("accept-encoding", "identity"),
        ("connection", "close"),
    ]
    if body:
        own.append(("content-length", str(len(body))))
    head = connection.send(h11.Request(method=method, target=url.target, headers=[*own, *headers]))
    content = connection.send(h11.Data(body)) if body else b""
    end = connection.send(h11.EndOfMessage())
    return (head or b"") + (content or b"") + (end or b"")


async def read_response(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Response:
    """Return the final response's status and headers. Informational responses (1xx) are skipped."""
    while not isinstance(event := await next_event(connection, reader), h11.Response):
        if not isinstance(event, h11.InformationalResponse):
            raise EOFError
    return event


async def next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    """Return the next event of a response. h11 limits the size of the headers."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(PIECE))
    return event
