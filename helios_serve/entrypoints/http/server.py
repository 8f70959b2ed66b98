"""The uvicorn server, with draining before shutdown."""

import asyncio
import signal
import socket
from types import FrameType

import uvicorn

from helios_serve.entrypoints.http.connections import HttpConnection
from helios_serve.logger import logger
from helios_serve.service.lifecycle import Lifecycle

TICKS_PER_SECOND = 10


class HttpServer(uvicorn.Server):
    """Serves the application, and drains it on SIGTERM.

    SIGTERM drains for up to `drain_timeout` seconds and then shuts down. A second SIGTERM, or
    Ctrl-C, shuts down at once. The server also shuts down if a model fails to start, or has had no
    worker for too long.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, drain_timeout: float) -> None:
        super().__init__(config)
        self.lifecycle = lifecycle
        self.drain_timeout = drain_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and self._loop is not None and not self.lifecycle.is_draining:
            self.lifecycle.is_draining = True
            self._loop.call_soon_threadsafe(self._begin_to_drain)
        else:
            if self._loop is not None and not self.should_exit:
                self._loop.call_soon_threadsafe(
                    logger.info, "stopping now: unfinished videos resume with the next server"
                )
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self.lifecycle.failure is not None:
            self.should_exit = True
        if counter % TICKS_PER_SECOND == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpConnection):
                    connection.check_deadline()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifecycle.close()
        await super().shutdown(sockets)

    def _begin_to_drain(self) -> None:
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        logger.info("shutting down: finishing the chunks under way")
        if not await self.lifecycle.drain(self.drain_timeout):
            logger.warning(
                "some chunks did not finish within %g s: they restart with the next server",
                self.drain_timeout,
            )
        self.should_exit = True
