"""The clock of a run: seconds since the start of the load, on the monotonic clock."""

import asyncio
import time


class LoadClock:
    """All times of a run come from one of these. `start` sets its zero."""

    def __init__(self) -> None:
        self._zero = time.perf_counter()

    def start(self) -> None:
        self._zero = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._zero

    async def sleep_until(self, when: float) -> None:
        """Sleep until `when`; return at once if it has passed."""
        while (left := when - self.now()) > 0:
            await asyncio.sleep(left)
