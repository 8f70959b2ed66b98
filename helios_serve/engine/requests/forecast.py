"""Estimates how long requests take that share a stage under the scheduler's policy."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from helios_serve.core.cost import SessionCost
from helios_serve.core.rate import PlanTime
from helios_serve.core.stage_queue import FlowKey
from helios_serve.options.scheduling import BatchLimits, SchedulingConfig

ALL_OTHERS = FlowKey("", "default")
"""Stands for all flows but those of the priority tier."""


class Load(NamedTuple):
    """A request's remaining work in a stage: `seconds` for `chunks` (more than 0).

    On the same devices, it may also work ahead of its turns: `ahead_pace` seconds per chunk, for
    `ahead_chunks`. It is done `offset` seconds after all of that.
    """

    flow: FlowKey
    chunks: float
    seconds: float
    ahead_chunks: float = 0.0
    ahead_pace: float = 0.0
    offset: float = 0.0


class Packing(NamedTuple):
    """How sessions share plans: a plan contains `size` of them on average.

    With `is_whole`, each plan contains all of them, so that none waits for another. With
    `is_ahead`, they wait for decoders.
    """

    size: float
    is_whole: bool
    is_ahead: bool


def packing_of(
    costs: Sequence[SessionCost], plan_time: PlanTime, limits: BatchLimits, *, decode: float
) -> Packing:
    """Return how sessions of `costs` share plans, if each chunk takes `decode` seconds to decode.

    While denoising is the bottleneck, plans are as full as possible. Otherwise sessions wait for
    decoders, and take the steps of a chunk when a decoder has taken the previous one. The number of
    sessions in a plan is then the share of time that plans take. Seconds are those of the device,
    also where stages share it.
    """
    steps = sum(cost.chunk_steps for cost in costs)
    full = max(
        sum(cost.full_plans(limits) for cost in costs), max(cost.chunk_steps for cost in costs)
    )
    most = steps / full
    fixed = plan_time.fixed * steps / len(costs)
    slack = decode - plan_time.slope * sum(cost.chunk for cost in costs) / len(costs)
    if slack * most <= fixed:
        return Packing(most, is_whole=most >= len(costs), is_ahead=False)
    return Packing(max(1.0, fixed / slack), is_whole=False, is_ahead=True)


class Turns:
    """Sessions that take turns, chunk by chunk: pairs of chunks (more than 0) and seconds."""

    def __init__(self, works: Iterable[tuple[float, float]]) -> None:
        ordered = sorted(works)
        self._chunks = [chunks for chunks, _ in ordered]
        self._whole = list(accumulate((seconds for _, seconds in ordered), initial=0.0))
        paces = (seconds / chunks for chunks, seconds in reversed(ordered))
        self._paces = list(accumulate(paces, initial=0.0))[::-1]

    @property
    def total(self) -> float:
        return self._whole[-1]

    def until(self, chunks: float) -> float:
        """Return the seconds until each session has finished `chunks` more, or all that it has."""
        shorter = bisect_right(self._chunks, chunks)
        return self._whole[shorter] + chunks * self._paces[shorter]


class FlowLoad:
    """The total load of sessions that take turns: in the stage, and ahead of their turns."""

    def __init__(self, loads: Sequence[Load]) -> None:
        self.turns = Turns((load.chunks, load.seconds) for load in loads)
        self.ahead = Turns(
            (load.ahead_chunks, load.ahead_chunks * load.ahead_pace)
            for load in loads
            if load.ahead_chunks
        )

    @property
    def total(self) -> float:
        return self.turns.total + self.ahead.total

    def within(self, turns: float, ahead: float) -> float:
        """Return the total seconds, with at most `turns` in the stage and `ahead` ahead of it."""
        return min(self.turns.total, turns) + min(self.ahead.total, ahead)


class StageForecast:
    """Estimates when each of several loads of one stage is done.

    Flows with work share the stage by weight: while one gets 1 second, another gets the ratio of
    their weights, or all that it needs if that is less. Priority sessions take turns, and get what
    `batch_share` leaves. The result is exact in the limit of infinitely short steps.

    With `is_whole`, each plan contains all sessions of the other tiers, whatever their weights.
    """

    def __init__(
        self, loads: Iterable[Load], config: SchedulingConfig, *, is_whole: bool = False
    ) -> None:
        self.config = config
        self.is_whole = is_whole
        by_flow: defaultdict[FlowKey | None, list[Load]] = defaultdict(list)
        for load in loads:
            by_flow[self._key(load)].append(load)
        self._flows = {key: FlowLoad(group) for key, group in by_flow.items()}
        self._priority = self._flows.pop(None, FlowLoad(()))

    def seconds(self, load: Load, *, is_included: bool = True) -> float:
        """Return the seconds of the stage until `load` is done.

        With `is_included` False, `load` is in addition to the loads that were given.
        """
        key = self._key(load)
        flow = self._priority if key is None else self._flows.get(key, FlowLoad(()))
        turns, ahead = flow.turns.until(load.chunks), flow.ahead.until(load.chunks)
        if not is_included:
            turns += load.seconds
            ahead += load.ahead_chunks * load.ahead_pace
        # What the flow takes ahead of its turns in the long run, whatever it has done already.
        usual = turns * load.ahead_pace * load.chunks / load.seconds
        fair = turns + ahead
        if key is not None:
            weight = self.config.weight(*key)
            for name, other in self._flows.items():
                if name is not None and name != key:
                    ratio = self.config.weight(*name) / weight
                    fair += other.within(ratio * turns, ratio * usual)
        return max(0.0, fair + self._across(fair, is_priority=key is None) + load.offset)

    def _across(self, seconds: float, *, is_priority: bool) -> float:
        """Return the seconds that the other class of tiers gets while one gets `seconds`."""
        share = self.config.batch_share
        if is_priority:
            others = sum(flow.total for flow in self._flows.values())
            return min(others, share / (1 - share) * seconds)
        most = (1 - share) / share * seconds if share else self._priority.total
        return min(self._priority.total, most)

    def _key(self, load: Load) -> FlowKey | None:
        """Return the flow with which a load is served; None for all priority sessions."""
        if load.flow.is_priority:
            return None
        return ALL_OTHERS if self.is_whole else load.flow
