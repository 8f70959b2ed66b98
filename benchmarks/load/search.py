"""Searches for the largest load that a server can carry."""

from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from helios_serve.benchmarks.measure.statistics import Estimate, wilson

Verdict = Literal["pass", "fail", "undecided"]
MAX_DOUBLINGS = 16


class Tried(NamedTuple):
    """A load that was tried: its good sessions among those offered, over `runs` runs."""

    load: float
    good: int
    offered: int
    runs: int
    verdict: Verdict

    @property
    def share(self) -> Estimate:
        return wilson(self.good, self.offered)


class Capacity(NamedTuple):
    """The largest load that passed, the smallest one that did not, and all loads that were tried.

    `passed` is None if not even the first load passed, `failed` if none failed.
    """

    passed: float | None
    failed: float | None
    tried: list[Tried]


Measure = Callable[[float, int], Awaitable[tuple[int, int]]]
"""Runs a load, and returns the numbers of good and of offered sessions. The second argument counts
the runs of the same load.
"""


class CapacitySearch:
    """Doubles a load until it fails, and then halves the interval until it is narrow enough.

    A load passes if the lower bound of its share of good sessions is at least `target`, and fails
    if the upper bound is below it. An undecided load is run again, at most `max_runs` times, and
    sessions of all its runs count. A load that stays undecided counts as failed.

    - `resolution`: the search ends when the loads that passed and failed differ by this share.
    - `is_whole`: loads are whole numbers, such as users.
    """

    def __init__(
        self,
        measure: Measure,
        *,
        target: float,
        resolution: float = 0.1,
        max_runs: int = 3,
        is_whole: bool = False,
    ) -> None:
        self._measure = measure
        self._target = target
        self._resolution = resolution
        self._max_runs = max_runs
        self._is_whole = is_whole
        self.tried: list[Tried] = []

    async def run(self, start: float, limit: float) -> Capacity:
        """Search from `start` on, up to `limit`."""
        passed: float | None = None
        failed: float | None = None
        load = min(start, limit)
        while failed is None:
            if await self._passes(load):
                passed = load
                if load >= limit:
                    break
                load = min(2 * load, limit)
            else:
                failed = load
        while failed is not None and (middle := self._between(passed, failed)) is not None:
            if await self._passes(middle):
                passed = middle
            else:
                failed = middle
        return Capacity(passed, failed, self.tried)

    def _between(self, passed: float | None, failed: float) -> float | None:
        """Return the next load to try, or None if the interval is narrow enough."""
        if self._is_whole:
            low = int(passed or 0)
            return (low + int(failed)) // 2 if failed - low > 1 else None
        if passed is None:
            return failed / 2 if len(self.tried) < MAX_DOUBLINGS else None
        return (passed + failed) / 2 if failed - passed > self._resolution * passed else None

    async def _passes(self, load: float) -> bool:
        good = offered = 0
        verdict: Verdict = "undecided"
        runs = 0
        while verdict == "undecided" and runs < self._max_runs:
            more_good, more_offered = await self._measure(load, runs)
            good, offered, runs = good + more_good, offered + more_offered, runs + 1
            verdict = self.judge(wilson(good, offered))
        self.tried.append(Tried(load, good, offered, runs, verdict))
        return verdict == "pass"

    def judge(self, share: Estimate) -> Verdict:
        if share.low is not None and share.low >= self._target:
            return "pass"
        return "fail" if share.high is not None and share.high < self._target else "undecided"


def sessions_needed(target: float) -> int:
    """Return how many sessions, all of them good, are needed for a load to pass."""
    number = 1
    while (wilson(number, number).low or 0.0) < target:
        number += 1
    return number
