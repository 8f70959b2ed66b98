"""How long requests take that share the stages by the scheduler's policy."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from helios_serve.core.stage_queue import FlowKey
from helios_serve.options.scheduling import SchedulingConfig


class Load(NamedTuple):
    """What a request still takes of a stage: `seconds` of it for `chunks`, more than 0."""

    flow: FlowKey
    chunks: float
    seconds: float


class FlowLoad:
    """The loads of sessions that take turns, chunk by chunk."""

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
        """Seconds of the stage until each session has made `chunks` more, or all that it has."""
        shorter = bisect_right(self._chunks, chunks)
        return self._whole[shorter] + chunks * self._paces[shorter]


class StageForecast:
    """How long each of the requests takes that have a `load` of one stage.

    Flows with work get the stage by their weights, so while one gets 1 second of it, another gets
    the ratio of their weights, or all that it needs if that is less. All priority sessions take
    turns, and get what `batch_share` leaves. The sum is exact for services of no length.
    """

    def __init__(self, loads: Iterable[Load], config: SchedulingConfig) -> None:
        self.config = config
        by_flow: defaultdict[FlowKey | None, list[Load]] = defaultdict(list)
        for load in loads:
            by_flow[None if load.flow.is_priority else load.flow].append(load)
        self._flows = {key: FlowLoad(group) for key, group in by_flow.items()}
        self._priority = self._flows.pop(None, FlowLoad(()))

    def seconds(self, load: Load, *, is_included: bool = True) -> float:
        """Seconds of the stage until a load is done, also if the loads do not include it."""
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
