"""Cells behind a balancer that knows how many sessions each had when it last reported."""

import asyncio
import random
from collections.abc import Sequence

from helios_serve.benchmarks.simulator.cell import Cell, CellCounts


class Fleet:
    """Sends each session to the cell with the fewest sessions for its workers.

    The balancer knows what the cells reported last, every `report_lag` seconds, and what it has
    sent to each of them since.
    """

    def __init__(self, cells: Sequence[Cell], *, report_lag: float) -> None:
        self.cells = tuple(cells)
        self._lag = report_lag
        self._loads = [0] * len(cells)
        self._reported_at = 0.0

    @property
    def workers(self) -> int:
        return sum(len(cell.config.workers) for cell in self.cells)

    def choose(self, now: float) -> Cell | None:
        """Return the cell for one more session at `now`; None if all are down."""
        if now - self._reported_at >= self._lag:
            self._loads = [len(cell.sessions) for cell in self.cells]
            self._reported_at = now
        up = [index for index, cell in enumerate(self.cells) if cell.is_up]
        if not up:
            return None
        best = min(up, key=lambda index: self._loads[index] / len(self.cells[index].config.workers))
        self._loads[best] += 1
        return self.cells[best]

    def lose_workers(self, numbers: Sequence[int], reason: str) -> None:
        """Let workers die. They are numbered through all cells, in the order of their starts."""
        for number in sorted(numbers, reverse=True):
            cell, index = self._find(number)
            cell.lose_worker(index, reason)

    def drain_workers(self, numbers: Sequence[int]) -> None:
        for number in sorted(numbers, reverse=True):
            cell, index = self._find(number)
            cell.drain_worker(index)

    async def lose_at_random(self, mean_hours: float, seed: random.Random) -> None:
        """Let workers die until cancelled, each after `mean_hours` hours on average.

        The lives of workers have an exponential distribution.
        """
        while True:
            await asyncio.sleep(seed.expovariate(self.workers / (3600 * mean_hours)))
            self.lose_workers([seed.randrange(self.workers)], "failed")

    def counts(self) -> CellCounts:
        """Return what all cells did."""
        return CellCounts(*map(sum, zip(*(cell.counts() for cell in self.cells), strict=True)))

    def _find(self, number: int) -> tuple[Cell, int]:
        for cell in self.cells:
            if number < len(cell.config.workers):
                return cell, number
            number -= len(cell.config.workers)
        raise IndexError(number)
