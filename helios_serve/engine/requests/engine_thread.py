"""Runs an EngineCore in its own thread, so that callers do not block."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar, TypeVarTuple

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import EngineEvent
from helios_serve.errors import EngineDeadError, HeliosError
from helios_serve.logger import logger

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

WAIT_SECONDS = 0.5
"""Maximum seconds for which the loop waits for events or calls before it checks deadlines."""


class Call(NamedTuple):
    """A function to call with the core and `arguments`, and the future of its result."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: "Future[Any]"


class EngineThread:
    """Runs `step` in a loop, and calls between steps.

    `on_events` is called in the thread with the events of each step. `on_end` is called with this
    object and the reason if the engine stops by itself.
    """

    def __init__(
        self,
        core: EngineCore,
        on_events: Callable[[list[EngineEvent]], None],
        on_end: "Callable[[EngineThread, str], None]",
    ) -> None:
        self.core = core
        self.on_events = on_events
        self.on_end = on_end
        self.failure: str | None = None
        self._calls: deque[Call] = deque()
        self._guard = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def call(
        self, function: Callable[[EngineCore, *Arguments], Result], *arguments: *Arguments
    ) -> "Future[Result]":
        """Call `function` with the core and `arguments` between two steps, in order of the calls.

        Raises EngineDeadError if the engine has stopped. If it stops later, the future raises it.
        """
        future: Future[Result] = Future()
        with self._guard:
            if self._closing or self.failure is not None:
                raise EngineDeadError(self.failure or "the engine is closed")
            self._calls.append(Call(function, arguments, future))
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
        except Exception as error:  # a bug: the engine's state can no longer be trusted
            logger.error("the engine failed", exc_info=error)
            failure = f"{type(error).__name__}: {error}"
        self._refuse_calls(failure)
        if not self._closing:
            self.on_end(self, failure)

    def _make_calls(self) -> None:
        while self._calls:
            function, arguments, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():  # the caller has cancelled it
                continue
            try:
                future.set_result(function(self.core, *arguments))
            except Exception as error:  # the caller handles it
                future.set_exception(error)

    def _refuse_calls(self, failure: str) -> None:
        with self._guard:
            self.failure = failure
            for call in self._calls:
                if call.future.set_running_or_notify_cancel():
                    call.future.set_exception(EngineDeadError(failure))
            self._calls.clear()
