"""Connections of clients: deadlines until a request is complete, and limits on their number."""

import asyncio
import http
import os
import re
import resource
import sys
from collections.abc import Callable
from typing import Any, Protocol, cast

import h11
import msgspec
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from helios_serve.entrypoints.http.authentication import ACCEPTED
from helios_serve.errors import InvalidRequestError
from helios_serve.options.edge import EdgeOptions
from helios_serve.service.errors import ApiError
from helios_serve.service.protocol import ErrorBody

MAX_HEADER = 32 << 10
"""Maximum size in bytes of a request's header, with its path."""
MIN_RATE = 1 << 10
"""Bytes per second at which a body must arrive on average."""
MAX_HEADER_LINES = 128
HEADER_END = re.compile(rb"\n\r?\n")
MANY_PIECES, SMALL_PIECE = 2000, 64
"""A chunked body with more pieces than this, smaller on average than that, is refused: each takes
as long to parse as kilobytes of a larger one.
"""
LINGER_SECONDS = 5.0
"""Seconds for which the rest of a body is read after its response. A client that is still sending
does not see the response if the connection is closed at once.
"""
MAX_FRAGMENTS = 4096
"""Maximum number of frames of a WebSocket message: the size limit does not count empty ones."""
RESERVED_FILES = 64
"""Open files kept for segments, databases and workers."""
FILES_PER_CONNECTION = 2
"""A connection, and the file that it uploads or downloads."""
FEWEST_CONNECTIONS = 8
WANTED_FILES = 65536


class Client(Protocol):
    """A connection as `Connections` counts it."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress, so that the connection may be closed."""

    def drop(self) -> None:
        """Close the connection at once."""


class Connections:
    """All open connections, oldest first: those with an accepted request, and the others.

    At most `most` are open. At most half of these have no accepted request; beyond this, the oldest
    of them is closed, so that connections without a key cannot shut out clients that have one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.strangers: dict[Client, None] = {}
        self.known: dict[Client, None] = {}

    def add(self, client: Client) -> None:
        """Add a new connection, and close another one if there are too many."""
        self.strangers[client] = None
        if len(self.strangers) > self.most // 2:
            self._drop(next(iter(self.strangers)))
        elif len(self.strangers) + len(self.known) > self.most:
            idle = (known for known in self.known if known.is_idle)
            oldest = next(iter(self.strangers))
            self._drop(next(idle, oldest) if oldest is client else oldest)

    def accept(self, client: Client) -> None:
        """Note that a request of the connection was authenticated."""
        if client in self.strangers:
            del self.strangers[client]
            self.known[client] = None

    def discard(self, client: Client) -> None:
        self.strangers.pop(client, None)
        self.known.pop(client, None)

    def _drop(self, client: Client) -> None:
        self.discard(client)
        client.drop()


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration, with the options of the edge. `connections` are all open ones."""

    def __init__(self, app: ASGIApp, edge: EdgeOptions, **options: Any) -> None:
        super().__init__(
            app,
            loop="uvloop",
            http=HttpConnection,
            ws=SocketConnection,
            h11_max_incomplete_event_size=MAX_HEADER,
            timeout_keep_alive=edge.keep_alive_timeout,  # type: ignore[arg-type]
            log_config=None,
            access_log=False,
            server_header=False,
            **options,
        )
        self.edge = edge
        self.connections = Connections(most_connections(edge.max_connections))


def most_connections(asked: int) -> int:
    """Return how many connections the limit of open files allows, at most `asked`.

    The limit is raised as far as the system allows. Raises InvalidRequestError if it is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    used = len(os.listdir("/proc/self/fd")) + RESERVED_FILES
    most = min(asked, (soft - used) // FILES_PER_CONNECTION)
    if most < FEWEST_CONNECTIONS:
        needed = used + FILES_PER_CONNECTION * FEWEST_CONNECTIONS
        raise InvalidRequestError(
            f"got a limit of {soft} open files, expected at least {needed} (ulimit -n)",
            param="max-connections",
        )
    return most


class BoundedConnection(h11.Connection):
    """A connection that refuses requests of too many header lines or too small chunks.

    It also refuses a request that states its length twice, as Content-Length and as chunks: a proxy
    that reads the other one would take part of the body for a request (RFC 9112, section 6.1).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(h11.SERVER, **options)
        self.pieces = self.size = 0

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            header = HEADER_END.split(self.trailing_data[0], maxsplit=1)[0]
            if header.count(b"\n") > MAX_HEADER_LINES:
                raise h11.RemoteProtocolError("too many header lines", error_status_hint=431)
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.pieces = self.size = 0
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("got both Content-Length and Transfer-Encoding")
        elif isinstance(event, h11.Data):
            self.pieces += 1
            self.size += len(event.data)
            if self.pieces > MANY_PIECES and self.size < SMALL_PIECE * self.pieces:
                raise h11.RemoteProtocolError(
                    f"got {self.pieces} chunks of {self.size} bytes in all, expected larger ones"
                )
        return event


