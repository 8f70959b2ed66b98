"""Reports of executed plans, which the thread that launches them does not wait for."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from helios_serve.messages import StepsDone
from helios_serve.model_executor.worker.chunk_end import LaunchedPlan


class Report(NamedTuple):
    """A launched plan, and the seconds that launching it took."""

    plan: LaunchedPlan
    seconds: float


class PlanReports:
    """Emits StepsDone for each plan, in order.

    With `in_thread`, for devices that work while the host continues, a thread waits for what a plan
    copies to the host: the thread that launches plans goes on with the next one.
    """

    def __init__(self, emit: Callable[[StepsDone], None], *, in_thread: bool) -> None:
        self._emit = emit
        self._in_thread = in_thread
        self._error: Exception | None = None
        self._reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()

    def put(self, plan: LaunchedPlan, seconds: float) -> None:
        """Report a plan, after those before it."""
        if self._in_thread:
            self._reports.put(Report(plan, seconds))
        else:
            self._emit(done(plan, seconds))

    @contextmanager
    def running(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Report plans within this context; leaving it waits until all are reported.

        If the thread fails, it calls `interrupt`, and leaving the context raises its error.
        """
        thread = threading.Thread(target=self._run, args=(interrupt,), name="reports", daemon=True)
        if self._in_thread:
            thread.start()
        yield
        if self._in_thread:
            self._reports.put(None)
            thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, interrupt: Callable[[], None]) -> None:
        try:
            while (report := self._reports.get()) is not None:
                self._emit(done(report.plan, report.seconds))
        except Exception as error:  # raised again where the context is left
            self._error = error
            interrupt()


def done(plan: LaunchedPlan, seconds: float) -> StepsDone:
    """Return the report of a plan, when its results are on the host."""
    return StepsDone(plan.wait(), seconds, time.process_time())
