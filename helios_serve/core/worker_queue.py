"""The sessions of one worker, in the order in which they take steps."""

import heapq
from itertools import count

from helios_serve.core.fair_queue import FairQueue
from helios_serve.core.session import Session
from helios_serve.options.scheduling import SchedulingConfig


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
