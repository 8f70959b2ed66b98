"""The one policy of all stages: which session is served next."""

import heapq
from collections.abc import Hashable, Set
from functools import reduce
from itertools import count
from typing import NamedTuple, Protocol

from helios_serve.core.cost import NO_STEPS, StepLoad
from helios_serve.core.fair_queue import FairQueue
from helios_serve.core.session import Session
from helios_serve.options.scheduling import SchedulingConfig, ServiceTier


class FlowKey(NamedTuple):
    """The sessions that share fairly as one: those of a tenant in a tier."""

    tenant: str
    tier: ServiceTier

    @property
    def is_priority(self) -> bool:
        return self.tier == "priority"


def flow_of(session: Session) -> FlowKey:
    return FlowKey(session.request.tenant, session.request.tier)


class Claim(NamedTuple):
    """Who goes first on a device: what others begin there meanwhile would slow them down.

    Priority sessions, or else the first chunk of a flow that was idle and so is owed its turn.
    """

    is_priority: bool
    is_owed: bool


class Order(Protocol):
    """What a stage knows of the next service of a session. Costs are in the stage's own unit."""

    def due(self, session: Session) -> float:
        """When the service has to begin, so that a priority session meets its deadline."""

    def is_started(self, session: Session) -> bool:
        """Whether the service goes before the others of its flow."""

    def lead(self, session: Session) -> float:
        """The service that a flow may be ahead by to finish what it has started."""

    def credit(self, session: Session) -> float:
        """The service that an idle flow saves up: what a chunk takes of the stage's devices."""


