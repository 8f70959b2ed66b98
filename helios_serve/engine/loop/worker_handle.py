"""What the engine knows of one worker."""

from collections.abc import Sequence

import msgspec

from helios_serve.core.worker_state import Plan, WorkerState
from helios_serve.engine.loop.task_queue import QueuedTask
from helios_serve.messages import DecodeTask, EncodeTask
from helios_serve.options.engine import EngineConfig
from helios_serve.options.workers import Role, WorkerConfig


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as `helios-serve workers list` shows it. `state` is starting, ready or draining."""

    worker_id: str
    where: str
    roles: tuple[Role, ...]
    state: str
    sessions: int
    tasks: int
    used_blocks: int
    total_blocks: int


class WorkerHandle:
    """The engine's only record of a worker: its configuration, phase, tasks and plans.

    `scheduled` is the scheduler's account of it, with its sessions and its plans in flight: None
    until the worker is ready to denoise. `busy_since` is when it began to start, or to work on its
    oldest plan. Times are seconds of the engine's clock.
    """

    def __init__(
        self, worker_id: str, config: WorkerConfig, now: float, *, failed_starts: int = 0
    ) -> None:
        self.worker_id = worker_id
        self.config = config
        self.failed_starts = failed_starts
        self.busy_since = now
        self.is_ready = False
        self.is_draining = False
        self.scheduled: WorkerState | None = None
        self.encoding: QueuedTask[EncodeTask] | None = None
        self.decoding: QueuedTask[DecodeTask] | None = None

    @property
    def phase(self) -> str:
        if self.is_draining:
            return "draining"
        return "ready" if self.is_ready else "starting"

    @property
    def plans(self) -> Sequence[Plan]:
        """Plans in flight, the oldest first."""
        return () if self.scheduled is None else self.scheduled.plans

    @property
    def tasks(self) -> list[QueuedTask[EncodeTask] | QueuedTask[DecodeTask]]:
        """Tasks in flight."""
        return [task for task in (self.encoding, self.decoding) if task is not None]

    @property
    def has_suspect(self) -> bool:
        """Whether it has a task that workers died with: it gets no plans, so that the cause is
        clear if it dies too."""
        return any(task.is_suspect for task in self.tasks)

    @property
    def has_single_job(self) -> bool:
        """Whether one task, or its plans, are all it has to do."""
        return len(self.tasks) + bool(self.plans) == 1

    @property
    def is_empty(self) -> bool:
        """Whether it has no session, no plan and no task."""
        return not self.tasks and (self.scheduled is None or self.scheduled.is_empty)

    def has_role(self, role: Role) -> bool:
        return role in self.config.roles

    def is_late(self, now: float, config: EngineConfig) -> bool:
        """Whether it has not started, or not finished its oldest plan or a task, in time."""
        waited = now - self.busy_since
        if not self.is_ready:
            return waited > config.start_deadline
        if self.plans and waited > config.step_deadline:
            return True
        return any(now - task.assigned_at > config.step_deadline for task in self.tasks)

    def report(self, where: str) -> WorkerReport:
        state = self.scheduled
        return WorkerReport(
            worker_id=self.worker_id,
            where=where,
            roles=self.config.roles,
            state=self.phase,
            sessions=0 if state is None else len(state.queue.sessions),
            tasks=len(self.tasks),
            used_blocks=0 if state is None else state.used_blocks,
            total_blocks=0 if state is None else state.total_blocks,
        )
