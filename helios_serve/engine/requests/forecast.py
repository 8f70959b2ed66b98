"""Estimates how long requests take that share a stage under the scheduler's policy."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from helios_serve.core.stage_queue import FlowKey
from helios_serve.options.scheduling import SchedulingConfig


class Load(NamedTuple):
    """A request's remaining work in a stage: `seconds` for `chunks` (more than 0)."""

    flow: FlowKey
    chunks: float
    seconds: float


class FlowLoad:
    """The total load of sessions that take turns, chunk by chunk."""

    def __init__(self, loads: Iterable[Load]) -> None:
        ordered = sorted(loads, key=lambda load: load.chunks)
        self._chunks = [load.chunks for load in ordered]
        self._whole = list(accumulate((load.seconds for load in ordered), initial=0.0))
        paces = (load.seconds / load.chunks for load in reversed(ordered))
        self._paces = list(accumulate(paces, initial=0.0))[::-1]

    @property
    def total(self) -> float:
        return self._whole[-1]

    def until(self, chunks: float) -> float:
        """Return the seconds until each session has finished `chunks` more, or all that it has."""
        shorter = bisect_right(self._chunks, chunks)
        return self._whole[shorter] + chunks * self._paces[shorter]


class StageForecast:
    """Estimates when each of several loads of one stage is done.

    Flows with work share the stage by weight: while one gets 1 second, another gets the ratio of
    their weights, or all that it needs if that is less. Priority sessions take turns, and get what
    `batch_share` leaves. The result is exact in the limit of infinitely short steps.
    """

    def __init__(self, loads: Iterable[Load], config: SchedulingConfig) -> None:
        self.config = config
        by_flow: defaultdict[FlowKey | None, list[Load]] = defaultdict(list)
        for load in loads:
            by_flow[None if load.flow.is_priority else load.flow].append(load)
        self._flows = {key: FlowLoad(group) for key, group in by_flow.items()}
        self._priority = self._flows.pop(None, FlowLoad(()))

    def seconds(self, load: Load, *, is_included: bool = True) -> float:
        """Return the seconds of the stage until `load` is done.

        With `is_included` False, `load` is in addition to the loads that were given.
        """
        share = self.config.batch_share
        flow = self._priority if load.flow.is_priority else self._flows.get(load.flow)
        mine = 0.0 if flow is None else flow.until(load.chunks)
        if not is_included:
            mine += load.seconds
        if load.flow.is_priority:
            return mine + min(self._others_total, share / (1 - share) * mine)
        weight = self.config.weight(*load.flow)
        fair = mine + sum(
            min(other.total, self.config.weight(*key) / weight * mine)
            for key, other in self._flows.items()
            if key is not None and key != load.flow
        )
        most = (1 - share) / share * fair if share else self._priority.total
        return fair + min(self._priority.total, most)

    @property
    def _others_total(self) -> float:
        return sum(flow.total for flow in self._flows.values())
