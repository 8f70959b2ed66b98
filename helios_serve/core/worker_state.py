"""The scheduler's account of one worker: its blocks, sessions, plans and speed."""

import math
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from helios_serve.core.device import Device
from helios_serve.core.history_manager import HistoryManager
from helios_serve.core.plan_pace import QUEUE_DEPTH, PlanPace, Timetable
from helios_serve.core.rate import Rate
from helios_serve.core.session import Session, SessionStatus
from helios_serve.core.stage_queue import StageQueue
from helios_serve.messages import ChunkBlocks, NewSession, SchedulerOutput
from helios_serve.options.scheduling import SchedulingConfig


class Plan(NamedTuple):
    """A plan in flight and the cost of its steps in FLOPs."""

    output: SchedulerOutput
    cost: float


class Room(NamedTuple):
    """History blocks and text rows that are missing; none if 0 or less."""

    blocks: int
    rows: int

    def less(self, session: Session) -> "Room":
        """What is missing when `session` has gone."""
        return Room(self.blocks - session.cost.peak_blocks, self.rows - session.reserved_rows)

    @property
    def is_there(self) -> bool:
        return self.blocks <= 0 and self.rows <= 0


class StepOrder:
    """The order of the steps of one worker, whose costs are in FLOPs.

    `decode_rate` is that of all decoders.
    """

    def __init__(self, config: SchedulingConfig, device: Device, decode_rate: Rate) -> None:
        self.config = config
        self.device = device
        self.decode_rate = decode_rate

    def due(self, session: Session) -> float:
        """When its next step has to begin, so that its chunk is denoised and decoded in time."""
        due = session.clock.deadline(session.cursor.chunk, self.config.start_buffer)
        left = self.device.step_rate.seconds(session.cost.left_in_chunk(session.cursor))
        return due - left - self.decode_rate.seconds(session.cost.decode)

    def is_started(self, session: Session) -> bool:
        """Whether it is in the middle of a chunk."""
        return not session.at_chunk_edge

    def lead(self, session: Session) -> float:
        """FLOPs of its chunk."""
        return session.cost.of_chunk(session.cursor.chunk)

    def credit(self, session: Session) -> float:
        """FLOPs of its chunk, with those that the device could do while it decodes the chunk."""
        cost = session.cost.of_chunk(session.cursor.chunk)
        if "decode" in self.device.roles:
            cost += self.device.step_rate.value * self.decode_rate.seconds(session.cost.decode)
        return cost


