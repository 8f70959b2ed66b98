"""How long requests take that share the stages by the scheduler's policy."""

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
    """What a request still takes of a stage: `seconds` of it for `chunks`, more than 0.

    On the same devices it may take other seconds while others have their turns: `ahead_pace` a
    chunk, for `ahead_chunks`. It ends `offset` seconds after it has had all of them.
    """

    flow: FlowKey
    chunks: float
    seconds: float
    ahead_chunks: float = 0.0
    ahead_pace: float = 0.0
    offset: float = 0.0


class Packing(NamedTuple):
    """How sessions share plans: `size` of them take part in one, on average.

    If it `is_whole`, all of them take part in each plan, so that none waits for another one. If it
    `is_ahead`, they wait for decoders.
    """

    size: float
    is_whole: bool
    is_ahead: bool


def packing_of(
    costs: Sequence[SessionCost], plan_time: PlanTime, limits: BatchLimits, *, decode: float
) -> Packing:
    """How sessions of `costs` share plans while `decode` seconds of decoding go with each chunk.

    While denoising is the bottleneck, plans are as full as they can be. Otherwise sessions wait for
    decoders and take their steps when these have taken a chunk of theirs. In the time that a chunk
    then takes, `decode` + steps, there are as many sessions with steps as plans take of it, which
    gives the size. Seconds are those of the device, also where stages share one.
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
    """Work of sessions that take turns, chunk by chunk: their chunks, each more than 0, and their
    seconds."""

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
        """Seconds until each session has made `chunks` more, or all that it has."""
        shorter = bisect_right(self._chunks, chunks)
        return self._whole[shorter] + chunks * self._paces[shorter]


class FlowLoad:
    """The loads of sessions that take turns: of the stage, and of its devices ahead of it."""

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
        """Seconds that the sessions take, at most `turns` of the stage and `ahead` ahead of it."""
        return min(self.turns.total, turns) + min(self.ahead.total, ahead)


class StageForecast:
    """How long each of the requests takes that have a `load` of one stage.

    Flows with work get the stage by their weights, so while one gets 1 second of it, another gets
    the ratio of their weights, or all that it needs if that is less. All priority sessions take
    turns, and get what `batch_share` leaves. The sum is exact for services of no length.

    With `is_whole`, all sessions of the other tiers take part in each service, whatever the
    weights.
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
        """Seconds of the stage until a load is done, also if the loads do not include it."""
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
        """Seconds that the other class of tiers gets while one gets `seconds`."""
        share = self.config.batch_share
        if is_priority:
            others = sum(flow.total for flow in self._flows.values())
            return min(others, share / (1 - share) * seconds)
        most = (1 - share) / share * seconds if share else self._priority.total
        return min(self._priority.total, most)

    def _key(self, load: Load) -> FlowKey | None:
        """The flow that a load is served with; None for that of all priority sessions."""
        if load.flow.is_priority:
            return None
        return ALL_OTHERS if self.is_whole else load.flow
