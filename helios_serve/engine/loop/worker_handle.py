"""One worker of an engine: its device, what it works on, and what it reports."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from helios_serve.core.device import Device, Stage
from helios_serve.core.queued_task import QueuedTask
from helios_serve.core.time_limit import Speeds
from helios_serve.core.worker_state import Plan, WorkerState
from helios_serve.messages import DecodeTask, EncodeTask, WorkerInfo
from helios_serve.options.engine import EngineConfig
from helios_serve.options.workers import Role, WorkerConfig

RATE_MARGIN = 2.0
"""A job is refused only if it would be too long even at this multiple of the measured rate."""
LONG_JOB = 0.01
"""Fraction of the step deadline. Longer jobs measure the rate: they are nearly all computation."""


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as `helios-serve workers list` shows it.

    `state` is starting, ready, draining or failed. A failed worker is restarted in `retry_in`
    seconds, under another id. `failed_starts` counts its failed starts in a row, and `error` is the
    reason of the last one. `info` is empty until it is ready.
    """

    worker_id: str
    where: str
    roles: tuple[Role, ...]
    state: str
    sessions: int
    tasks: int
    used_blocks: int
    total_blocks: int
    failed_starts: int = 0
    retry_in: float | None = None
    error: str | None = None
    info: WorkerInfo = WorkerInfo()


class FailedWorker(NamedTuple):
    """A worker whose start failed, and the time at which its replacement is started."""

    worker_id: str
    config: WorkerConfig
    failed_starts: int
    reason: str
    retry_at: float

    def report(self, now: float) -> WorkerReport:
        return WorkerReport(
            worker_id=self.worker_id,
            where="-",
            roles=self.config.roles,
            state="failed",
            sessions=0,
            tasks=0,
            used_blocks=0,
            total_blocks=0,
            failed_starts=self.failed_starts,
            retry_in=max(0.0, self.retry_at - now),
            error=self.reason,
        )


class WorkerHandle:
    """The engine's only record of a worker: its configuration, phase, tasks and plans.

    `device` has its tasks in flight. `scheduled` is the scheduler's account of it, with its
    sessions and its plans in flight: None until the worker is ready to denoise. `busy_since` is
    when it began to start, or to work on its oldest plan. Times are seconds of the engine's clock.
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
        self.device = Device(worker_id, config.roles, keeps_sessions=config.continuous_decode)
        self.speeds = Speeds()
        """The highest rate of each stage, as far as it is known."""
        self.scheduled: WorkerState | None = None
        self.info = WorkerInfo()

    @property
    def phase(self) -> str:
        if self.is_draining:
            return "draining"
        return "ready" if self.is_ready else "starting"

    @property
    def plans(self) -> Sequence[Plan]:
        """Plans in flight, oldest first."""
        return () if self.scheduled is None else self.scheduled.plans

    @property
    def tasks(self) -> list[QueuedTask[EncodeTask] | QueuedTask[DecodeTask]]:
        """Tasks in flight."""
        return self.device.all_tasks

    @property
    def has_suspect(self) -> bool:
        """Whether it runs a task during which other workers died.

        It gets no plans meanwhile, so that the cause is clear if it dies too.
        """
        device = self.device
        if not (device.tasks or device.on_host):
            return False
        return any(task.is_suspect for task in device.all_tasks)

    @property
    def has_single_job(self) -> bool:
        """Whether its only work is one task, or only plans."""
        return len(self.tasks) + bool(self.plans) == 1

    @property
    def is_empty(self) -> bool:
        """Whether it has no sessions, plans or tasks."""
        return not self.tasks and (self.scheduled is None or self.scheduled.is_empty)

    def has_role(self, role: Role) -> bool:
        return role in self.config.roles

    def note(self, stage: Stage, work: float, seconds: float, deadline: float) -> None:
        """Measure the rate of a stage by a job of `work`, in the units of `Speeds`.

        A short job can only raise the rate: it does not predict that of longer ones, and the first
        jobs are slow where kernels are compiled.
        """
        if stage == "denoise":
            seconds -= self.device.plan_time.fixed
        if not work or seconds <= 0:
            return
        speed = RATE_MARGIN * work / seconds
        if seconds >= LONG_JOB * deadline or 0 < getattr(self.speeds, stage) < speed:
            self.speeds = self.speeds._replace(**{stage: speed})

    def note_task(
        self,
        stage: Literal["encode", "decode"],
        queued: QueuedTask[Any],
        seconds: float,
        deadline: float,
    ) -> None:
        """Measure the rate of a stage by its finished task.

        A task with prompts only does not count: its time does not depend on pixels.
        """
        if not isinstance(queued.task, EncodeTask) or queued.task.seed_from is not None:
            self.note(stage, queued.cost, seconds, deadline)

    def is_late(self, now: float, config: EngineConfig) -> bool:
        """Return whether its start, its oldest plan or one of its tasks has missed its deadline."""
        return now > self.late_from(config)

    def late_from(self, config: EngineConfig) -> float:
        """Return the time of the first deadline: of its start, or of its oldest plan and tasks."""
        if not self.is_ready:
            return self.busy_since + config.start_deadline
        since = [task.assigned_at for task in self.tasks]
        if self.plans:
            since.append(self.busy_since)
        return min(since, default=math.inf) + config.step_deadline

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
            failed_starts=self.failed_starts,
            info=self.info,
        )
