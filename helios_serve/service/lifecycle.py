"""Life cycle of the server: start, drain and shutdown."""

import asyncio
import time

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.errors import CapacityError
from helios_serve.logger import logger

POLL_SECONDS = 0.1


class Lifecycle:
    """The server's state. An asynchronous context manager, used inside the engine's.

    `failure` is the reason why a model cannot be served, if none of its workers could start.
    `closing` is set at shutdown, so that endless responses end. `address` is the URL of the server,
    for its log.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.closing = asyncio.Event()
        self.failure: str | None = None
        self.is_draining = False
        self.address: str | None = None
        self._started = time.monotonic()
        self._starting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Lifecycle":
        self._starting = asyncio.create_task(self._watch_start(), name="watch start")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._starting is not None
        self._starting.cancel()
        await asyncio.gather(self._starting, return_exceptions=True)

    def check_open(self) -> None:
        """Raise CapacityError if the server is shutting down."""
        if self.is_draining:
            raise CapacityError("the server is shutting down", code="shutting_down")

    async def drain(self, timeout: float) -> bool:
        """Reject new videos and wait until the chunks under way are finished.

        Return whether this took at most `timeout` seconds.
        """
        self.is_draining = True
        return await self.engine.models.drain(timeout)

    def close(self) -> None:
        """End all streams and long responses."""
        self.is_draining = True
        self.closing.set()
        self.engine.close_readers()

    async def _watch_start(self) -> None:
        waiting = set(self.engine.models.cores)
        while waiting and self.failure is None:
            await asyncio.sleep(POLL_SECONDS)
            stats = await self.engine.models.stats()
            ready = {name for name in waiting if name in stats and stats[name].workers}
            for name in ready:
                logger.info("%s is ready after %.1f s", name, self._seconds)
            waiting -= ready
            for name in waiting & self.engine.models.failures.keys():
                self.failure = self.engine.models.failures[name]
        if self.failure is None and self.address is not None:
            logger.info("ready in %.1f s: open %s/ in a browser", self._seconds, self.address)

    @property
    def _seconds(self) -> float:
        """Seconds since the server began to start its workers."""
        return time.monotonic() - self._started
