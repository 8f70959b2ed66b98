"""Continuous batching of denoise steps: which sessions take their next step, on which worker."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from helios_serve.core.admission import Admission
from helios_serve.core.batch import StepBatch
from helios_serve.core.placement import Placement
from helios_serve.core.session import Session, SessionStatus
from helios_serve.core.waiting_room import WaitingRoom
from helios_serve.core.worker_state import WorkerState
from helios_serve.errors import InvalidRequestError
from helios_serve.messages import (
    ChunkStart,
    ScheduledStep,
    SchedulerOutput,
    Snapshot,
    StepCursor,
)
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig


class SchedulerStats(NamedTuple):
    """Counts of one moment: sessions that wait and that are on workers, and the workers' memory.

    And of all moments so far: sessions that lost their blocks or their worker, and chunks of
    priority sessions that came after their deadline.
    """

    waiting: int
    running: int
    used_blocks: int
    total_blocks: int
    used_text_rows: int
    total_text_rows: int
    preemptions: int = 0
    deadline_misses: int = 0


class Scheduler:
    """Sessions in; for each worker, step after step, what to do next.

    Plans never wait for results: a worker may be given the next one while it still computes.
    `clock` tells seconds that only ever grow.
    """

    def __init__(self, config: SchedulingConfig, clock: Callable[[], float]) -> None:
        self.config = config
        self.clock = clock
        self.sessions: dict[str, Session] = {}
        self.workers: dict[str, WorkerState] = {}
        self.admission = Admission(config)
        self.placement = Placement(config)
        self.waiting = WaitingRoom(config)
        self.is_closed = False
        self.unplaceable: list[str] = []
        """Waiting sessions that turned out too large for every worker."""
        self._preemptions = self._deadline_misses = 0

    def add_worker(self, worker_id: str, num_blocks: int, text_rows: int) -> WorkerState:
        """Place sessions on one more worker, which has `num_blocks` history blocks and room for
        the keys and values of `text_rows` prompt tokens."""
        assert worker_id not in self.workers, f"worker {worker_id} is known already"
        worker = WorkerState(worker_id, num_blocks, text_rows, self.config)
        self.workers[worker_id] = worker
        self._place_waiting()
        return worker

    def set_tenants(self, tenants: Mapping[str, TenantConfig], defaults: TenantConfig) -> None:
        """Shares and limits from now on; sessions that were accepted under others stay."""
        config = msgspec.structs.replace(
            self.config, tenants=dict(tenants), tenant_defaults=defaults
        )
        self.config = self.admission.config = self.placement.config = config
        self.waiting.configure(config)
        for worker in self.workers.values():
            worker.queue.configure(config)

    def cost_shares(self, steps: Sequence[ScheduledStep]) -> list[float]:
        """What part of a plan's cost each of its steps has; they sum to 1.

        The plan has not been settled yet, so that all its sessions are known.
        """
        costs = [self.sessions[step.session_id].step_costs[step.cursor.stage] for step in steps]
        return [cost / sum(costs) for cost in costs]

    def add_session(self, session: Session, *, was_accepted: bool = False) -> None:
        """Queue a session; raises InvalidRequestError or CapacityError, and then keeps nothing.

        One that `was_accepted` before a restart is turned away by no limit on who may wait.
        """
        if session.session_id in self.sessions:
            raise InvalidRequestError(
                f"got request id {session.session_id!r}, which is in use", param="request_id"
            )
        if not was_accepted:
            self.admission.check(session)
        self._check_placement(session)
        self.admission.accept(session)
        self.sessions[session.session_id] = session
        self.waiting.join(session)
        self._place_waiting()

    def take_unplaceable(self) -> list[str]:
        """Waiting sessions that turned out too large for every worker since the last call."""
        taken, self.unplaceable = self.unplaceable, []
        return taken

    def inputs_arrived(self, session_id: str) -> None:
        """A prompt of the session was read, or its reference encoded: it may be ready now."""
        session = self.sessions[session_id]
        if session.worker_id is not None:
            self.workers[session.worker_id].reserve_text(session)
        elif session.is_ready:
            self.waiting.line_up(session)
            self._place_waiting()

    def schedule(self, worker: WorkerState) -> SchedulerOutput:
        """The worker's next plan: one step of each session that policy picks, or empty."""
        if (suspect := worker.take_suspect()) is not None:
            return worker.add_plan(SchedulerOutput((suspect,), finished=worker.take_closing()))
        batch = StepBatch(self.config)
        batch.fill(worker)
        steps = tuple(self._plan(session, worker) for session in batch.sessions)
        output = SchedulerOutput(worker.take_opening(), steps, worker.take_closing())
        return worker.add_plan(output, batch.cost)

    def update_from_output(self, worker: WorkerState, seconds: float = 0.0) -> None:
        """The worker's oldest plan is done; `seconds` is the time it took, 0 if not measured."""
        plan = worker.plans.popleft()
        worker.measure(plan.cost, seconds)
        for step in plan.output.scheduled_steps:
            session = self.sessions.get(step.session_id)
            if session is not None and session.worker_id == worker.worker_id:
                session.in_flight -= 1
                self._settle(session, worker)
        self._place_waiting()

    def finish_chunk(self, session_id: str, snapshot: Snapshot) -> None:
        """A chunk is done: from now on the session can be taken up again behind it."""
        session = self.sessions.get(session_id)
        if session is not None:
            session.snapshot = snapshot
            session.acquit()
            now, clock = self.clock(), session.clock
            due = clock.deadline(snapshot.chunk - 1, self.config.start_buffer)
            self._deadline_misses += session.is_priority and bool(clock.started) and now > due
            clock.deliver_first(now)

    def abort(
        self, session_id: str, status: SessionStatus = SessionStatus.FINISHED_ABORTED
    ) -> None:
        """End a session now; its blocks are freed when the last step given out has returned."""
        session = self.sessions.get(session_id)
        if session is None or session.status.is_finished:
            return
        session.status = status
        if session.worker_id is None:
            self.waiting.leave(session)
            self.admission.start(session)
            self._forget(session)
        else:
            worker = self.workers[session.worker_id]
            worker.queue.withdraw(session)
            self._settle(session, worker)
        self._place_waiting()

    def pause(self, session_id: str) -> None:
        """Give no more steps until `resume`; latents and blocks stay where they are."""
        if (session := self.sessions.get(session_id)) is None:
            return
        session.clock.pause(self.clock())
        if session.worker_id is None:
            self.waiting.step_aside(session)
        elif session.status is SessionStatus.RUNNING:
            worker = self.workers[session.worker_id]
            session.status = SessionStatus.PAUSED
            worker.queue.withdraw(session)
            if session.is_leaving and not session.is_planned:  # it would not come to an edge
                self._evict(session, worker)
        self._place_waiting()

    def resume(self, session_id: str) -> None:
        """Go on with a paused session; one that is over, or not paused, is left as it is."""
        session = self.sessions.get(session_id)
        if session is None or not session.clock.is_paused:
            return
        session.clock.resume(self.clock())
        if session.worker_id is None:
            self.waiting.line_up(session)
            self._place_waiting()
        elif session.status is SessionStatus.PAUSED:
            session.status = SessionStatus.RUNNING
            worker = self.workers[session.worker_id]
            if session.is_runnable:
                worker.queue.come_back(session, worker.rate)

    def allow_chunks(self, session_id: str, limit: int) -> None:
        """Let a session begin its chunks up to `limit`, and no others until this is said again."""
        session = self.sessions.get(session_id)
        if session is None:
            return
        ran = session.is_runnable
        session.chunk_limit = min(limit, session.params.num_chunks)
        if session.worker_id is None or session.status is not SessionStatus.RUNNING:
            return
        worker = self.workers[session.worker_id]
        if session.is_runnable and not ran:
            worker.queue.come_back(session, worker.rate)
        elif ran and not session.is_runnable:
            worker.queue.withdraw(session)

    def drain(self, worker: WorkerState) -> None:
        """Place no more sessions on the worker; those it has leave it at their next chunk edges."""
        worker.is_draining = True
        for session in list(worker.queue.sessions.values()):
            if not session.is_going:
                self._evict(session, worker)
        self._place_waiting()

    def close(self) -> None:
        """Place no sessions any more; those on workers leave them at their next chunk edges."""
        self.is_closed = True
        for worker in self.workers.values():
            self.drain(worker)

    def blame(self, worker: WorkerState, limit: int) -> list[str]:
        """Suspect the sessions of a dead worker's oldest plan; returns those that caused deaths.

        A suspect is opened and runs alone until it has finished a chunk. It is a cause if `limit`
        workers have died while it was alone, at the same step.
        """
        if not worker.plans:
            return []
        plan = worker.plans[0].output
        points: dict[str, StepCursor | None] = {new.session_id: None for new in plan.new_sessions}
        points |= {step.session_id: step.cursor for step in plan.scheduled_steps}
        guilty = []
        for session_id, point in points.items():
            if (session := self.sessions.get(session_id)) is not None:
                session.is_suspect = True
                session.lone_deaths[point] += len(points) == 1
                if session.lone_deaths[point] >= limit:
                    guilty.append(session_id)
        return guilty

    def remove_worker(self, worker: WorkerState) -> None:
        """The worker is gone: its sessions wait to resume at their last chunk edge."""
        del self.workers[worker.worker_id]
        for session in list(worker.queue.sessions.values()):
            if session.status.is_finished:
                self._forget(session)
            else:
                self._requeue(session)
        self._place_waiting()

    @property
    def has_unfinished(self) -> bool:
        return bool(self.sessions)

    def stats(self) -> SchedulerStats:
        """Counts of this moment; costs as much as there are workers."""
        placed = len(self.sessions) - len(self.waiting)
        workers = self.workers.values()
        return SchedulerStats(
            waiting=len(self.waiting),
            running=placed,
            used_blocks=sum(worker.used_blocks for worker in workers),
            total_blocks=sum(worker.total_blocks for worker in workers),
            used_text_rows=sum(worker.reserved_rows for worker in workers),
            total_text_rows=sum(worker.text_rows for worker in workers),
            preemptions=self._preemptions,
            deadline_misses=self._deadline_misses,
        )

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

    def _check_placement(self, session: Session) -> None:
        promised = self.waiting.promised_rate if session.is_priority else 0.0
        self.placement.check(session, self.workers.values(), promised)

    def _plan(self, session: Session, worker: WorkerState) -> ScheduledStep:
        """Give out the step at the session's cursor, and move on as if it were done."""
        cursor, name, start = session.cursor, session.session_id, None
        cost = session.step_cost
        if session.at_chunk_edge:
            new_anchor = session.makes_anchor(cursor.chunk)
            blocks = worker.history.begin_chunk(name, new_anchor=new_anchor)
            start = ChunkStart(blocks, session.mix(cursor.chunk), session.take_unsent())
        session.advance()
        if session.cursor.chunk > cursor.chunk:
            worker.history.end_chunk(name)
        session.in_flight += 1
        worker.outstanding_cost -= cost
        worker.queue.charge(session, cost)
        if session.is_leaving and session.may_leave and not session.is_planned:
            session.status = SessionStatus.PREEMPTED
        elif session.is_runnable:
            worker.queue.push(session, worker.rate)
        return ScheduledStep(name, cursor, start)

    def _settle(self, session: Session, worker: WorkerState) -> None:
        """End or evict a session whose last step given out has returned."""
        if session.in_flight:
            return
        if session.status is SessionStatus.PREEMPTED:
            self._leave(session, worker)
            self._requeue(session)
        elif session.status.is_finished or session.is_planned:
            if not session.status.is_finished:
                session.status = SessionStatus.FINISHED_COMPLETED
            self._leave(session, worker)
            self._forget(session)

    def _leave(self, session: Session, worker: WorkerState) -> None:
        """Free all that the session holds on its worker."""
        worker.queue.leave(session)
        worker.remove(session)
        worker.history.close(session.session_id)
        worker.close(session.session_id)

    def _forget(self, session: Session) -> None:
        del self.sessions[session.session_id]
        self.admission.finish(session)

    def _requeue(self, session: Session) -> None:
        """A session that lost its worker or its blocks waits to be taken up again."""
        self._preemptions += 1
        session.rewind()
        session.status = SessionStatus.PREEMPTED
        self.admission.requeue(session)
        self.waiting.join(session)

    def _place_waiting(self) -> None:
        """Give workers to waiting sessions: priority first, then the others in fair order."""
        if not self.is_closed and self._place_line(is_priority=True):
            self._place_line(is_priority=False)

    def _place_line(self, *, is_priority: bool) -> bool:
        """Place sessions until one finds no room; whether none is left."""
        while (session := self.waiting.head(is_priority=is_priority)) is not None:
            if not self.placement.can_ever(session, self.workers.values()):
                self.unplaceable.append(session.session_id)
                self.waiting.step_aside(session)
                continue
            worker = self.placement.choose(session, self.workers.values())
            if worker is None and self._make_room(session):
                worker = self.placement.choose(session, self.workers.values())
            if worker is None:
                return False
            self.waiting.serve(session)
            self.admission.start(session)
            self._start(session, worker)
        return True

    def _start(self, session: Session, worker: WorkerState) -> None:
        worker.opening.append(worker.open_history(session))
        session.worker_id = worker.worker_id
        session.placed_chunk = session.edge_chunk
        session.status = SessionStatus.RUNNING
        worker.add(session)
        worker.queue.join(session)

    def _make_room(self, session: Session) -> bool:
        """Evict for `session` what may be evicted; whether there is room at once."""
        for worker in self.workers.values():
            victims = worker.evictable(session)
            if victims is None:
                continue
            for victim in victims:
                self._evict(victim, worker)
            return worker.has_room(session)
        return False

    def _evict(self, session: Session, worker: WorkerState) -> None:
        """Take the session off its worker, now if that costs nothing, or at its next chunk edge."""
        if session.status is SessionStatus.PAUSED or session.may_leave:
            worker.queue.withdraw(session)
            session.status = SessionStatus.PREEMPTED
            self._settle(session, worker)
        else:
            session.is_leaving = True