class HttpConnection(H11Protocol):
    """An HTTP/1 connection, closed if a request does not arrive in time."""

    def __init__(self, config: HttpConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self.edge = config.edge
        self.clients = config.connections
        self.conn = BoundedConnection(max_incomplete_event_size=MAX_HEADER)
        self.app = with_acceptance(config.loaded_app, lambda: self.clients.accept(self))
        self._phase = "header"
        self._began = self._heard = 0.0
        self._received = 0
        self._is_lingering = False

    @property
    def is_idle(self) -> bool:
        return self._current_phase() in ("idle", "header")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._began = self._heard = self.loop.time()
        self.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.clients.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            return
        self._received += len(data)
        self._heard = self.loop.time()
        for start in range(0, len(data), MAX_HEADER):
            if self.conn.their_state is not h11.IDLE or len(data) <= MAX_HEADER:
                super().data_received(data[start:])
                break
            super().data_received(data[start : start + MAX_HEADER])
            if self._is_over:
                break
        self._update_phase()

    def handle_events(self) -> None:
        cycle = self.cycle
        super().handle_events()
        if self.cycle is not cycle:
            self.cycle.transport = cast(asyncio.Transport, LingeringTransport(self))

    def on_response_complete(self) -> None:
        if not self._is_lingering:
            super().on_response_complete()
        self._update_phase()

    def close(self) -> None:
        """Close the connection after a response. While the client sends its body, linger."""
        if self.conn.their_state is h11.SEND_BODY and not self._is_lingering:
            self._is_lingering = True
            self.flow.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._update_phase()
        else:
            self.transport.close()

    @property
    def _is_over(self) -> bool:
        """Whether the connection is closing, or has become a WebSocket."""
        return self.transport.is_closing() or self.transport.get_protocol() is not self

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self.clients.discard(self)
        super().handle_websocket_upgrade(event)

    def _get_upgrade(self) -> bytes | None:
        """Return the protocol that the client offers. It may send `connection` several times."""
        values = [value for name, value in self.headers if name == b"connection"]
        tokens = {token.strip().lower() for value in values for token in value.split(b",")}
        return dict(self.headers).get(b"upgrade", b"").lower() if b"upgrade" in tokens else None

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore an offer to upgrade to another protocol (RFC 9110, section 7.8)."""

    def check_deadline(self) -> None:
        """Close the connection if the deadline of its current phase has passed."""
        now = self.loop.time()
        waited = now - self._began
        match self._phase:
            case "header" if waited > self.edge.header_timeout:
                self._time_out("header of a request", self.edge.header_timeout)
            case "body" if self.flow.read_paused:  # the client waits for the server
                self._began = self._heard = now
            case "body" if (
                now - self._heard > self.edge.body_timeout
                or waited > self.edge.body_timeout + self._received / MIN_RATE
            ):
                self._time_out("body of a request", self.edge.body_timeout)
            case "idle" if waited > self.edge.keep_alive_timeout:
                self.transport.close()
            case "rest" if waited > LINGER_SECONDS:
                self.transport.close()

    def shutdown(self) -> None:
        """Close the connection, after the response if a request has arrived."""
        if self._current_phase() == "response":
            super().shutdown()
        else:
            self.transport.close()

    def drop(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer a request that is not valid HTTP."""
        error = sys.exception()
        status, code, message = 400, "invalid_request", "request is not valid HTTP"
        if isinstance(error, h11.RemoteProtocolError):
            message = f"{message}: {str(error)[:200]}"
            status = error.error_status_hint
            if error.error_status_hint == 431:
                code = "header_too_large"
                message = (
                    f"request header is too large, expected at most {MAX_HEADER} bytes and "
                    f"{MAX_HEADER_LINES} lines"
                )
        self._refuse(ApiError(status, message, code=code))

    def _current_phase(self) -> str:
        """Return the phase: what the connection waits for."""
        if self._is_lingering:
            return "rest"
        if self.conn.their_state is h11.SEND_BODY:
            return "rest" if self.cycle.response_complete else "body"
        if self.conn.their_state is h11.IDLE:
            return "header" if self.cycle is None or self.conn.trailing_data[0] else "idle"
        return "response"

    def _update_phase(self) -> None:
        if self._is_over:
            return
        phase = self._current_phase()
        if phase != self._phase:
            self._phase = phase
            self._began = self.loop.time()
            self._received = 0

    def _time_out(self, what: str, seconds: float) -> None:
        """Close the connection. If part of a request has arrived, send an error response first."""
        if self._phase == "header" and not self.conn.trailing_data[0]:
            self.transport.close()
            return
        message = f"timed out, expected the {what} within {seconds:g} s"
        self._refuse(ApiError(408, message, code="timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Send an error response, unless another response has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = msgspec.json.encode(ErrorBody(error.detail))
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            reason = http.HTTPStatus(error.status).phrase.encode()
            response = h11.Response(status_code=error.status, headers=headers, reason=reason)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class LingeringTransport:
    """The part of a transport that responses use; closing it does not lose the response.

    A connection that is closed while data arrives is reset, and the client sees an error in place
    of the response.
    """

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        self._connection.close()


class SocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket connection."""

    def __init__(self, config: HttpConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self.clients = config.connections
        self.app = with_acceptance(self.app, lambda: self.clients.accept(self))

    is_idle = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.clients.discard(self)
        super().connection_lost(exc)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # refused, which uvicorn would log as an error

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self.conn.fail(1009, "too many frames in a message")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def drop(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def with_acceptance(app: Any, accepted: Callable[[], None]) -> ASGIApp:
    """Return `app` with a function in the scope that is called for an authenticated request."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, ACCEPTED: accepted}, receive, send)

    return run
