"""Compares a measured run with a simulated one of the same sessions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from helios_serve.benchmarks.measure.metrics import session_metrics
from helios_serve.benchmarks.measure.outcomes import Outcomes
from helios_serve.benchmarks.measure.record import SessionRecord

METRICS = ("ttfc", "icl", "e2el")


class Goal(NamedTuple):
    """The largest relative error that is allowed of a statistic."""

    statistic: str
    limit: float


GOALS = (Goal("mean", 0.10), Goal("p50", 0.10), Goal("p95", 0.15))
TAU = 0.9
"""Kendall's tau of the orders in which sessions were completed, at least."""


class Agreement(NamedTuple):
    """A statistic as measured and as simulated. `error` is relative to the measured one.

    `spread` is the largest relative difference of real runs of the same load from their mean.
    """

    name: str
    measured: float
    simulated: float
    limit: float
    spread: float | None = None

    @property
    def error(self) -> float:
        return self.simulated / self.measured - 1 if self.measured else 0.0

    @property
    def is_met(self) -> bool:
        """Whether the error is within the limit, or within the spread of the real system."""
        return abs(self.error) <= max(self.limit, self.spread or 0.0)


def compare(
    runs: Sequence[Sequence[SessionRecord]], simulated: Sequence[SessionRecord]
) -> list[Agreement]:
    """Compare real runs of one load, together, with a simulated one."""
    found = []
    for metric in METRICS:
        real, own = [values_of(run, metric) for run in runs], values_of(simulated, metric)
        if not len(own) or not all(len(each) for each in real):
            continue
        for goal in GOALS:
            numbers = [statistic(each, goal.statistic) for each in real]
            mean = float(np.mean(numbers))
            spread = max(abs(each / mean - 1) for each in numbers) if len(numbers) > 1 else None
            value = statistic(own, goal.statistic)
            found.append(Agreement(f"{metric} {goal.statistic}", mean, value, goal.limit, spread))
    return found


def values_of(
    records: Sequence[SessionRecord], metric: str
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return a metric of the served sessions, in seconds."""
    own = [session_metrics(record, 0.0) for record in records if record.is_served]
    if metric == "icl":
        return np.array([value for each in own for value in each.icls])
    values = [getattr(each, metric) for each in own]
    return np.array([value for value in values if value is not None])


def statistic(values: np.ndarray[tuple[int], np.dtype[np.float64]], name: str) -> float:
    """Return the mean, or a percentile such as p95."""
    if name == "mean":
        return float(values.mean())
    return float(np.quantile(values, float(name[1:]) / 100))


def completion_tau(measured: Sequence[SessionRecord], simulated: Sequence[SessionRecord]) -> float:
    """Return Kendall's tau of the orders in which the sessions that both completed ended."""
    ends = {record.id: record.ended for record in measured if record.outcome == "completed"}
    pairs = [
        (ends[record.id] or 0.0, record.ended or 0.0)
        for record in simulated
        if record.outcome == "completed" and record.id in ends
    ]
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    above = np.triu_indices(len(pairs), 1)
    signs = np.sign(first[above[0]] - first[above[1]]) * np.sign(
        second[above[0]] - second[above[1]]
    )
    return float(signs.mean()) if len(signs) else 1.0


def refused(records: Sequence[SessionRecord]) -> int:
    """Return how many sessions were refused."""
    return sum(Outcomes.of(list(records)).refused.values())


def table_lines(comparisons: Sequence[Agreement]) -> list[str]:
    """Return the comparisons as a table, in milliseconds."""
    lines = [f"{'':12} {'real ms':>10} {'simulated':>10} {'error':>8} {'allowed':>8} {'spread':>8}"]
    for each in comparisons:
        spread = "" if each.spread is None else f"{each.spread:.1%}"
        verdict = "met" if each.is_met else "MISSED"
        lines.append(
            f"{each.name:12} {1000 * each.measured:>10.0f} {1000 * each.simulated:>10.0f} "
            f"{each.error:>+8.1%} {each.limit:>8.0%} {spread:>8} {verdict}"
        )
    return lines
