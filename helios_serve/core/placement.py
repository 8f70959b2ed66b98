"""Which sessions are on which workers, and how they get there and off."""

from helios_serve.core.admission import Admission
from helios_serve.core.placement_policy import PlacementPolicy
from helios_serve.core.session import Session, SessionStatus
from helios_serve.core.waiting_room import WaitingRoom
from helios_serve.core.worker_state import WorkerState
from helios_serve.options.scheduling import SchedulingConfig


class Placement:
    """Moves sessions from the waiting room onto workers, off them, and out.

    Every session in `sessions` either waits or is on one of `workers`. `unplaceable` are ids of
    waiting sessions that turned out too large for every worker. `preemptions` counts the sessions
    that lost their blocks or their worker so far.
    """

    def __init__(self, config: SchedulingConfig) -> None:
        self.sessions: dict[str, Session] = {}
        self.workers: dict[str, WorkerState] = {}
        self.policy = PlacementPolicy(config)
        self.admission = Admission(config)
        self.waiting = WaitingRoom(config)
        self.unplaceable: list[str] = []
        self.preemptions = 0
        self.is_closed = False

    def configure(self, config: SchedulingConfig) -> None:
        """Set weights and limits; accepted sessions stay."""
        self.policy.config = self.admission.config = config
        self.waiting.configure(config)
        for worker in self.workers.values():
            worker.queue.configure(config)

    def admit(self, session: Session, *, was_accepted: bool) -> None:
        """Let a session wait; raises InvalidRequestError or CapacityError, and then keeps nothing.

        No limit on waiting sessions refuses one that `was_accepted` before a restart.
        """
        if not was_accepted:
            self.admission.check(session)
        promised = self.waiting.promised_rate if session.is_priority else 0.0
        self.policy.check(session, self.workers.values(), promised)
        self.admission.accept(session)
        self.sessions[session.session_id] = session
        self.waiting.join(session)

    def place_waiting(self) -> None:
        """Give workers to waiting sessions: priority first, then the others in fair order."""
        if not self.is_closed and self._place_line(is_priority=True):
            self._place_line(is_priority=False)

    def evict(self, session: Session, worker: WorkerState) -> None:
        """Take a session off its worker: now if that loses no work, or at its next chunk edge."""
        if session.status is SessionStatus.PAUSED or session.may_leave:
            worker.queue.withdraw(session)
            session.status = SessionStatus.PREEMPTED
            self.settle(session, worker)
        else:
            session.is_leaving = True

    def settle(self, session: Session, worker: WorkerState) -> None:
        """Remove a session from its worker if it has ended or is evicted, and no step is in flight.

        An evicted session waits again.
        """
        if session.in_flight:
            return
        if session.status is SessionStatus.PREEMPTED:
            worker.release(session)
            self._requeue(session)
        elif session.status.is_finished or session.is_planned:
            if not session.status.is_finished:
                session.status = SessionStatus.FINISHED_COMPLETED
            worker.release(session)
            self._forget(session)

    def remove_waiting(self, session: Session) -> None:
        """Forget a session that waits."""
        self.waiting.leave(session)
        self.admission.start(session)
        self._forget(session)

    def remove_worker(self, worker: WorkerState) -> None:
        """Forget a worker; its sessions wait to resume at their last chunk edge."""
        del self.workers[worker.worker_id]
        for session in list(worker.queue.sessions.values()):
            if session.status.is_finished:
                self._forget(session)
            else:
                self._requeue(session)

    def check_integrity(self) -> None:
        """Raise AssertionError unless all accounts agree with each other."""
        placed: set[str] = set()
        for worker in self.workers.values():
            worker.check_integrity()
            placed |= worker.queue.sessions.keys()
        waiting = {session.session_id for session in self.waiting}
        assert placed.isdisjoint(waiting), "a placed session waits"
        assert placed | waiting == self.sessions.keys(), "a session was lost"
        self.admission.check_integrity(self.sessions.values(), waiting)

    def _place_line(self, *, is_priority: bool) -> bool:
        """Place sessions until one finds no room; returns whether none is left."""
        while (session := self.waiting.head(is_priority=is_priority)) is not None:
            if not self.policy.can_ever(session, self.workers.values()):
                self.unplaceable.append(session.session_id)
                self.waiting.step_aside(session)
                continue
            worker = self.policy.choose(session, self.workers.values())
            if worker is None and self._make_room(session):
                worker = self.policy.choose(session, self.workers.values())
            if worker is None:
                return False
            self.waiting.serve(session)
            self.admission.start(session)
            worker.place(session)
        return True

    def _make_room(self, session: Session) -> bool:
        """Evict what has to give way to `session`; returns whether there is room at once."""
        for worker in self.workers.values():
            victims = worker.evictable(session)
            if victims is None:
                continue
            for victim in victims:
                self.evict(victim, worker)
            return worker.has_room(session)
        return False

    def _requeue(self, session: Session) -> None:
        """A session that lost its worker or its blocks waits to resume."""
        self.preemptions += 1
        session.rewind()
        session.status = SessionStatus.PREEMPTED
        self.admission.requeue(session)
        self.waiting.join(session)

    def _forget(self, session: Session) -> None:
        del self.sessions[session.session_id]
        self.admission.finish(session)
