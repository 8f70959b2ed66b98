"""The scheduler's account of one worker: its blocks, sessions, plans and speed."""

from collections import Counter, deque
from typing import NamedTuple

import msgspec

from helios_serve.core.fair_queue import WorkerQueue
from helios_serve.core.history_manager import HistoryManager
from helios_serve.core.session import Session, SessionStatus
from helios_serve.messages import ChunkBlocks, NewSession, SchedulerOutput
from helios_serve.options.scheduling import SchedulingConfig

RATE_MEMORY = 0.9
"""Factor by which each measurement scales the sums of all earlier ones."""


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


class WorkerState:
    """The scheduler's account of one worker.

    `plans` are those in flight, the oldest first. `rate` is the measured speed in FLOP/s, 0 before
    the first measurement.
    """

    def __init__(
        self, worker_id: str, num_blocks: int, text_rows: int, config: SchedulingConfig
    ) -> None:
        self.worker_id = worker_id
        self.history = HistoryManager(num_blocks)
        self.text_rows = text_rows
        self.queue = WorkerQueue(config)
        self.plans: deque[Plan] = deque()
        self.opening: list[NewSession] = []
        self.closing: list[str] = []
        self.rate = 0.0
        self._done = self._spent = 0.0
        self.is_draining = False
        self.reserved_blocks = 0
        self.reserved_rows = 0
        self.outstanding_cost = 0.0
        self.realtime_load = 0.0
        """FLOP/s that the priority sessions need to play in real time."""

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
        return not self.is_draining and session.cost.peak_blocks <= self.free_blocks and fits_text

    def could_hold(self, session: Session) -> bool:
        """Whether there would be room for it without any other session."""
        blocks = session.cost.peak_blocks <= self.total_blocks
        return blocks and (not session.is_ready or session.prompts.text_rows <= self.text_rows)

    def keeps_up(self, session: Session, share: float, promised: float = 0.0) -> bool:
        """Whether the worker can run `session` and all its priority sessions in real time.

        `promised` is the FLOP/s of priority sessions that are still to be placed.
        """
        load = self.realtime_load + promised + session.cost.rate
        return not self.is_draining and (not self.rate or load <= share * self.rate)

    def measure(self, cost: float, seconds: float) -> None:
        """Update the rate with FLOPs and the seconds that they took, 0 if not measured.

        Both sums fade, so that a short measurement has little weight.
        """
        if cost and seconds > 0:
            self._done = RATE_MEMORY * self._done + cost
            self._spent = RATE_MEMORY * self._spent + seconds
            self.rate = self._done / self._spent

    def place(self, session: Session) -> None:
        """Run a session here from the chunk edge at which it can resume."""
        self.opening.append(self._open_history(session))
        session.worker_id = self.worker_id
        session.placed_chunk = session.edge_chunk
        session.status = SessionStatus.RUNNING
        self.reserved_blocks += session.cost.peak_blocks
        self.reserve_text(session)
        self.outstanding_cost += session.remaining_cost
        if session.is_priority:
            self.realtime_load += session.cost.rate
        self.queue.join(session)

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
        if session.is_priority:
            self.realtime_load -= session.cost.rate
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
            self.plans.append(Plan(output, cost))
        return output

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
        if self.is_draining:
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
