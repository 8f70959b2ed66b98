"""Virtual time: of an event loop whose timers are due at once, or of an engine alone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class VirtualClock(Protocol):
    """Seconds that pass without waiting."""

    def now(self) -> float:
        """Return the seconds since the beginning."""

    def wait_until(self, time: float) -> None:
        """Let the time pass up to `time`, or note that its owner has nothing to do before."""


class SteppedClock:
    """Time that passes whenever an engine waits for its workers."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wait_until(self, time: float) -> None:
        self.time = max(self.time, time)


class LoopTime:
    """The time of the running event loop. `wake_at` is the time up to which its owner waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.wake_at = 0.0

    def now(self) -> float:
        return self._loop.time()

    def wait_until(self, time: float) -> None:
        self.wake_at = time


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Waiting takes no time: the clock jumps to the next timer. It starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self._passed = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None) -> Any:
            if timeout is None:
                raise RuntimeError("a coroutine waits for what never happens")
            if timeout > 0:
                timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
                self._passed = timers[0].when()
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._passed


def run_virtual(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in virtual time, and return its result.

    Raises RuntimeError if it waits for what never happens.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
