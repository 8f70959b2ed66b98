"""Outbound requests: only to allowed names at public addresses."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
import trustme

from helios_serve.service.outbound.outbound import (
    Address,
    Outbound,
    OutboundError,
    is_public,
    system_addresses,
)
from helios_serve.service.outbound.urls import AllowedDomains, Url, parse_url
from tests.support.https_server import HOST, Got, HttpsServer, Reply, https_server, trusting

SECONDS = 20.0


def fetch(outbound: Outbound, url: str, seconds: float = SECONDS) -> tuple[int, bytes]:
    async def main() -> tuple[int, bytes]:
        async with outbound.request("GET", outbound.parse(url), (), seconds=seconds) as answer:
            return answer.status, b"".join([piece async for piece in answer.pieces()])

    return asyncio.run(main())


def pointed_at(*answers: list[str]) -> tuple[Outbound, list[str]]:
    """Return an Outbound whose names resolve to the given addresses in turn, and its lookups."""
    lookups: list[str] = []

    async def resolve(host: str, port: int) -> list[Address]:  # noqa: ARG001
        lookups.append(host)
        return [ip_address(address) for address in answers[len(lookups) - 1]]

    return Outbound(AllowedDomains((HOST,), "--flag"), ("https",), resolve=resolve), lookups


@pytest.mark.parametrize("address", ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111"])
def test_addresses_of_others_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::a00:1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:808:808::1",
        "3fff::1",
        "fc00::1",
        "fd12::1",
        "fe80::1",
        "fe80::1%1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_all_other_addresses_are_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    outbound, _ = pointed_at([address])
    with pytest.raises(OutboundError, match="an address that is not public"):
        fetch(outbound, f"https://{HOST}/")


def test_one_private_address_among_public_ones_is_enough() -> None:
    outbound, _ = pointed_at(["1.1.1.1", "10.0.0.1"])
    with pytest.raises(OutboundError, match="an address that is not public"):
        fetch(outbound, f"https://{HOST}/")


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f.1", "[::1]"])
def test_names_of_this_machine_are_refused_though_they_are_allowed(host: str) -> None:
    """With the system's resolver."""
    outbound = Outbound(AllowedDomains((host.strip("[]"),), "--flag"), ("http",))
    with pytest.raises(OutboundError, match="not public|cannot be resolved"):
        fetch(outbound, f"http://{host}/")


def test_the_address_that_was_checked_is_the_one_that_is_asked() -> None:
    """A resolver that would return another address the second time is called only once."""
    authority, allowed = trustme.CA(), ip_address("127.0.0.2")
    answers = iter([[allowed], [ip_address("127.0.0.1")]])

    async def resolve(host: str, port: int) -> list[Address]:  # noqa: ARG001
        return next(answers)

    with https_server(
        lambda _: Reply(body=b"ours"), address="127.0.0.2", authority=authority
    ) as ours:
        outbound = Outbound(
            AllowedDomains((HOST,), "--flag"),
            ("https",),
            resolve=resolve,
            is_allowed=lambda address: address == allowed,
            tls=trusting(authority),
        )
        assert fetch(outbound, f"{ours.url}/a?b=c") == (200, b"ours")
        assert ours.got[0].path == "/a?b=c"
        assert ours.got[0].headers["host"] == f"{HOST}:{ours.port}"
        with pytest.raises(OutboundError, match="an address that is not public"):
            fetch(outbound, f"{ours.url}/")
        assert len(ours.got) == 1


def test_an_address_that_does_not_answer_is_passed_over() -> None:
    with https_server(lambda _: Reply(body=b"ours")) as server:
        outbound = server.outbound()

        async def resolve(host: str, port: int) -> list[Address]:  # noqa: ARG001
            return [ip_address("127.0.0.9"), ip_address("127.0.0.1")]

        outbound.resolve = resolve
        assert fetch(outbound, server.url) == (200, b"ours")


def test_the_certificate_must_be_that_of_the_name() -> None:
    with https_server() as server:
        outbound = server.outbound()
        outbound.domains = AllowedDomains(("other.example",), "--flag")

        async def resolve(host: str, port: int) -> list[Address]:  # noqa: ARG001
            return [ip_address("127.0.0.1")]

        outbound.resolve = resolve
        with pytest.raises(
            OutboundError, match="invalid TLS certificate from other.example: Hostname mismatch"
        ):
            fetch(outbound, f"https://other.example:{server.port}/")
        outbound = server.outbound()
        outbound._tls = None  # which trusts the system's authorities alone
        with pytest.raises(OutboundError, match="invalid TLS certificate from .*: .*certificate"):
            fetch(outbound, server.url)
        assert not server.got


