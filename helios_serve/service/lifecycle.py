"""Life cycle of the server: start, drain and shutdown."""

import asyncio
import time

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.errors import CapacityError
from helios_serve.logger import logger

POLL_SECONDS = 0.1


class Lifecycle:
    """The server's state. An asynchronous context manager, used inside the engine's.

    `failure` is the reason why a model cannot be served: none of its workers could start, or none
    has been able to for `max_outage` seconds (None: however long). `closing` is set at shutdown, so
    that endless responses end. `address` is the URL of the server, for its log.
    """

    def __init__(self, engine: AsyncEngine, max_outage: float | None = None) -> None:
        self.engine = engine
        self.max_outage = max_outage
        self.closing = asyncio.Event()
        self.failure: str | None = None
        self.is_draining = False
        self.address: str | None = None
        self._started = time.monotonic()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Lifecycle":
        self._watching = asyncio.create_task(self._watch(), name="watch workers")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._watching is not None
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)

    def check_open(self) -> None:
        """Raise CapacityError if the server is shutting down."""
        if self.is_draining:
            raise CapacityError("the server is shutting down", code="shutting_down")

    async def drain(self, timeout: float) -> bool:
        """Reject new videos and wait until the chunks under way are finished.

        Return whether this took at most `timeout` seconds.
        """
        self.is_draining = True
        return await self.engine.drain(timeout)

    def close(self) -> None:
        """End all streams and long responses."""
        self.is_draining = True
        self.closing.set()
        self.engine.close_readers()

    async def _watch(self) -> None:
        waiting = set(self.engine.models.cores)
        while self.failure is None:
            await asyncio.sleep(POLL_SECONDS)
            stats = await self.engine.models.stats()
            ready = {name for name in waiting if name in stats and stats[name].workers}
            for name in ready:
                logger.info("%s is ready after %.1f s", name, self._seconds)
            waiting -= ready
            for name in waiting & self.engine.models.failures.keys():
                self.failure = self.engine.models.failures[name]
            if ready and not waiting and self.address is not None:
                logger.info("ready in %.1f s: open %s/ in a browser", self._seconds, self.address)
            for name, item in stats.items():
                outage = item.outage
                if outage and self.max_outage is not None and outage.seconds > self.max_outage:
                    self.failure = (
                        f"{name}: {outage.reason}; none has been ready for {outage.seconds:.0f} s "
                        "(--exit-without-workers)"
                    )

    @property
    def _seconds(self) -> float:
        """Seconds since the server began to start its workers."""
        return time.monotonic() - self._started
