"""An EngineCore in a thread of its own, for callers that must not wait for it."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import EngineEvent
from helios_serve.errors import EngineDeadError, HeliosError
from helios_serve.logger import logger

Result = TypeVar("Result")

WAIT_SECONDS = 0.5
"""How long the loop waits for a worker or a call before it looks at deadlines again."""


class EngineThread:
    """Runs `step` over and over, and calls in between; `on_events` is called in the thread.

    `on_end` is told why, should the engine have to give up.
    """

    def __init__(
        self,
        core: EngineCore,
        on_events: Callable[[list[EngineEvent]], None],
        on_end: Callable[[str], None],
    ) -> None:
        self.core = core
        self.on_events = on_events
        self.on_end = on_end
        self.failure: str | None = None
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._guard = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[EngineCore], Result]) -> "Future[Result]":
        """Have `function` called between two steps; raises EngineDeadError when there are none."""
        future: Future[Result] = Future()
        with self._guard:
            if self._closing or self.failure is not None:
                raise EngineDeadError(self.failure or "the engine is closed")
            self._calls.append((lambda: function(self.core), future))
        self.core.executor.wake()
        return future

    def close(self) -> None:
        """End the workers and the thread."""
        with self._guard:
            self._closing = True
        self.core.executor.wake()
        self._thread.join()
        self.core.executor.shutdown()

    def _run(self) -> None:
        failure = "the engine is closed"
        try:
            while not self._closing:
                self._make_calls()
                events = self.core.step(WAIT_SECONDS)
                if events:
                    self.on_events(events)
        except HeliosError as error:
            failure = str(error)
        except Exception as error:  # a fault of ours: nothing can be relied on any more
            logger.error("the engine failed", exc_info=error)
            failure = f"{type(error).__name__}: {error}"
        self._refuse_calls(failure)
        if not self._closing:
            self.on_end(failure)

    def _make_calls(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():  # nobody waits for it any more
                continue
            try:
                future.set_result(function())
            except Exception as error:  # the caller's to handle
                future.set_exception(error)

    def _refuse_calls(self, failure: str) -> None:
        with self._guard:
            self.failure = failure
            for _, future in self._calls:
                if future.set_running_or_notify_cancel():
                    future.set_exception(EngineDeadError(failure))
            self._calls.clear()