class WorkerState:
    """The scheduler's account of one worker that denoises.

    `plans` are those in flight, the oldest first. `device` is what the steps run on, with other
    stages if it has their roles. `clock` returns seconds. The worker reports to
    `timetable` when it may need a plan.
    """

    def __init__(
        self,
        device: Device,
        config: SchedulingConfig,
        *,
        num_blocks: int,
        text_rows: int,
        decode_rate: Rate,
        clock: Callable[[], float],
        timetable: Timetable,
    ) -> None:
        self.worker_id = device.worker_id
        self.device = device
        self.clock = clock
        self.timetable = timetable
        self.history = HistoryManager(num_blocks)
        self.text_rows = text_rows
        self.queue = device.step_queue = StageQueue(config, StepOrder(config, device, decode_rate))
        self.plans: deque[Plan] = deque()
        self.pace = PlanPace(device)
        self._next_plan_at = -math.inf
        self.opening: list[NewSession] = []
        self.closing: list[str] = []
        self.reserved_blocks = 0
        self.reserved_rows = 0
        self.outstanding_cost = 0.0

    @property
    def rate(self) -> float:
        """The measured speed in FLOP/s, 0 before the first measurement."""
        return self.device.step_rate.value

    @property
    def total_blocks(self) -> int:
        """Blocks that can hold history: all but the null block."""
        return self.history.pool.num_blocks - 1

    @property
    def free_blocks(self) -> int:
        """Blocks that no session has reserved."""
        return self.total_blocks - self.reserved_blocks

    @property
    def used_blocks(self) -> int:
        """Blocks that hold history, or soon will."""
        return self.total_blocks - self.history.pool.num_free

    @property
    def is_empty(self) -> bool:
        """Whether it has no session, no plan in flight, and no session still to close."""
        return not (self.queue.sessions or self.plans or self.closing)

    def has_room(self, session: Session) -> bool:
        """Whether there are blocks for its history and rows for its prompts' keys and values."""
        fits_text = session.prompts.text_rows <= self.text_rows - self.reserved_rows
        fits = session.cost.peak_blocks <= self.free_blocks and fits_text
        return fits and not self.device.is_draining

    def could_hold(self, session: Session) -> bool:
        """Whether there would be room for it without any other session."""
        blocks = session.cost.peak_blocks <= self.total_blocks
        return blocks and (not session.is_ready or session.prompts.text_rows <= self.text_rows)

    def place(self, session: Session) -> None:
        """Run a session here from the chunk edge at which it can resume."""
        self.opening.append(self._open_history(session))
        session.worker_id = self.worker_id
        session.placed_chunk = session.edge_chunk
        session.status = SessionStatus.RUNNING
        self.reserved_blocks += session.cost.peak_blocks
        self.reserve_text(session)
        self.outstanding_cost += session.remaining_cost
        self.queue.join(session)
        if session.is_runnable:
            self.queue.push(session)
        self.timetable.touch(self.worker_id)

    def come_back(self, session: Session) -> None:
        """Queue a session of this worker that was withdrawn."""
        self.queue.come_back(session)
        self.timetable.touch(self.worker_id)

    def reserve_text(self, session: Session) -> None:
        """Reserve rows for its prompts as they are now; new ones may take more than is free."""
        self.reserved_rows += session.prompts.text_rows - session.reserved_rows
        session.reserved_rows = session.prompts.text_rows

    def release(self, session: Session) -> None:
        """Free all that a session holds here; no step of it may be in flight."""
        self.queue.leave(session)
        self.reserved_blocks -= session.cost.peak_blocks
        self.reserved_rows -= session.reserved_rows
        session.reserved_rows = 0
        self.outstanding_cost -= session.remaining_cost
        self.history.close(session.session_id)
        self._close(session.session_id)

    def find_sibling(self, session: Session) -> Session | None:
        """A session whose history here is the one that `session` begins with."""
        for name in session.siblings:
            sibling = self.queue.sessions.get(name)
            if sibling is not None and sibling.at_snapshot and session.continues(sibling):
                return sibling
        return None

    def add_plan(self, output: SchedulerOutput, cost: float = 0.0) -> SchedulerOutput:
        """Record a plan as in flight unless it is empty; returns it."""
        if not output.is_empty:
            if not self.plans:
                self.device.begin("denoise", self.clock())
            self.plans.append(Plan(output, cost))
            self._next_plan_at = -math.inf
        return output

    @property
    def may_need_plan(self) -> bool:
        """Whether fewer plans than it may have are in flight, and there is something to plan."""
        if len(self.plans) >= QUEUE_DEPTH:
            return False
        return bool(self.plans or self.opening or self.closing or self.queue.has_work)

    def next_plan_at(self, now: float) -> float:
        """When it should be given its next plan, infinity if it needs none; see PlanPace.

        What was computed for the same plans holds until that time: it can only turn out later.
        """
        if not self.may_need_plan:
            return math.inf
        if now >= self._next_plan_at:
            self._next_plan_at = self.pace.next_at([plan.cost for plan in self.plans], now)
        return self._next_plan_at

    def finish_plan(self, seconds: float) -> Plan:
        """Remove the oldest plan, which took `seconds`, 0 if that was not measured."""
        plan, now = self.plans.popleft(), self.clock()
        self._next_plan_at = -math.inf
        self.timetable.touch(self.worker_id)
        seconds *= self.device.end("denoise", now, plan.cost if seconds > 0 else 0.0)
        if self.plans:
            self.device.begin("denoise", now)
        self.device.step_rate.measure(plan.cost, seconds)
        self.device.plan_time.measure(plan.cost, seconds)
        self.pace.measure(plan.cost, seconds)
        return plan

    def take_opening(self) -> tuple[NewSession, ...]:
        """Sessions that the worker must open before its next step."""
        opening, self.opening = tuple(self.opening), []
        return opening

    def take_closing(self) -> tuple[str, ...]:
        """Sessions that the worker may forget."""
        closing, self.closing = tuple(self.closing), []
        return closing

    def take_suspect(self) -> NewSession | None:
        """A session that is suspected of killing workers, to be opened in a plan of its own."""
        for new in self.opening:
            if self.queue.sessions[new.session_id].is_suspect:
                self.opening.remove(new)
                return new
        return None

    def evictable(self, session: Session) -> list[Session] | None:
        """Sessions whose eviction makes room for `session`; None if nothing does.

        Paused sessions go first, then flex sessions unless `session` is one. Room that earlier
        evictions and last steps are about to free counts.
        """
        if self.device.is_draining:
            return None
        here = self.queue.sessions.values()
        going = [item for item in here if item.is_going]
        missing = Room(
            session.cost.peak_blocks - self.free_blocks,
            session.prompts.text_rows - self.text_rows + self.reserved_rows,
        )
        for item in going:
            missing = missing.less(item)
        staying = [item for item in here if not item.is_going]
        paused = [item for item in staying if item.status is SessionStatus.PAUSED]
        flex = [
            item
            for item in staying
            if item.status is SessionStatus.RUNNING and item.request.tier == "flex"
        ]
        victims = []
        for item in paused + (flex if session.request.tier != "flex" else []):
            if missing.is_there:
                break
            victims.append(item)
            missing = missing.less(item)
        return victims if missing.is_there else None

    def check_integrity(self) -> None:
        """Raise AssertionError unless reservations are what the sessions here add up to."""
        self.history.check_integrity()
        self.queue.check_integrity()
        assert self.device.is_running("denoise") == bool(self.plans)
        assert not self.may_need_plan or self.worker_id in self.timetable, "it would get no plan"
        sessions = self.queue.sessions.values()
        assert self.reserved_blocks == sum(item.cost.peak_blocks for item in sessions)
        assert self.reserved_blocks <= self.total_blocks
        assert self.reserved_rows == sum(item.reserved_rows for item in sessions)
        planned = Counter(
            step.session_id for plan in self.plans for step in plan.output.scheduled_steps
        )
        for session in sessions:
            assert session.worker_id == self.worker_id
            assert session.in_flight == planned[session.session_id]
            runs = session.status is SessionStatus.RUNNING and session.is_runnable
            assert (session in self.queue) == runs, f"{session.session_id} is in the wrong line"
            claims = session.session_id in self.queue.claimants
            assert not claims or runs or session.in_flight, f"{session.session_id} claims in vain"
        outstanding = sum(session.remaining_cost for session in sessions)
        assert abs(self.outstanding_cost - outstanding) <= 1e-6 * max(1.0, outstanding)

    def _open_history(self, session: Session) -> NewSession:
        """Give a session its blocks: those of a sibling if there is one here, or new ones.

        The worker fills them from the session's snapshot, unless a sibling's steps have filled
        them. A sibling that is itself to fill them from a snapshot does not do: it may fail first.
        """
        name, snapshot = session.session_id, session.snapshot
        sibling = self.find_sibling(session)
        if sibling is None:
            blocks = self.history.open(name, session.geometry, initial_frames=session.edge_frames)
        else:
            blocks = self.history.fork(sibling.session_id, name)
            if sibling.placed_chunk < sibling.edge_chunk:
                assert snapshot is not None, f"{name} has a sibling but no snapshot"
                snapshot = msgspec.structs.replace(snapshot, anchor=b"", frames=b"")
                blocks = ChunkBlocks((), ())
        return NewSession(name, session.request, blocks, snapshot, session.prompts.take_all())

    def _close(self, session_id: str) -> None:
        """Close a session on the worker; nothing is sent if it was not opened there yet."""
        unseen = [new for new in self.opening if new.session_id == session_id]
        if unseen:
            self.opening.remove(unseen[0])
        else:
            self.closing.append(session_id)
            self.timetable.touch(self.worker_id)
