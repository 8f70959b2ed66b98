"""Continuous batching of denoise steps: which sessions take their next step, on which worker."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from helios_serve.core.device import Device
from helios_serve.core.placement import Placement
from helios_serve.core.plan_pace import Timetable
from helios_serve.core.realtime import RealTime
from helios_serve.core.session import Session, SessionStatus
from helios_serve.core.stage_queue import Claim
from helios_serve.core.task_queue import TaskQueue
from helios_serve.core.worker_state import WorkerState
from helios_serve.errors import InvalidRequestError
from helios_serve.messages import (
    ChunkStart,
    DecodeTask,
    EncodeTask,
    ScheduledStep,
    SchedulerOutput,
    Snapshot,
    StepCursor,
)
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig

MAX_SKIPPED = 8
"""Sessions that do not fit a batch and are skipped, at most."""


class StepBatch:
    """Sessions whose next steps run together; `cost` is the FLOPs of all these steps.

    With a priority session, only those run that are owed a share of the worker. With the first
    chunk of a flow that was idle, only those run whose flows were idle too. `claims` are those of
    tasks on the same device, to which the same applies.
    """

    def __init__(self, config: SchedulingConfig, claims: Sequence[Claim] = ()) -> None:
        self.config = config
        self.sessions: list[Session] = []
        self.tokens = 0
        self.cost = 0.0
        self.has_priority = any(claim.is_priority for claim in claims)
        self.is_owed = any(claim.is_owed for claim in claims)

    def fill(self, worker: WorkerState) -> None:
        """Take sessions from the worker's queue, in its order, up to the limits of the config.

        Those that do not fit keep their places.
        """
        skipped: list[Session] = []
        while len(skipped) < MAX_SKIPPED:
            session = worker.queue.pop(with_priority=self.has_priority, only_owed=self.is_owed)
            if session is None:
                break
            if self.fits(session):
                self.add(session)
                self.is_owed |= worker.queue.is_owed(session)
            else:
                skipped.append(session)
        for session in reversed(skipped):
            worker.queue.push(session, front=True)

    def fits(self, session: Session) -> bool:
        """Whether a session can be added. The first one always can; a suspect runs alone."""
        if not self.sessions:
            return True
        if session.is_suspect or self.sessions[0].is_suspect:
            return False
        tokens = self.tokens + session.cost.tokens[session.cursor.stage]
        within = tokens <= self.config.max_num_batched_tokens
        return within and len(self.sessions) < self.config.max_num_seqs

    def add(self, session: Session) -> None:
        self.sessions.append(session)
        self.tokens += session.cost.tokens[session.cursor.stage]
        self.cost += session.step_cost
        self.has_priority |= session.is_priority


class SchedulerStats(NamedTuple):
    """Counts of one moment: sessions that wait and that are on workers, and the workers' memory.

    `preemptions` counts the sessions that lost their blocks or their worker so far, and
    `deadline_misses` the chunks of priority sessions that came after their deadline.
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
    """Takes sessions and decides, worker by worker and step by step, what is done next.

    Plans never wait for results: a worker may be given the next one while it still computes.
    `clock` returns monotonic seconds. `devices` are those of all workers that are ready, `encoding`
    and `decoding` the tasks that wait for one of them.
    """

    def __init__(self, config: SchedulingConfig, clock: Callable[[], float]) -> None:
        self.config = config
        self.clock = clock
        self.devices: dict[str, Device] = {}
        self.encoding: TaskQueue[EncodeTask] = TaskQueue("encode", config)
        self.decoding: TaskQueue[DecodeTask] = TaskQueue("decode", config)
        self.placement = Placement(config, RealTime(self.devices, self.decoding.rate))
        self.sessions = self.placement.sessions
        self.workers = self.placement.workers
        self.waiting = self.placement.waiting
        self.timetable = Timetable()
        self._deadline_misses = 0

    def add_worker(self, worker_id: str, num_blocks: int, text_rows: int) -> WorkerState:
        """Place sessions on one more worker, which has `num_blocks` history blocks and room for
        the keys and values of `text_rows` prompt tokens.

        Unless `devices` has it already, its device does nothing else.
        """
        assert worker_id not in self.workers, f"worker {worker_id} is known already"
        device = self.devices.setdefault(worker_id, Device(worker_id, ("denoise",)))
        worker = WorkerState(
            device,
            self.config,
            num_blocks=num_blocks,
            text_rows=text_rows,
            decode_rate=self.decoding.rate,
            clock=self.clock,
            timetable=self.timetable,
        )
        worker.queue.hold(self.placement.held)
        self.timetable.add(worker_id)
        self.workers[worker_id] = worker
        self.placement.change()
        self.placement.place_waiting()
        return worker

    def set_tenants(self, tenants: Mapping[str, TenantConfig], defaults: TenantConfig) -> None:
        """Set shares and limits; sessions that were accepted under others stay."""
        self.config = msgspec.structs.replace(
            self.config, tenants=dict(tenants), tenant_defaults=defaults
        )
        self.placement.configure(self.config)
        for tasks in (self.encoding.queue, self.decoding.queue):
            tasks.configure(self.config)

    def cost_shares(self, steps: Sequence[ScheduledStep]) -> list[float]:
        """The share of a plan's cost that each of its steps has; they sum to 1.

        The plan is still in flight, so all its sessions are known.
        """
        costs = [self.sessions[step.session_id].cost.steps[step.cursor.stage] for step in steps]
        total = sum(costs)
        return [cost / total for cost in costs]

    def add_session(self, session: Session, *, was_accepted: bool = False) -> None:
        """Queue a session; raises InvalidRequestError or CapacityError, and then keeps nothing.

        No limit on waiting sessions refuses one that `was_accepted` before a restart.
        """
        if session.session_id in self.sessions:
            raise InvalidRequestError(
                f"got request id {session.session_id!r}, which is in use", param="request_id"
            )
        self.placement.admit(session, was_accepted=was_accepted)
        self.placement.place_waiting()

    def take_unplaceable(self) -> list[str]:
        """Waiting sessions that turned out too large for every worker since the last call."""
        taken, self.placement.unplaceable = self.placement.unplaceable, []
        return taken

    def inputs_arrived(self, session_id: str) -> None:
        """A prompt or the reference of the session was encoded: it may be ready now."""
        session = self.sessions[session_id]
        if session.worker_id is not None:
            self.workers[session.worker_id].reserve_text(session)
            self.placement.change()
        elif session.is_ready:
            self.waiting.line_up(session)
            self.placement.place_waiting()

    def due(self, now: float) -> Iterator[WorkerState]:
        """Yield the workers that may need plans at `now`, in the order in which they were added.

        Those that still do when the caller has dealt with them are due again the next time, the
        others when something about them has changed, or at `timetable.next_at`.
        """
        for worker_id in self.timetable.due(now):
            worker = self.workers[worker_id]
            yield worker
            self.timetable.set(worker_id, worker.next_plan_at(now), now)

    def schedule(self, worker: WorkerState) -> SchedulerOutput:
        """The worker's next plan: one step of each session that policy picks, or empty."""
        if (suspect := worker.take_suspect()) is not None:
            return worker.add_plan(SchedulerOutput((suspect,), finished=worker.take_closing()))
        claims = [tasks.claim(worker.device) for tasks in (self.encoding, self.decoding)]
        batch = StepBatch(self.config, claims)
        batch.fill(worker)
        steps = tuple(self._plan(session, worker) for session in batch.sessions)
        output = SchedulerOutput(worker.take_opening(), steps, worker.take_closing())
        return worker.add_plan(output, batch.cost)

    def update_from_output(self, worker: WorkerState, seconds: float = 0.0) -> None:
        """The worker's oldest plan is done; `seconds` is the time it took, 0 if not measured."""
        plan = worker.finish_plan(seconds)
        for step in plan.output.scheduled_steps:
            session = self.sessions.get(step.session_id)
            if session is not None and session.worker_id == worker.worker_id:
                session.in_flight -= 1
                if not (session.in_flight or session.is_runnable):
                    worker.queue.withdraw(session)  # or it would claim the device while it waits
                self.placement.settle(session, worker)
        self.placement.place_waiting()

    def finish_chunk(self, session_id: str, snapshot: Snapshot) -> None:
        """A chunk is done: from now on the session can resume after it."""
        session = self.sessions.get(session_id)
        if session is not None:
            session.snapshot = snapshot
            session.clear_suspicion()

    def deliver_chunk(self, session: Session, chunk: int) -> None:
        """A chunk was decoded, and all before it. The session may have ended otherwise."""
        now, clock = self.clock(), session.clock
        due = clock.deadline(chunk, self.config.start_buffer)
        self._deadline_misses += session.is_priority and bool(clock.started) and now > due
        clock.deliver_first(now)

    def abort(
        self, session_id: str, status: SessionStatus = SessionStatus.FINISHED_ABORTED
    ) -> None:
        """End a session now; its blocks are freed when its last step in flight has returned.

        It counts against no limit any more.
        """
        session = self.sessions.get(session_id)
        if session is None or session.status.is_finished:
            return
        session.status = status
        if session.worker_id is None:
            self.placement.remove_waiting(session)
        else:
            worker = self.workers[session.worker_id]
            worker.queue.withdraw(session)
            self.placement.change()
            self.placement.admission.finish(session)
            self.placement.settle(session, worker)
        self.placement.place_waiting()

    def pause(self, session_id: str) -> None:
        """Plan no more steps until `resume`; latents and blocks stay where they are."""
        if (session := self.sessions.get(session_id)) is None:
            return
        session.clock.pause(self.clock())
        if session.worker_id is None:
            self.waiting.step_aside(session)
        elif session.status is SessionStatus.RUNNING:
            worker = self.workers[session.worker_id]
            session.status = SessionStatus.PAUSED
            worker.queue.withdraw(session)
            self.placement.change()
            if session.is_leaving and not session.is_planned:  # it would not come to an edge
                self.placement.evict(session, worker)
        self.placement.place_waiting()

    def resume(self, session_id: str) -> None:
        """Continue a paused session; any other is left as it is."""
        session = self.sessions.get(session_id)
        if session is None or not session.clock.is_paused:
            return
        session.clock.resume(self.clock())
        if session.worker_id is None:
            self.waiting.line_up(session)
            self.placement.place_waiting()
        elif session.status is SessionStatus.PAUSED:
            session.status = SessionStatus.RUNNING
            worker = self.workers[session.worker_id]
            if session.is_runnable:
                worker.come_back(session)

    def allow_chunks(self, session_id: str, limit: int) -> None:
        """Let a session begin the chunks before `limit`, and no others until the next call."""
        session = self.sessions.get(session_id)
        if session is None:
            return
        ran = session.is_runnable
        session.chunk_limit = min(limit, session.params.num_chunks)
        if session.worker_id is None or session.status is not SessionStatus.RUNNING:
            return
        worker = self.workers[session.worker_id]
        if session.is_runnable and not ran:
            worker.come_back(session)
        elif ran and not session.is_runnable:
            worker.queue.withdraw(session)

    def drain(self, worker: WorkerState) -> None:
        """Place no more sessions on the worker; those it has leave it at their next chunk edges."""
        worker.device.is_draining = True
        self.placement.change()
        for session in list(worker.queue.sessions.values()):
            if not session.is_going:
                self.placement.evict(session, worker)
        self.placement.place_waiting()

    def close(self) -> None:
        """Place no more sessions; those on workers leave them at their next chunk edges."""
        self.placement.is_closed = True
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
        self.placement.remove_worker(worker)
        self.timetable.remove(worker.worker_id)
        self.devices.pop(worker.worker_id, None)
        self.placement.place_waiting()

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
            preemptions=self.placement.preemptions,
            deadline_misses=self._deadline_misses,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless all accounts agree with each other."""
        self.placement.check_integrity()
        for device in self.devices.values():
            device.check_integrity()
        for tasks in (self.encoding, self.decoding):
            tasks.check_integrity(self.devices.values())

    def _plan(self, session: Session, worker: WorkerState) -> ScheduledStep:
        """Plan the step at the session's cursor, and advance as if it were done."""
        cursor, name, start = session.cursor, session.session_id, None
        cost = session.step_cost
        if session.at_chunk_edge:
            new_anchor = session.makes_anchor(cursor.chunk)
            blocks = worker.history.begin_chunk(name, new_anchor=new_anchor)
            start = ChunkStart(blocks, session.mix(cursor.chunk), session.prompts.take_unsent())
        session.advance()
        if session.cursor.chunk > cursor.chunk:
            worker.history.end_chunk(name)
        if session.is_planned:
            self.placement.change()  # its room is as good as free
        session.in_flight += 1
        worker.outstanding_cost -= cost
        worker.queue.charge(session, cost)
        if session.is_leaving and session.may_leave and not session.is_planned:
            session.status = SessionStatus.PREEMPTED
        elif session.is_runnable:
            worker.queue.push(session)
        return ScheduledStep(name, cursor, start)
