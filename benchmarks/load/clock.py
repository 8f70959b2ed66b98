"""The clock of a run: seconds since the start of the load, on the monotonic clock."""

import asyncio
import time
from collections.abc import Callable


class LoadClock:
    """All times of a run come from one of these. `start` sets its zero."""

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self._timer = timer
        self._zero = timer()

    def start(self) -> None:
        self._zero = self._timer()

    def now(self) -> float:
        return self._timer() - self._zero

    async def sleep_until(self, when: float) -> None:
        """Sleep until `when`; return at once if it has passed."""
        while (left := when - self.now()) > 0:
            await asyncio.sleep(left)