def test_redirects_are_answers_like_others() -> None:
    def respond(got: Got) -> Reply:
        assert got.path == "/"
        return Reply(302, b"", {"location": "/elsewhere"})

    with https_server(respond) as server:
        assert fetch(server.outbound(), server.url) == (302, b"")
        assert len(server.got) == 1


def test_hosts_that_are_not_allowed_are_not_looked_up() -> None:
    outbound, lookups = pointed_at(["1.1.1.1"])
    for url in ("https://example.com/", f"https://sub.{HOST}/", f"https://{HOST}.evil.example/"):
        with pytest.raises(OutboundError, match=r"got URL host .*, expected one of --flag"):
            fetch(outbound, url)
    assert not lookups


def test_a_star_allows_what_is_below_a_name() -> None:
    domains = AllowedDomains(("*.Example.com", "other.example."), "--flag")
    for host in ("a.example.com", "a.b.example.com", "other.example"):
        domains.check(host)
    for host in ("example.com", "badexample.com", "sub.other.example", "example.com.evil.example"):
        with pytest.raises(ValueError, match="expected one of --flag"):
            domains.check(host)
    for pattern in ("*", "*.", "", "http://a.example", "a.example/path", "a b"):
        with pytest.raises(ValueError, match="expected HOST or"):
            AllowedDomains((pattern,), "--flag")
    with pytest.raises(ValueError, match="--flag is not set"):
        AllowedDomains((), "--flag").check("a.example")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://a.example/",
        "gopher://a.example/",
        "//a.example/",
        "/etc/passwd",
        "https:///etc/passwd",
        "https://",
        "https://user@a.example/",
        "https://user:secret@a.example/",
        "https://a.example:70000/",
        "https://a.example\\@evil.example/",
        "https://a.example/\r\nx: y",
        "https://a.example/\tb",
        "https://a.example/ b",
        "https://exämple.com/",
        "https://[::1/",
        "https://a%00.example/",
        "https://a.example/" + 5000 * "a",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="^(invalid URL|got (a )?URL)") as caught:
        parse_url(url, ("https", "http"))
    assert "secret" not in str(caught.value)


def test_urls_are_taken_apart() -> None:
    assert parse_url("https://A.example./b?c=d#e", ("https",)) == Url(
        "https", "a.example", 443, "/b?c=d"
    )
    url = parse_url("http://[2001:db8::1]:81", ("http",))
    assert (url, url.host_header) == (
        Url("http", "2001:db8::1", 81, "/"),
        "[2001:db8::1]:81",
    )


@contextmanager
def raw_server(talk: Callable[[socket.socket], None]) -> Iterator[Outbound]:
    """Yield the address of a server that runs `talk` for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                talk(connection)

        async def resolve(host: str, port: int) -> list[Address]:  # noqa: ARG001
            return await system_addresses("127.0.0.1", listener.getsockname()[1])

        thread = threading.Thread(target=serve)
        thread.start()
        outbound = Outbound(
            AllowedDomains((HOST,), "--flag"),
            ("http",),
            resolve=resolve,
            is_allowed=lambda address: address.is_loopback,
        )
        outbound.parse = lambda _: Url("http", HOST, listener.getsockname()[1], "/")  # type: ignore[assignment, method-assign]
        yield outbound
        thread.join()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"", "incomplete or invalid HTTP response"),
        (b"nonsense\r\n\r\n", "incomplete or invalid HTTP response"),
        (
            b"HTTP/1.1 200 OK\r\n" + 100_000 * b"a",
            "incomplete or invalid HTTP response|cannot connect",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", "incomplete or invalid HTTP response"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nabc",
            "incomplete or invalid HTTP response",
        ),
    ],
)
def test_answers_that_are_none_are_told(said: bytes, message: str) -> None:
    with (
        raw_server(lambda connection: connection.sendall(said)) as outbound,
        pytest.raises(OutboundError, match=message),
    ):
        fetch(outbound, f"http://{HOST}/")


def test_an_answer_that_drips_is_not_waited_for() -> None:
    """Each byte arrives in time, but the whole response would not."""
    is_over = threading.Event()

    def drip(connection: socket.socket) -> None:
        while not is_over.wait(0.05):
            try:
                connection.sendall(b"H")
            except OSError:
                return

    with raw_server(drip) as outbound:
        try:
            with pytest.raises(OutboundError, match="no complete response .* within 0.5 seconds"):
                fetch(outbound, f"http://{HOST}/", seconds=0.5)
        finally:
            is_over.set()


def test_a_server_is_asked_for_nothing_compressed() -> None:
    with https_server() as server:
        fetch(server.outbound(), server.url)
        assert isinstance(server, HttpsServer)
        assert server.got[0].headers["accept-encoding"] == "identity"
