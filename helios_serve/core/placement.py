"""Waiting sessions, and the worker that each of them gets."""

from collections.abc import Iterable, Iterator, Set
from functools import reduce
from typing import NamedTuple

from helios_serve.core.admission import Admission
from helios_serve.core.cost import NO_STEPS, StepLoad
from helios_serve.core.fair_queue import FairQueue
from helios_serve.core.realtime import RealTime
from helios_serve.core.session import Session, SessionStatus
from helios_serve.core.stage_queue import FlowKey
from helios_serve.core.worker_state import WorkerState
from helios_serve.errors import CapacityError, InvalidRequestError
from helios_serve.options.scheduling import SchedulingConfig


class WaitingRoom:
    """Two lines, of priority sessions and of others, each in fair order over the tenants.

    Only sessions that could begin at once are in line. The head of a line stays there until it is
    placed, so that smaller sessions cannot pass it forever.
    """

    def __init__(self, config: SchedulingConfig) -> None:
        self.config = config
        self._sessions: dict[str, Session] = {}
        self._lines: dict[bool, FairQueue[str]] = {True: FairQueue(), False: FairQueue()}
        self._heads: dict[bool, Session | None] = {True: None, False: None}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    @property
    def promised_load(self) -> StepLoad:
        """What the waiting priority sessions take in real time."""
        loads = (session.cost.load(self.config) for session in self if session.is_priority)
        return reduce(StepLoad.plus, loads, NO_STEPS)

    def configure(self, config: SchedulingConfig) -> None:
        """Set the tenants' weights, also those of sessions that wait."""
        self.config = config
        for line in self._lines.values():
            line.reweigh(lambda flow: config.weight(*flow))

    def join(self, session: Session) -> None:
        flow = session.request.tenant, session.request.tier
        self._sessions[session.session_id] = session
        line = self._lines[session.is_priority]
        line.join(session.session_id, flow, self.config.weight(*flow))
        self.line_up(session)

    def leave(self, session: Session) -> None:
        self.step_aside(session)
        self._lines[session.is_priority].leave(session.session_id)
        del self._sessions[session.session_id]

    def line_up(self, session: Session) -> None:
        """Put a waiting session in line, unless it is paused or misses inputs."""
        if session.is_ready and not session.clock.is_paused:
            self._lines[session.is_priority].push(session.session_id, started=False)

    def step_aside(self, session: Session) -> None:
        """Take a session out of its line until it lines up again."""
        self._lines[session.is_priority].withdraw(session.session_id)
        if self._heads[session.is_priority] is session:
            self._heads[session.is_priority] = None

    def head(self, *, is_priority: bool) -> Session | None:
        """The first session of a line, until it leaves or steps aside."""
        if self._heads[is_priority] is None:
            session_id = self._lines[is_priority].pop()
            self._heads[is_priority] = None if session_id is None else self._sessions[session_id]
        return self._heads[is_priority]

    def serve(self, session: Session) -> None:
        """Remove a session that gets a worker; its tenant is charged for its remaining work."""
        self._lines[session.is_priority].charge(session.session_id, session.remaining_cost)
        self.leave(session)


class PlacementPolicy:
    """Chooses the worker with the least outstanding work among those that have room."""

    def __init__(self, config: SchedulingConfig, realtime: RealTime) -> None:
        self.config = config
        self.realtime = realtime

    def can_ever(self, session: Session, workers: Iterable[WorkerState]) -> bool:
        """Whether some worker is large enough, or there are no workers yet."""
        known = list(workers)
        return not known or any(worker.could_hold(session) for worker in known)

    def check(self, session: Session, workers: Iterable[WorkerState], promised: StepLoad) -> None:
        """Refuse what no worker can ever run, and real time that no worker can promise now.

        `promised` is the load of waiting priority sessions. Raises InvalidRequestError or
        CapacityError. Without workers everything may wait.
        """
        known = list(workers)
        if not self.can_ever(session, known):
            largest = max(worker.total_blocks for worker in known)
            params = session.params
            raise InvalidRequestError(
                f"got size {params.width}x{params.height}, whose history takes "
                f"{session.cost.peak_blocks} blocks, expected at most the {largest} of a worker",
                param="size",
            )
        if session.is_priority and known and not self._keep_up(session, known, promised):
            raise CapacityError(
                "no worker can run another video in real time",
                code="realtime_capacity",
            )

    def choose(self, session: Session, workers: Iterable[WorkerState]) -> WorkerState | None:
        """The worker for `session`, or None if none has room.

        A worker that holds the session's history for one of its siblings comes first.
        """
        fits = [worker for worker in workers if worker.has_room(session)]
        if session.siblings:
            fits = [worker for worker in fits if worker.find_sibling(session)] or fits
        if session.is_priority:
            steps, share = session.cost.load(self.config), self.config.realtime_share
            fits = self.realtime.keeping_up(steps, fits, share) or fits
        return min(fits, key=expected_wait, default=None)

    def _keep_up(self, session: Session, workers: list[WorkerState], promised: StepLoad) -> bool:
        """Whether some worker, and the decoders, can take one more session in real time.

        The first one is taken in any case, and gets what the machine can do.
        """
        if not self.realtime.decode_load:
            return True
        steps, share = promised.plus(session.cost.load(self.config)), self.config.realtime_share
        self.realtime.add(session)
        fast = self.realtime.keeping_up(steps, workers, share)
        self.realtime.remove(session)
        return bool(fast)


