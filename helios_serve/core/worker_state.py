"""The scheduler's account of one worker: its blocks, its sessions, its plans and its speed."""

from collections import Counter, deque
from typing import NamedTuple

from helios_serve.config import SchedulingConfig
from helios_serve.core.history_manager import HistoryManager
from helios_serve.core.session import Session, SessionStatus
from helios_serve.core.worker_queue import WorkerQueue
from helios_serve.messages import NewSession, ScheduledStep

RATE_MEMORY = 0.9
"""How much of the old rate a new measurement leaves."""


class Plan(NamedTuple):
    """Steps given to a worker and not yet returned, and their cost in FLOPs."""

    steps: tuple[ScheduledStep, ...]
    cost: float


class WorkerState:
    """`rate` is the measured speed in FLOP/s, 0 before the first measurement."""

    def __init__(self, worker_id: str, num_blocks: int, config: SchedulingConfig) -> None:
        self.worker_id = worker_id
        self.history = HistoryManager(num_blocks)
        self.queue = WorkerQueue(config)
        self.plans: deque[Plan] = deque()
        self.opening: list[NewSession] = []
        self.closing: list[str] = []
        self.rate = 0.0
        self.is_draining = False
        self.reserved_blocks = 0
        self.outstanding_cost = 0.0
        self.realtime_load = 0.0
        """FLOP/s that the priority sessions need to play in real time."""

    @property
    def free_blocks(self) -> int:
        """Blocks that are promised to nobody; the null block is never free."""
        return self.history.pool.num_blocks - 1 - self.reserved_blocks

    def has_room(self, session: Session) -> bool:
        return not self.is_draining and session.peak_blocks <= self.free_blocks

    def keeps_up(self, session: Session, share: float) -> bool:
        """Whether real time still holds for all priority sessions with `session` among them."""
        return not self.rate or self.realtime_load + session.cost_rate <= share * self.rate

    def measure(self, cost: float, seconds: float) -> None:
        if seconds > 0:
            fresh = cost / seconds
            mixed = RATE_MEMORY * self.rate + (1 - RATE_MEMORY) * fresh
            self.rate = mixed if self.rate else fresh

    def add(self, session: Session) -> None:
        """Take the session's load on; its history is opened apart from this."""
        self.reserved_blocks += session.peak_blocks
        self.outstanding_cost += session.remaining_cost
        if session.is_priority:
            self.realtime_load += session.cost_rate

    def remove(self, session: Session) -> None:
        self.reserved_blocks -= session.peak_blocks
        self.outstanding_cost -= session.remaining_cost
        if session.is_priority:
            self.realtime_load -= session.cost_rate

    def take_changes(self) -> tuple[tuple[NewSession, ...], tuple[str, ...]]:
        """Sessions that the worker must open and close before its next step."""
        changes = tuple(self.opening), tuple(self.closing)
        self.opening, self.closing = [], []
        return changes

    def close(self, session_id: str) -> None:
        """Tell the worker to forget a session, or do not tell it of the session at all."""
        unseen = [new for new in self.opening if new.session_id == session_id]
        if unseen:
            self.opening.remove(unseen[0])
        else:
            self.closing.append(session_id)

    def evictable(self, session: Session) -> list[Session]:
        """The fewest sessions whose eviction makes room for `session`; none if that is not enough.

        Paused sessions go first; flex ones go too, but not for another flex session. Room that
        earlier evictions and last steps are about to give counts.
        """
        if self.is_draining:
            return []
        here = self.queue.sessions.values()
        going = [item for item in here if item.is_going]
        missing = session.peak_blocks - self.free_blocks - sum(item.peak_blocks for item in going)
        staying = [item for item in here if not item.is_going]
        paused = [item for item in staying if item.status is SessionStatus.PAUSED]
        flex = [
            item
            for item in staying
            if item.status is SessionStatus.RUNNING and item.request.tier == "flex"
        ]
        victims = []
        for item in paused + (flex if session.request.tier != "flex" else []):
            if missing <= 0:
                break
            victims.append(item)
            missing -= item.peak_blocks
        return victims if missing <= 0 else []

    def check_integrity(self) -> None:
        """Raise AssertionError unless reservations are what the sessions here add up to."""
        self.history.check_integrity()
        sessions = self.queue.sessions.values()
        assert self.reserved_blocks == sum(item.peak_blocks for item in sessions)
        assert self.reserved_blocks < self.history.pool.num_blocks
        planned = Counter(step.session_id for plan in self.plans for step in plan.steps)
        for session in sessions:
            assert session.worker_id == self.worker_id
            assert session.in_flight == planned[session.session_id]
            runs = session.status is SessionStatus.RUNNING and not session.is_planned
            assert (session in self.queue) == runs, f"{session.session_id} is in the wrong line"
        outstanding = sum(session.remaining_cost for session in sessions)
        assert abs(self.outstanding_cost - outstanding) <= 1e-6 * max(1.0, outstanding)
