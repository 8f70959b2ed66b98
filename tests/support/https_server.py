"""An HTTPS server on loopback that records requests, with a self-made certificate."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import NamedTuple

import trustme

from helios_serve.service.outbound.outbound import Address, Outbound
from helios_serve.service.outbound.urls import AllowedDomains

HOST = "receiver.example"


class Got(NamedTuple):
    """A received request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}


Respond = Callable[[Got], Reply]


class HttpsServer:
    """Responds with the result of `respond`. It listens on `address` and `port`."""

    def __init__(self, respond: Respond, address: str, authority: trustme.CA) -> None:
        self.respond = respond
        self.got: list[Got] = []
        self.arrived = threading.Condition()
        self._authority = authority
        ours = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 20

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                got = Got(self.path, headers, body)
                reply = ours.respond(got)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if "content-length" not in reply.headers:
                    self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)
                with ours.arrived:
                    ours.got.append(got)
                    ours.arrived.notify_all()

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        class QuietServer(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Ignore errors: clients disconnect in tests."""

        self._server = QuietServer((address, 0), Handler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(HOST, "localhost").configure_cert(context)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    def wait_for(self, count: int, seconds: float = 30.0) -> list[Got]:
        """Wait for `count` requests, and return them."""
        with self.arrived:
            came = self.arrived.wait_for(lambda: len(self.got) >= count, seconds)
            assert came, f"got {len(self.got)} requests, expected {count}"
            return list(self.got)

    def outbound(self, flag: str = "--allowed") -> Outbound:
        """Return an Outbound that resolves this server's name and accepts loopback as public."""

        async def resolve(host: str, port: int) -> list[Address]:
            assert (host, port) == (HOST, self.port)
            return [ip_address(self._server.server_address[0])]  # type: ignore[arg-type]

        return Outbound(
            AllowedDomains((HOST,), flag),
            ("https",),
            resolve=resolve,
            is_allowed=lambda address: address.is_loopback,
            tls=trusting(self._authority),
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@contextmanager
def https_server(
    respond: Respond = lambda _: Reply(),
    *,
    address: str = "127.0.0.1",
    authority: trustme.CA | None = None,
) -> Iterator[HttpsServer]:
    server = HttpsServer(respond, address, authority or trustme.CA())
    try:
        yield server
    finally:
        server.close()
