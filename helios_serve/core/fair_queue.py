"""Weighted fair queueing over flows, such as a tenant in a tier.

Every flow has a virtual time that grows by cost / weight with each service it is charged for, and
the flow with the least virtual time goes first. A flow that returns starts at the least virtual
time of the waiting flows, less a credit: an idle flow saves up no more service than that.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Set
from itertools import count
from typing import Any, Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Flow(Generic[Item]):
    """The waiting items of one flow; those that are `started` go first.

    No fresh item of a flow that is `held` is served.
    """

    def __init__(self, weight: float, virtual_time: float) -> None:
        self.weight = weight
        self.virtual_time = virtual_time
        self.members = 0
        self.is_held = False
        self.started: OrderedDict[Item, None] = OrderedDict()
        self.fresh: OrderedDict[Item, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.started) + len(self.fresh)

    @property
    def can_be_served(self) -> bool:
        return bool(self.started) or (bool(self.fresh) and not self.is_held)


class FairQueue(Generic[Item]):
    """Items join a flow once, and are pushed and popped many times while they belong to it.

    Every operation is O(log n).
    """

    def __init__(self) -> None:
        self.virtual_time = 0.0
        self._flows: dict[Hashable, Flow[Item]] = {}
        self._flow_of: dict[Item, Hashable] = {}
        self._held: Set[Hashable] = frozenset()
        self._tie = count()
        self._waiting: list[tuple[float, int, Hashable]] = []
        self._started: list[tuple[float, int, Hashable]] = []

    def __len__(self) -> int:
        return sum(len(flow) for flow in self._flows.values())

    def __contains__(self, item: Item) -> bool:
        if item not in self._flow_of:
            return False
        flow = self._flows[self._flow_of[item]]
        return item in flow.started or item in flow.fresh

    def join(self, item: Item, key: Hashable, weight: float, *, credit: float = 0.0) -> None:
        """Make `item` a member of flow `key`, which has `weight`.

        If the flow was idle, it has saved up `credit` at most.
        """
        flow = self._flow(key, weight)
        if flow.members == 0:
            self._limit_credit(flow, credit)
        flow.members += 1
        self._flow_of[item] = key

    def reweigh(self, weight_of: Callable[[Any], float]) -> None:
        """Give every flow the weight that `weight_of` has for its key; past service stays."""
        for key, flow in self._flows.items():
            flow.weight = weight_of(key)

    def leave(self, item: Item) -> None:
        """Forget `item`, waiting or not."""
        self.withdraw(item)
        self._flows[self._flow_of.pop(item)].members -= 1

    def push(self, item: Item, *, started: bool, front: bool = False) -> None:
        """Queue an item at the end of its flow, or at its front; a `started` one is in a chunk."""
        key = self._flow_of[item]
        flow = self._flows[key]
        line = flow.started if started else flow.fresh
        line[item] = None
        if front:
            line.move_to_end(item, last=False)
        self._index(key, flow)

    def lift(self, item: Item, *, credit: float = 0.0) -> None:
        """An item returns after a pause: if its flow was idle, it has saved up `credit` at most."""
        flow = self._flows[self._flow_of[item]]
        if not len(flow):
            self._limit_credit(flow, credit)

    def hold(self, keys: Set[Hashable], credit: Callable[[Item], float] = lambda _: 0.0) -> None:
        """Serve no fresh items of the flows `keys`, but again those of flows held before.

        `credit` is the service that an item's flow has saved up at most while it was held.
        """
        if keys == self._held:
            return
        held, self._held = self._held, keys
        for key, flow in self._flows.items():
            if key in held and key not in keys:
                flow.is_held = False
                if flow.fresh:
                    self._limit_credit(flow, credit(next(iter(flow.fresh))))
                self._index(key, flow)
            elif key in keys:
                flow.is_held = True

    def is_owed(self, item: Item) -> bool:
        """Whether the item's flow has a credit, so that its turn comes before all others'."""
        flow = self._flows[self._flow_of[item]]
        is_stuck = flow.is_held and not flow.started
        return flow.virtual_time < self.virtual_time and not is_stuck

    def withdraw(self, item: Item) -> None:
        """Remove `item` from the queue, not from its flow."""
        flow = self._flows[self._flow_of[item]]
        flow.started.pop(item, None)
        flow.fresh.pop(item, None)

    def pop(
        self, lead: Callable[[Item], float] = lambda _: 0.0, *, only_owed: bool = False
    ) -> Item | None:
        """Remove and return the next item, or None.

        A started item continues first, unless its flow has had more than `lead(item)` of service
        more than the flow with the least. `only_owed` asks for an item of a flow with a credit.
        """
        behind = self._top(self._waiting, started=False)
        if behind is None:
            return None
        key, first = behind, self._flows[behind]
        if only_owed and first.virtual_time >= self.virtual_time:
            return None
        ahead = self._top(self._started, started=True)
        if ahead is not None:
            flow = self._flows[ahead]
            gap = (flow.virtual_time - first.virtual_time) * flow.weight
            may_go = not only_owed or flow.virtual_time < self.virtual_time
            if may_go and gap <= lead(next(iter(flow.started))):
                key = ahead
        self.virtual_time = max(self.virtual_time, first.virtual_time)
        flow = self._flows[key]
        item, _ = (flow.started or flow.fresh).popitem(last=False)
        self._index(key, flow)
        return item

    def charge(self, item: Item, cost: float) -> None:
        """Charge the item's flow for a service of `cost`."""
        self._charge(self._flow_of[item], cost)

    def bill(self, key: Hashable, weight: float, cost: float, *, credit: float = 0.0) -> None:
        """Charge flow `key` for a service of `cost`. It need not have members, and then has saved
        up `credit` at most."""
        flow = self._flow(key, weight)
        if flow.members == 0:
            self._limit_credit(flow, credit)
        self._charge(key, cost)

    def check_integrity(self) -> None:
        """Raise AssertionError unless each item waits in its flow, and each flow can be found."""
        members = Counter(self._flow_of.values())
        indexed = {(key, time) for time, _, key in self._waiting}
        for key, flow in self._flows.items():
            assert flow.members == members[key], f"flow {key} has lost a member"
            assert flow.is_held == (key in self._held), f"flow {key} is held, or is not"
            assert flow.started.keys().isdisjoint(flow.fresh), f"an item of {key} waits twice"
            waiting = (*flow.started, *flow.fresh)
            assert all(self._flow_of[item] == key for item in waiting), f"{key} has a stranger"
            if flow.can_be_served:
                assert (key, flow.virtual_time) in indexed, f"flow {key} would never be served"

    def _flow(self, key: Hashable, weight: float) -> Flow[Item]:
        """The flow `key`, made if it is new, with its `weight` as it is now."""
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow(weight, 0.0)
            flow.is_held = key in self._held
        flow.weight = weight
        return flow

    def _limit_credit(self, flow: Flow[Item], credit: float) -> None:
        flow.virtual_time = max(flow.virtual_time, self.virtual_time - credit / flow.weight)

    def _charge(self, key: Hashable, cost: float) -> None:
        flow = self._flows[key]
        flow.virtual_time += cost / flow.weight
        self._index(key, flow)

    def _index(self, key: Hashable, flow: Flow[Item]) -> None:
        """Enter a flow's virtual time into the heaps; entries with an older one are skipped."""
        if len(flow):
            heapq.heappush(self._waiting, (flow.virtual_time, next(self._tie), key))
        if flow.started:
            heapq.heappush(self._started, (flow.virtual_time, next(self._tie), key))

    def _top(self, heap: list[tuple[float, int, Hashable]], *, started: bool) -> Hashable | None:
        while heap:
            virtual_time, _, key = heap[0]
            flow = self._flows[key]
            is_up = flow.started if started else flow.can_be_served
            if is_up and flow.virtual_time == virtual_time:
                return key
            heapq.heappop(heap)
        return None
