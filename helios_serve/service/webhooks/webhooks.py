"""Webhook delivery: reports finished videos to an endpoint, at least once each."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from helios_serve.logger import logger
from helios_serve.service.outbound.outbound import Outbound, OutboundError
from helios_serve.service.webhooks.endpoint import Endpoint, encode_body, signed_headers
from helios_serve.store.outbox import Event, Outbox

MINUTE, HOUR = 60.0, 3600.0
DELAYS = (5.0, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 8 * HOUR, 8 * HOUR)
"""Seconds before each retry, about a day in all. Then the event is dropped."""
JITTER = 0.2
"""Maximum random extension of a delay, as a fraction, so that retries do not arrive all at once."""
POLL_SECONDS = 0.5
ATTEMPT_SECONDS = 15.0
MAX_AT_ONCE = 4
GONE = 410


class Webhooks:
    """Delivers the events in the outbox, including those of earlier processes.

    An asynchronous context manager. Deliveries that are under way at its end are repeated by the
    next process.

    Args:
        outbox: The stored events.
        endpoint: Where to send them.
        outbound: Sends the requests.
        delays: Seconds before each retry.
        clock: Returns Unix seconds.
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
        self._runner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Webhooks":
        self._runner = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        tasks = (self._runner, *self._sending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        """Poll the outbox.

        It has no notification, because jobs end in any thread and during recovery.
        """
        while True:
            try:
                await self._send_due()
            except Exception as error:  # such as a full disk: the next poll may succeed
                logger.error("cannot read the webhook outbox", exc_info=error)
            await asyncio.sleep(POLL_SECONDS)

    async def _send_due(self) -> None:
        """Send events until none is due or all sender slots are busy."""
        while (room := MAX_AT_ONCE - len(self._sending)) > 0:
            sending = tuple(self._sending)
            due = await asyncio.to_thread(self.outbox.due, self.clock(), room, exclude=sending)
            for event in due:
                self._sending[event.id] = asyncio.create_task(self._send(event))
            if not due:
                return
        await asyncio.wait(self._sending.values(), return_when=asyncio.FIRST_COMPLETED)

    async def _send(self, event: Event) -> None:
        """Deliver an event. If its outcome cannot be stored, it is sent again after a minute."""
        try:
            await self._deliver(event)
        except Exception as error:
            logger.error("cannot deliver webhook %s or store its outcome", event.id, exc_info=error)
            await asyncio.sleep(MINUTE)
        finally:
            del self._sending[event.id]

    async def _deliver(self, event: Event) -> None:
        """Make one attempt, and store its outcome."""
        failure = await self._attempt(event)
        if failure is None:
            await asyncio.to_thread(self.outbox.forget, event.id)
        elif failure == GONE or event.attempts >= len(self.delays):
            logger.error("webhook %s dropped: %s", event.id, describe_failure(failure))
            await asyncio.to_thread(self.outbox.forget, event.id)
        else:
            delay = self.delays[event.attempts] * random.uniform(1, 1 + JITTER)
            logger.warning(
                "webhook %s failed, retrying in %.0f s: %s",
                event.id,
                delay,
                describe_failure(failure),
            )
            await asyncio.to_thread(self.outbox.postpone, event.id, self.clock() + delay)

    async def _attempt(self, event: Event) -> int | str | None:
        """Send an event once. Return None on success, else the HTTP status or an error message."""
        url, secrets = self.endpoint
        body = encode_body(event)
        headers = signed_headers(event, body, secrets, int(self.clock()))
        try:
            async with self.outbound.request(
                "POST", url, headers, body, seconds=ATTEMPT_SECONDS
            ) as response:
                return None if 200 <= response.status < 300 else response.status
        except OutboundError as error:
            return str(error)


def describe_failure(failure: int | str) -> str:
    return f"got status {failure}, expected 200 to 299" if isinstance(failure, int) else failure
