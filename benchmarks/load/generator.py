"""Runs a workload against a target, and records every session."""

import asyncio
from collections.abc import Callable, Iterator

from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.load.workload import Workload
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.targets.target import (
    SessionFailedError,
    SessionRefusedError,
    Target,
    UnreachableError,
)

MAX_UNREACHABLE = 10
"""Sessions in a row that cannot connect, after which no more are started."""
LEAVE_SECONDS = 5.0


class LoadGenerator:
    """Starts the sessions of a workload at their times (open loop), or by users (closed loop).

    In an open loop, a late server delays no session: each starts at its own time. `records` holds
    the sessions that were offered, in the order of their starts.
    """

    def __init__(
        self,
        workload: Workload,
        target: Target,
        clock: LoadClock,
        *,
        timeout: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.workload = workload
        self.target = target
        self.clock = clock
        self.timeout = timeout
        self.records: list[SessionRecord] = []
        self.sent: list[SessionRequest] = []
        self.stopped_because: str | None = None
        self._on_change = on_change
        self._stopping = asyncio.Event()
        self._sessions: set[asyncio.Task[None]] = set()
        limit = workload.options.max_concurrency
        self._slots = None if limit is None else asyncio.Semaphore(limit)
        self._unreachable = 0

    async def run(self) -> None:
        """Run all sessions to their ends, or until `stop`."""
        self.clock.start()
        starting = asyncio.ensure_future(
            self._run_closed() if self.workload.is_closed else self._run_open()
        )
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if self._stopping.is_set():
            starting.cancel()
            for session in self._sessions:
                session.cancel()
        stopping.cancel()
        await asyncio.wait((starting, stopping, *self._sessions))
        if not starting.cancelled():
            starting.result()

    def stop(self, reason: str) -> None:
        """Start no more sessions, and abandon those under way."""
        self.stopped_because = self.stopped_because or reason
        self._stopping.set()

    async def _run_open(self) -> None:
        for request in self.workload.requests:
            await self.clock.sleep_until(request.intended)
            self._start(request, request.intended)
        while self._sessions:
            await asyncio.wait(self._sessions)

    async def _run_closed(self) -> None:
        requests = iter(self.workload.requests)
        await asyncio.gather(
            *(self._user(requests) for _ in range(self.workload.options.users or 0))
        )

    async def _user(self, requests: Iterator[SessionRequest]) -> None:
        """Run one session after the other, until none is left or the time is up."""
        options, intended = self.workload.options, 0.0
        for request in requests:
            if options.duration is not None and intended >= options.duration:
                return
            await asyncio.wait((self._start(request, intended),))
            intended = self.clock.now() + options.think_time
            await self.clock.sleep_until(intended)

    def _start(self, request: SessionRequest, intended: float) -> "asyncio.Task[None]":
        record = SessionRecord.of(request, len(self.records), intended)
        self.records.append(record)
        self.sent.append(request)
        session = asyncio.create_task(self._session(request, record))
        self._sessions.add(session)
        session.add_done_callback(self._sessions.discard)
        return session

    async def _session(self, request: SessionRequest, record: SessionRecord) -> None:
        """Run a session, and note how it ended."""
        try:
            if self._slots is None:
                await self._run_session(request, record)
            else:
                async with self._slots:
                    record.released = self.clock.now()
                    await self._run_session(request, record)
        except asyncio.CancelledError:
            record.end("cancelled", "interrupted")
            await self._leave(record)
        finally:
            record.ended = self.clock.now()
            self._on_change()

    async def _run_session(self, request: SessionRequest, record: SessionRecord) -> None:
        leaves = request.stop_after_ms
        patience = self.timeout if leaves is None else min(self.timeout, leaves / 1000)
        left = record.intended + patience - self.clock.now()
        try:
            async with asyncio.timeout(max(left, 0.0)):
                await self.target.run(request, record)
            record.end("completed")
            self._unreachable = 0
        except TimeoutError:
            has_left = leaves is not None and patience < self.timeout
            record.end(*(("cancelled", "left") if has_left else ("timed_out", "timeout")))
            await self._leave(record)
        except SessionRefusedError as error:
            is_accepted = record.accepted is not None
            record.end("failed" if is_accepted else "refused", error.code, str(error))
            self._unreachable = 0
        except SessionFailedError as error:
            record.end("failed", error.code, str(error))
            self._count_unreachable(error)

    def _count_unreachable(self, error: SessionFailedError) -> None:
        self._unreachable = self._unreachable + 1 if isinstance(error, UnreachableError) else 0
        if self._unreachable >= MAX_UNREACHABLE:
            self.stop(f"the server cannot be reached: {error}")

    async def _leave(self, record: SessionRecord) -> None:
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self.target.leave(record)
        except TimeoutError:
            pass
