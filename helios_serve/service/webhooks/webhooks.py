"""Tells a receiver of the user's which videos have ended, at least once each."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from helios_serve.logger import logger
from helios_serve.service.outbound.outbound import Outbound, OutboundError
from helios_serve.service.webhooks.endpoint import Endpoint, body_of, signed_headers
from helios_serve.store.outbox import Event, Outbox

MINUTE, HOUR = 60.0, 3600.0
DELAYS = (5.0, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 8 * HOUR, 8 * HOUR)
"""Seconds to the next attempt, after each one that failed; a day in all, then it is given up."""
JITTER = 0.2
"""Share of a delay by which it may be longer, lest all come at once."""
POLL_SECONDS = 0.5
ATTEMPT_SECONDS = 15.0
MAX_AT_ONCE = 4
GONE = 410


class Webhooks:
    """Delivers what is in the outbox, also what an earlier process has left there.

    An asynchronous context; what is under way when it ends is delivered by the next one.
    """

    def __init__(
        self,
        outbox: Outbox,
        endpoint: Endpoint,
        outbound: Outbound,
        *,
        delays: Sequence[float] = DELAYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.outbox = outbox
        self.endpoint = endpoint
        self.outbound = outbound
        self.delays = delays
        self.clock = clock
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._runs: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Webhooks":
        self._runs = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runs is not None
        tasks = (self._runs, *self._sending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        """The outbox is asked and not waited for: a job may end in any thread, or in a recovery."""
        while True:
            try:
                await self._send_due()
            except Exception as error:  # it may be better the next time, as with a full disk
                logger.error("the outbox of webhooks failed", exc_info=error)
            await asyncio.sleep(POLL_SECONDS)

    async def _send_due(self) -> None:
        """Send events until none is due or all senders are busy."""
        while (room := MAX_AT_ONCE - len(self._sending)) > 0:
            sending = tuple(self._sending)
            due = await asyncio.to_thread(self.outbox.due, self.clock(), room, exclude=sending)
            for event in due:
                self._sending[event.id] = asyncio.create_task(self._send(event))
            if not due:
                return
        await asyncio.wait(self._sending.values(), return_when=asyncio.FIRST_COMPLETED)

    async def _send(self, event: Event) -> None:
        """An event whose fate cannot be stored stays as it was: it is sent again, after a while."""
        try:
            await self._deliver(event)
        except Exception as error:
            logger.error("webhook %s failed", event.id, exc_info=error)
            await asyncio.sleep(MINUTE)
        finally:
            del self._sending[event.id]

    async def _deliver(self, event: Event) -> None:
        """One attempt, and what becomes of the event."""
        failure = await self._attempt(event)
        if failure is None:
            await asyncio.to_thread(self.outbox.forget, event.id)
        elif failure == GONE or event.attempts >= len(self.delays):
            logger.error("webhook %s is given up: %s", event.id, told(failure))
            await asyncio.to_thread(self.outbox.forget, event.id)
        else:
            delay = self.delays[event.attempts] * random.uniform(1, 1 + JITTER)
            logger.warning("webhook %s waits %.0f s: %s", event.id, delay, told(failure))
            await asyncio.to_thread(self.outbox.postpone, event.id, self.clock() + delay)

    async def _attempt(self, event: Event) -> int | str | None:
        """None if it was received, else the status or what went wrong."""
        url, secrets = self.endpoint
        body = body_of(event)
        headers = signed_headers(event, body, secrets, int(self.clock()))
        try:
            async with self.outbound.request(
                "POST", url, headers, body, seconds=ATTEMPT_SECONDS
            ) as answer:
                return None if 200 <= answer.status < 300 else answer.status
        except OutboundError as error:
            return str(error)


def told(failure: int | str) -> str:
    return f"got status {failure}, expected 200 to 299" if isinstance(failure, int) else failure
