"""Fair queues of sessions: over tenants, and of one worker.

Every flow (a tenant in a tier) has a virtual time that grows by cost / weight with each step it is
charged for, and the flow with the least virtual time goes first. A flow that returns starts at the
least virtual time of the waiting flows, so idle flows save up no service.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import count
from typing import Any, Generic, TypeVar

from helios_serve.core.session import Session
from helios_serve.options.scheduling import SchedulingConfig

Item = TypeVar("Item", bound=Hashable)


class Flow(Generic[Item]):
    """The waiting items of one tenant; those in the middle of a chunk are `started`."""

    def __init__(self, weight: float, virtual_time: float) -> None:
        self.weight = weight
        self.virtual_time = virtual_time
        self.members = 0
        self.started: OrderedDict[Item, None] = OrderedDict()
        self.fresh: OrderedDict[Item, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.started) + len(self.fresh)


class FairQueue(Generic[Item]):
    """Items join a flow once, and are pushed and popped many times while they belong to it.

    Every operation is O(log n).
    """

    def __init__(self) -> None:
        self.virtual_time = 0.0
        self._flows: dict[Hashable, Flow[Item]] = {}
        self._flow_of: dict[Item, Hashable] = {}
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

    def join(self, item: Item, key: Hashable, weight: float) -> None:
        """Make `item` a member of flow `key`, which has `weight`."""
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow(weight, self.virtual_time)
        elif flow.members == 0:
            flow.virtual_time = max(flow.virtual_time, self.virtual_time)
        flow.weight = weight
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

    def lift(self, item: Item) -> None:
        """An item returns after a pause: if its flow was idle, it has saved up no service."""
        flow = self._flows[self._flow_of[item]]
        if not len(flow):
            flow.virtual_time = max(flow.virtual_time, self.virtual_time)

    def withdraw(self, item: Item) -> None:
        """Remove `item` from the queue, not from its flow."""
        flow = self._flows[self._flow_of[item]]
        flow.started.pop(item, None)
        flow.fresh.pop(item, None)

    def pop(self, lead: Callable[[Item], float] = lambda _: 0.0) -> Item | None:
        """Remove and return the next item, or None.

        A started chunk continues first, unless its flow has had more than `lead(item)` FLOPs of
        service more than the flow with the least.
        """
        behind = self._top(self._waiting, started=False)
        if behind is None:
            return None
        key, first = behind, self._flows[behind]
        ahead = self._top(self._started, started=True)
        if ahead is not None:
            flow = self._flows[ahead]
            gap = (flow.virtual_time - first.virtual_time) * flow.weight
            if gap <= lead(next(iter(flow.started))):
                key = ahead
        self.virtual_time = max(self.virtual_time, first.virtual_time)
        flow = self._flows[key]
        item, _ = (flow.started or flow.fresh).popitem(last=False)
        self._index(key, flow)
        return item

    def charge(self, item: Item, cost: float) -> None:
        """Charge the item's flow for `cost` FLOPs."""
        key = self._flow_of[item]
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
            queued = flow.started if started else flow
            if len(queued) and flow.virtual_time == virtual_time:
                return key
            heapq.heappop(heap)
        return None


class WorkerQueue:
    """Priority sessions by least slack; other tiers by fair queueing, with a share of the worker.

    `sessions` are all of the worker's; those that can run are queued. While both kinds have work,
    each priority step adds `batch_share` of its cost to a debt, and each step of the other tiers
    pays off the rest of its own cost. The other tiers go first while the debt is positive, and so
    get exactly their share.
    """

    def __init__(self, config: SchedulingConfig) -> None:
        self.config = config
        self.sessions: dict[str, Session] = {}
        self._fair: FairQueue[str] = FairQueue()
        self._due: dict[str, float] = {}
        self._by_slack: list[tuple[float, int, str]] = []
        self._tie = count()
        self._with_work: dict[bool, set[str]] = {True: set(), False: set()}
        """Runnable sessions, queued or about to be pushed again: priority ones, others."""
        self._debt = 0.0

    def configure(self, config: SchedulingConfig) -> None:
        """Set the tenants' weights, also those of sessions that are here."""
        self.config = config
        self._fair.reweigh(lambda flow: config.weight(*flow))

    def join(self, session: Session) -> None:
        """Add a session, and queue it if it can run."""
        request = session.request
        self.sessions[session.session_id] = session
        if not session.is_priority:
            weight = self.config.weight(request.tenant, request.tier)
            self._fair.join(session.session_id, (request.tenant, request.tier), weight)
        if session.is_runnable:
            self.push(session)

    def leave(self, session: Session) -> None:
        self.withdraw(session)
        del self.sessions[session.session_id]
        if not session.is_priority:
            self._fair.leave(session.session_id)

    def push(self, session: Session, rate: float = 0.0, *, front: bool = False) -> None:
        """Queue a session of the worker.

        `rate` is the worker's, in FLOP/s, which turns remaining work into slack. With `front` the
        session was popped but not used, and keeps its place.
        """
        self._with_work[session.is_priority].add(session.session_id)
        if not session.is_priority:
            started = not session.at_chunk_edge
            self._fair.push(session.session_id, started=started, front=front)
            return
        due = session.clock.deadline(session.cursor.chunk, self.config.start_buffer)
        if rate:
            due -= session.cost.left_in_chunk(session.cursor) / rate
        self._due[session.session_id] = due
        heapq.heappush(self._by_slack, (due, next(self._tie), session.session_id))

    def come_back(self, session: Session, rate: float) -> None:
        """Queue a session that was withdrawn."""
        if not session.is_priority:
            self._fair.lift(session.session_id)
        self.push(session, rate)

    def pop(self, *, with_priority: bool = False) -> Session | None:
        """Remove and return the next session; None if there is none.

        `with_priority` asks for one to share a step with a priority session: of other tiers, only
        those to which a debt is owed, since they slow that session down.
        """
        if self._debt > 0 and (session := self._pop_fair()) is not None:
            return session
        while self._by_slack:
            due, _, session_id = heapq.heappop(self._by_slack)
            if self._due.get(session_id) == due:
                del self._due[session_id]
                return self.sessions[session_id]
        return None if with_priority else self._pop_fair()

    def charge(self, session: Session, cost: float) -> None:
        """Charge a session for a step of `cost` FLOPs."""
        share = self.config.batch_share
        if all(self._with_work.values()):
            self._debt += share * cost if session.is_priority else (share - 1) * cost
        if not session.is_priority:
            self._fair.charge(session.session_id, cost)

    def withdraw(self, session: Session) -> None:
        """Remove a session from the queue, not from the worker."""
        self._with_work[session.is_priority].discard(session.session_id)
        if not all(self._with_work.values()):
            self._debt = 0.0
        if session.is_priority:
            self._due.pop(session.session_id, None)
        else:
            self._fair.withdraw(session.session_id)

    def __contains__(self, session: Session) -> bool:
        return session.session_id in self._due or session.session_id in self._fair

    def _pop_fair(self) -> Session | None:
        session_id = self._fair.pop(self._chunk_cost)
        return None if session_id is None else self.sessions[session_id]

    def _chunk_cost(self, session_id: str) -> float:
        session = self.sessions[session_id]
        return session.cost.of_chunk(session.cursor.chunk)