class StageQueue:
    """Priority sessions by least slack; other tiers by fair queueing, with a share of the stage.

    It orders the steps of one worker, or all tasks of one kind. `sessions` are all that take part;
    those that can be served are queued. While both kinds have work, each priority service adds
    `batch_share` of its cost to a debt, and each service of the other tiers pays off the rest of
    its own cost. The other tiers go first while the debt is positive, and so get exactly their
    share. They save up nothing while they have no work, but what they had too early stays. Tasks
    that run on a worker's device are charged to the queue of its steps as well.
    """

    def __init__(self, config: SchedulingConfig, order: Order) -> None:
        self.config = config
        self.order = order
        self.sessions: dict[str, Session] = {}
        self._fair: FairQueue[str] = FairQueue()
        self._due: dict[str, float] = {}
        self._by_slack: list[tuple[float, int, str]] = []
        self._tie = count()
        self._with_work: dict[bool, set[str]] = {True: set(), False: set()}
        """Sessions that are queued or about to be pushed again: priority ones, others."""
        self._debt = 0.0
        self._owed: set[str] = set()
        """Sessions that were owed their turn when they were pushed; some still are."""
        self._realtime_load: StepLoad | None = None

    def __len__(self) -> int:
        return len(self._due) + len(self._fair)

    def __contains__(self, session: Session) -> bool:
        return session.session_id in self._due or session.session_id in self._fair

    @property
    def claim(self) -> Claim:
        """The claim of the sessions that have work here, queued or under way."""
        is_owed = any(self.is_owed(self.sessions[name]) for name in self._owed)
        return Claim(bool(self._with_work[True]), is_owed)

    @property
    def has_work(self) -> bool:
        """Whether sessions have work here, queued or under way."""
        return bool(self._with_work[True] or self._with_work[False])

    @property
    def claimants(self) -> Set[str]:
        """Ids of the sessions that have work here, queued or under way."""
        return self._with_work[True] | self._with_work[False]

    @property
    def realtime_load(self) -> StepLoad:
        """What the steps of the priority sessions here take in real time."""
        if self._realtime_load is None:
            live = (session for session in self.sessions.values() if session.is_priority)
            loads = (session.cost.load(self.config) for session in live)
            self._realtime_load = reduce(StepLoad.plus, loads, NO_STEPS)
        return self._realtime_load

    def configure(self, config: SchedulingConfig) -> None:
        """Set the tenants' weights, also those of sessions that are here."""
        self.config = config
        self._realtime_load = None
        self._fair.reweigh(lambda flow: config.weight(*flow))

    def join(self, session: Session) -> None:
        """Let a session take part; `push` queues it."""
        self.sessions[session.session_id] = session
        if session.is_priority:
            self._realtime_load = None
        else:
            key, credit = flow_of(session), self.order.credit(session)
            self._fair.join(session.session_id, key, self.config.weight(*key), credit=credit)

    def leave(self, session: Session) -> None:
        self.withdraw(session)
        del self.sessions[session.session_id]
        if session.is_priority:
            self._realtime_load = None
        else:
            self._fair.leave(session.session_id)

    def push(self, session: Session, *, front: bool = False) -> None:
        """Queue a session. With `front` it was popped but not served, and keeps its place."""
        self._with_work[session.is_priority].add(session.session_id)
        if not session.is_priority:
            started = self.order.is_started(session)
            self._fair.push(session.session_id, started=started, front=front)
            if self.is_owed(session):
                self._owed.add(session.session_id)
            else:
                self._owed.discard(session.session_id)
            return
        due = self.order.due(session)
        self._due[session.session_id] = due
        heapq.heappush(self._by_slack, (due, next(self._tie), session.session_id))

    def come_back(self, session: Session) -> None:
        """Queue a session that was withdrawn."""
        if not session.is_priority:
            self._fair.lift(session.session_id, credit=self.order.credit(session))
        self.push(session)

    def pop(self, *, with_priority: bool = False, only_owed: bool = False) -> Session | None:
        """Remove and return the next session; None if there is none.

        `with_priority` asks for one to run with a priority session: of other tiers, only those to
        which a debt is owed, since they slow that session down. `only_owed` asks likewise for one
        to run with a session that is owed its turn.
        """
        if self._debt > 0 and (session := self._pop_fair()) is not None:
            return session
        while self._by_slack:
            due, _, session_id = heapq.heappop(self._by_slack)
            if self._due.get(session_id) == due:
                del self._due[session_id]
                return self.sessions[session_id]
        return None if with_priority else self._pop_fair(only_owed=only_owed)

    def is_owed(self, session: Session) -> bool:
        """Whether a session has delivered no chunk yet and its flow was idle, so that it is served
        before all other flows."""
        may_be = session.is_new and not session.is_priority
        return may_be and self._fair.is_owed(session.session_id)

    def charge(self, session: Session, cost: float) -> None:
        """Charge a session for a service of `cost`."""
        self._owe(session, cost, all(self._with_work.values()))
        if not session.is_priority:
            self._fair.charge(session.session_id, cost)

    def bill(self, session: Session, cost: float, credit: float) -> None:
        """Charge for a service elsewhere that took this stage's time, or for a wrong estimate.

        The session need not take part. If its flow is idle, that has saved up `credit` at most.
        """
        self._owe(session, cost, bool(self._with_work[not session.is_priority]))
        if not session.is_priority:
            key = flow_of(session)
            self._fair.bill(key, self.config.weight(*key), cost, credit=credit)

    def withdraw(self, session: Session) -> None:
        """Remove a session from the queue; it still takes part."""
        self._with_work[session.is_priority].discard(session.session_id)
        self._owed.discard(session.session_id)
        if not self._with_work[False]:
            self._debt = min(0.0, self._debt)
        if session.is_priority:
            self._due.pop(session.session_id, None)
        else:
            self._fair.withdraw(session.session_id)

    def hold(self, flows: Set[Hashable]) -> None:
        """Begin nothing new for `flows`, and for no others."""
        self._fair.hold(flows, lambda name: self.order.credit(self.sessions[name]))

    def check_integrity(self) -> None:
        """Raise AssertionError unless what is queued takes part and has work."""
        self._fair.check_integrity()
        assert self._due.keys() <= self._with_work[True] <= self.sessions.keys()
        assert self._owed <= self._with_work[False] <= self.sessions.keys()
        queued = {name for name, item in self.sessions.items() if item in self}
        assert queued <= self._with_work[True] | self._with_work[False]
        assert len(queued) == len(self), "a session is queued that does not take part"

    def _owe(self, session: Session, cost: float, is_contended: bool) -> None:
        share = self.config.batch_share
        if is_contended:
            self._debt += share * cost if session.is_priority else (share - 1) * cost
        elif session.is_priority and self._debt < 0:
            self._debt = min(0.0, self._debt + share * cost)

    def _pop_fair(self, *, only_owed: bool = False) -> Session | None:
        session_id = self._fair.pop(self._lead, only_owed=only_owed)
        return None if session_id is None else self.sessions[session_id]

    def _lead(self, session_id: str) -> float:
        return self.order.lead(self.sessions[session_id])
