"""The HTTP edge on a real socket, in a thread, in front of an application without models."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from starlette.applications import Starlette

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.cli.serve import listen
from helios_serve.entrypoints.http.app import make_app
from helios_serve.entrypoints.http.connections import HttpConfig
from helios_serve.entrypoints.http.server import HttpServer
from helios_serve.options.edge import EdgeOptions
from helios_serve.options.server import ServerConfig
from helios_serve.store.keys import KeyStore
from helios_serve.store.video_store import VideoStore

PATIENCE = 20.0


class Edge(NamedTuple):
    """A running server: its port, its keys as another process sees them, and its configuration."""

    port: int
    keys: KeyStore
    config: HttpConfig

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.settimeout(PATIENCE)
        return connection

    def exchange(self, *pieces: bytes) -> bytes:
        """Send the pieces on one connection, and return all that is received until it is closed."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return everything(connection)


def everything(connection: socket.socket) -> bytes:
    """Return all that is received until the other side closes."""
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    return received


@contextmanager
def running_edge(folder: Path, edge: EdgeOptions | None = None) -> Iterator[Edge]:
    """Yield a server with the whole API, but without a model."""
    edge = edge or EdgeOptions()
    store = VideoStore(folder)
    with closing(store), closing(KeyStore(folder)) as own, closing(KeyStore(folder)) as keys:
        app = make_app(AsyncEngine({}, store), store, folder, own, ServerConfig(edge=edge))
        config = HttpConfig(app, edge, timeout_graceful_shutdown=1)
        with serving(app, config) as port:
            yield Edge(port, keys, config)


@contextmanager
def serving(app: Starlette, config: HttpConfig) -> Iterator[int]:
    """Serve `app` in a thread; yields the port."""
    listener = listen("127.0.0.1", 0)
    server = HttpServer(config, app.state.lifecycle, drain_timeout=1)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_for(lambda: server.started or failures)
        assert not failures, failures
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert not failures, failures


def wait_for(condition: Any, seconds: float = PATIENCE) -> None:
    """Wait until `condition` is true. Raises TimeoutError."""

    async def wait() -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)

    asyncio.run(wait())
