"""The server's own life: it starts, serves, comes to rest, and closes."""

import asyncio

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.errors import CapacityError

LOOK_SECONDS = 0.1


class Lifecycle:
    """An asynchronous context around one engine.

    `failure` says why a model cannot be served, if that turned out before one of its workers was
    ready. `closing` is set when answers that have no end of their own should come to one.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.closing = asyncio.Event()
        self.failure: str | None = None
        self.is_draining = False
        self._starting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Lifecycle":
        self._starting = asyncio.create_task(self._watch_start(), name="watch start")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._starting is not None
        self._starting.cancel()
        await asyncio.gather(self._starting, return_exceptions=True)

    def check_open(self) -> None:
        """Raise CapacityError if nothing new is taken any more."""
        if self.is_draining:
            raise CapacityError("the server is shutting down", code="shutting_down")

    async def drain(self, timeout: float) -> bool:
        """Take nothing new, bring what is under way to its next chunk edge, and end all readers;
        whether `timeout` seconds were enough."""
        self.is_draining = True
        return await self.engine.models.drain(timeout)

    def close(self) -> None:
        """Let every reader hear that no more comes."""
        self.is_draining = True
        self.closing.set()
        self.engine.close_readers()

    async def _watch_start(self) -> None:
        waiting = set(self.engine.models.cores)
        while waiting and self.failure is None:
            await asyncio.sleep(LOOK_SECONDS)
            stats = await self.engine.models.stats()
            waiting -= {name for name, item in stats.items() if item.workers}
            for name in waiting & self.engine.models.failures.keys():
                self.failure = self.engine.models.failures[name]
