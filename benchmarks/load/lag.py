"""Measures the client's own delay: how late its event loop runs callbacks."""

import asyncio
import os
import resource
import sys

from helios_serve.benchmarks.load.clock import LoadClock

PERIOD = 0.01
"""Seconds between two measurements."""


class LagMeter:
    """Measures the delay of the event loop, and the CPU time of this process, while it runs."""

    def __init__(self, clock: LoadClock) -> None:
        self._clock = clock
        self.lags: list[float] = []
        self.cpu_share = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        began, used = self._clock.now(), cpu_seconds()
        try:
            while True:
                due = self._clock.now() + PERIOD
                await asyncio.sleep(PERIOD)
                self.lags.append(max(0.0, self._clock.now() - due))
        finally:
            self.cpu_share = (cpu_seconds() - used) / max(self._clock.now() - began, 1e-9)


def memory_mib() -> float:
    """Return the most memory that this process has used, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system