def expected_wait(worker: WorkerState) -> tuple[float, str]:
    """Seconds of outstanding work, or FLOPs before the worker's first measurement; then its id."""
    return worker.outstanding_cost / (worker.rate or 1.0), worker.worker_id


class Attempt(NamedTuple):
    """To place a session that needs `text_rows`, after a number of changes."""

    changes: int
    session_id: str
    text_rows: int


class Placement:
    """Moves sessions from the waiting room onto workers, off them, and out.

    Every session in `sessions` either waits or is on one of `workers`. `unplaceable` are ids of
    waiting sessions that turned out too large for every worker. `preemptions` counts the sessions
    that lost their blocks or their worker so far.
    """

    def __init__(self, config: SchedulingConfig, realtime: RealTime) -> None:
        self.sessions: dict[str, Session] = {}
        self.workers: dict[str, WorkerState] = {}
        self.realtime = realtime
        self.policy = PlacementPolicy(config, realtime)
        self.admission = Admission(config)
        self.waiting = WaitingRoom(config)
        self.unplaceable: list[str] = []
        self.preemptions = 0
        self.is_closed = False
        self.held: Set[FlowKey] = frozenset()
        """Flows for which workers begin no chunk."""
        self._changes = 0
        """Counts whatever may have made room on a worker."""
        self._failed: dict[bool, Attempt] = {}
        """The last attempt to place the head of a line, if it found no room."""

    def configure(self, config: SchedulingConfig) -> None:
        """Set weights and limits; accepted sessions stay."""
        self.policy.config = self.admission.config = config
        self.waiting.configure(config)
        self.change()
        for worker in self.workers.values():
            worker.queue.configure(config)

    def admit(self, session: Session, *, was_accepted: bool) -> None:
        """Let a session wait; raises InvalidRequestError or CapacityError, and then keeps nothing.

        No limit on waiting sessions refuses one that `was_accepted` before a restart.
        """
        if not was_accepted:
            self.admission.check(session)
        promised = self.waiting.promised_load if session.is_priority else NO_STEPS
        self.policy.check(session, self.workers.values(), promised)
        self.admission.accept(session)
        self.realtime.add(session)
        self.sessions[session.session_id] = session
        self.waiting.join(session)

    def hold(self, flows: Set[FlowKey]) -> None:
        """Let workers begin no chunk for `flows`, and chunks for all others."""
        if flows != self.held:
            self.held = flows
            for worker in self.workers.values():
                worker.queue.hold(flows)

    def change(self) -> None:
        """Room was made on some worker, or may be by eviction: waiting sessions may fit now."""
        self._changes += 1

    def place_waiting(self) -> None:
        """Give workers to waiting sessions: priority first, then the others in fair order.

        An attempt that failed is repeated only after a change.
        """
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
        self.change()

    def settle(self, session: Session, worker: WorkerState) -> None:
        """Remove a session from its worker if it has ended or is evicted, and no step is in flight.

        An evicted session waits again.
        """
        if session.in_flight:
            return
        if session.status is SessionStatus.PREEMPTED:
            self.change()
            worker.release(session)
            self._requeue(session)
        elif session.status.is_finished or session.is_planned:
            if not session.status.is_finished:
                session.status = SessionStatus.FINISHED_COMPLETED
            self.change()
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
        self.change()
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
        live = [session for session in self.sessions.values() if session.is_priority]
        for is_priority, attempt in self._failed.items():
            head = self.waiting.head(is_priority=is_priority)
            if head is not None and self._attempt(head) == attempt:
                assert self.policy.choose(head, self.workers.values()) is None, "there is room"
                victims = [worker.evictable(head) for worker in self.workers.values()]
                assert not any(victims), "room could be made"
        self.realtime.check_integrity(sum(session.cost.decode_rate for session in live))

    def _place_line(self, *, is_priority: bool) -> bool:
        """Place sessions until one finds no room; returns whether none is left."""
        while (session := self.waiting.head(is_priority=is_priority)) is not None:
            if not self.policy.can_ever(session, self.workers.values()):
                self.unplaceable.append(session.session_id)
                self.waiting.step_aside(session)
                continue
            attempt = self._attempt(session)
            if self._failed.get(is_priority) == attempt:
                return False
            worker = self.policy.choose(session, self.workers.values())
            if worker is None and self._make_room(session):
                worker = self.policy.choose(session, self.workers.values())
            if worker is None:
                self._failed[is_priority] = attempt
                return False
            self.waiting.serve(session)
            self.admission.start(session)
            worker.place(session)
        return True

    def _attempt(self, session: Session) -> Attempt:
        return Attempt(self._changes, session.session_id, session.prompts.text_rows)

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
        self.realtime.remove(session)
