"""The runnable sessions of one worker, in the order in which policy serves them."""

import heapq
from itertools import count

from helios_serve.core.fair_queue import FairQueue
from helios_serve.core.session import Session
from helios_serve.options.scheduling import SchedulingConfig


class WorkerQueue:
    """Priority sessions by least slack; the other tiers by fair queueing, with a share kept free.

    While both have work, each priority step owes the others `batch_share` of its cost and each of
    theirs pays back the rest of its own; they go first as long as they are owed anything, and so
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
        """Runnable sessions, in the line or about to be pushed again: priority ones, others."""
        self._debt = 0.0

    def configure(self, config: SchedulingConfig) -> None:
        """Serve those who are here by other weights from now on."""
        self.config = config
        self._fair.reweigh(lambda flow: config.weight(*flow))

    def join(self, session: Session) -> None:
        """Make `session` a member, and queue it if it may run."""
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
        """Queue a member again; `rate` in FLOP/s turns its remaining work into seconds of slack.

        With `front` it was popped, but found no use, and keeps its place.
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
        """Queue a member that was withdrawn."""
        if not session.is_priority:
            self._fair.lift(session.session_id)
        self.push(session, rate)

    def pop(self, *, beside_priority: bool = False) -> Session | None:
        """The session to serve next, out of the line until it is pushed again.

        `beside_priority` asks for one to share a step with a priority session: what slows that
        down is paid for like a step of its own.
        """
        if self._debt > 0 and (session := self._pop_fair()) is not None:
            return session
        while self._by_slack:
            due, _, session_id = heapq.heappop(self._by_slack)
            if self._due.get(session_id) == due:
                del self._due[session_id]
                return self.sessions[session_id]
        return None if beside_priority else self._pop_fair()

    def charge(self, session: Session, cost: float) -> None:
        """Account for `cost` FLOPs of service."""
        share = self.config.batch_share
        if all(self._with_work.values()):
            self._debt += share * cost if session.is_priority else (share - 1) * cost
        if not session.is_priority:
            self._fair.charge(session.session_id, cost)

    def withdraw(self, session: Session) -> None:
        """Take a session out of the line; it stays a member."""
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
