"""The workers of an engine: starts, watches, replaces and drains them."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from helios_serve.core.device import Device, Stage
from helios_serve.core.plan_pace import QUEUE_DEPTH
from helios_serve.core.queued_task import QueuedTask
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.time_limit import Speeds
from helios_serve.core.worker_state import Plan, WorkerState
from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.logger import logger
from helios_serve.messages import DecodeTask, EncodeTask, WorkerDied, WorkerInfo, WorkerReady
from helios_serve.model_executor.executor.abstract import Executor
from helios_serve.options.engine import EngineConfig
from helios_serve.options.workers import ROLES, Role, WorkerConfig

MAX_FAILED_STARTS = 3
"""Failed starts in a row after which a worker is given up, while restarts are limited."""
RATE_MARGIN = 2.0
"""A job is refused only if it would be too long even at this multiple of the measured rate."""
LONG_JOB = 0.01
"""Fraction of the step deadline. Longer jobs measure the rate: they are nearly all computation."""
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds before a worker is restarted after a failed start: at first, and at most. They double."""


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


class Outage(NamedTuple):
    """Some role has had no ready worker for `seconds`, because starts failed."""

    reason: str
    seconds: float


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
        self.device = Device(worker_id, config.roles)
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
        return any(task.is_suspect for task in self.tasks)

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


class WorkerPool:
    """The workers by id.

    A worker that dies is replaced by one with the same configuration. If the replacement fails to
    start, it is restarted after a delay, without limit unless `EngineConfig.max_failed_starts` is
    set. Until any worker has been ready, failures are always limited, because the configuration is
    probably wrong.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        config: EngineConfig,
        clock: Callable[[], float],
    ) -> None:
        self.executor = executor
        self.scheduler = scheduler
        self.config = config
        self.clock = clock
        self.workers: dict[str, WorkerHandle] = {}
        self.failed: dict[str, FailedWorker] = {}
        self._last_death = "no worker was configured"
        self._has_worked = False
        self._out_since: float | None = None
        self._ready: dict[Role, list[WorkerHandle]] = {}
        """Answers of `ready`, until a worker comes, goes, or changes its phase."""
        self._is_checked = False
        """Whether `reap` has looked at the roles since then."""
        self._late_from = -math.inf
        """No worker can be late before this time."""
        for worker in config.workers:
            self.start(worker)

    def start(self, config: WorkerConfig, *, failed_starts: int = 0) -> str:
        """Start one more worker, and return its id without waiting for it."""
        worker_id = self.executor.start_worker(config)
        self.workers[worker_id] = WorkerHandle(
            worker_id, config, self.clock(), failed_starts=failed_starts
        )
        self._change()
        return worker_id

    def mark_ready(self, worker: WorkerHandle, event: WorkerReady) -> None:
        worker.is_ready, worker.failed_starts, worker.info = True, 0, event.info
        self._change()
        self.scheduler.devices[worker.worker_id] = worker.device
        most = (event.flops, event.encode_pixels, event.decode_pixels)
        worker.speeds = Speeds(*(RATE_MARGIN * rate for rate in most))
        self._has_worked = True
        if worker.has_role("denoise") and not worker.is_draining:
            worker.scheduled = self.scheduler.add_worker(
                worker.worker_id, event.num_blocks, event.text_rows
            )

    def ready(self, role: Role) -> Sequence[WorkerHandle]:
        """Return the workers that accept new work of `role`."""
        if role not in self._ready:
            self._ready[role] = [
                worker
                for worker in self.workers.values()
                if worker.is_ready and not worker.is_draining and worker.has_role(role)
            ]
        return self._ready[role]

    def scheduled(self) -> Iterator[tuple[WorkerHandle, WorkerState]]:
        """Yield the workers that may need a plan, draining ones as long as they have sessions."""
        for worker in self.workers.values():
            state = worker.scheduled
            if state is not None and may_need_plan(state):
                yield worker, state

    def replace_dead(self, worker: WorkerHandle, death: WorkerDied) -> None:
        """Remove a worker that died, and start its replacement now or after a delay."""
        logger.error("worker %s died: %s", worker.worker_id, death.reason)
        self._last_death = death.reason
        del self.workers[worker.worker_id]
        self._change()
        self.scheduler.devices.pop(worker.worker_id, None)
        failed = 0 if worker.is_ready else worker.failed_starts + 1
        if worker.is_draining or self._gives_up(failed, death):
            return
        if failed == 0 or not self._retries_forever:
            self.start(worker.config, failed_starts=failed)
            return
        delay = min(LAST_RETRY, FIRST_RETRY * 2 ** min(failed - 1, 16))
        logger.warning(
            "start %d of worker %s failed; the next one is in %g s", failed, worker.worker_id, delay
        )
        self.failed[worker.worker_id] = FailedWorker(
            worker.worker_id, worker.config, failed, death.reason, self.clock() + delay
        )

    def drain(self, worker_id: str) -> None:
        """Give the worker no new work, and end it when its sessions have left.

        They leave at their next chunk edges. Raises InvalidRequestError for an unknown worker and
        for the last one with some role.
        """
        if self.failed.pop(worker_id, None) is not None:
            self._change()
            return
        worker = self.workers.get(worker_id)
        if worker is None:
            known = ", ".join((*self.workers, *self.failed)) or "none"
            raise InvalidRequestError(
                f"got worker {worker_id!r}, expected one of: {known}", param="worker"
            )
        others = [other for other in self.workers.values() if other is not worker]
        for role in worker.config.roles:
            if not any(other.has_role(role) and not other.is_draining for other in others):
                raise InvalidRequestError(
                    f"got worker {worker_id!r}, which is the last one to {role}: "
                    "add another one first",
                    param="worker",
                )
        worker.is_draining = worker.device.is_draining = True
        self._change()
        if worker.scheduled is not None:
            self.scheduler.drain(worker.scheduled)

    def reap(self) -> None:
        """Remove drained workers, kill late ones, and restart failed ones that are due.

        Raises HeliosError if no worker is left, or starting, for some role.
        """
        now = self.clock()
        for worker in [item for item in self._draining if item.is_empty]:
            self._remove(worker)
        if now >= self._late_from:
            self._kill_late(now)
        for failed in [item for item in self.failed.values() if item.retry_at <= now]:
            del self.failed[failed.worker_id]
            self.start(failed.config, failed_starts=failed.failed_starts)
        if self._is_checked:
            return
        self._is_checked = True
        if self._missing_role is None:
            self._out_since = None
        elif self._out_since is None:
            self._out_since = now
        self.check()

    def check(self) -> None:
        """Raise HeliosError if no worker is left, or will be started, for some role."""
        for role in ROLES:
            alive = any(worker.has_role(role) for worker in self.workers.values())
            if not alive and not any(role in item.config.roles for item in self.failed.values()):
                raise HeliosError(f"no worker can be started to {role}: {self._last_death}")

    @property
    def speeds(self) -> list[Speeds]:
        """Return the highest rates of each worker."""
        return [worker.speeds for worker in self.workers.values()]

    def reports(self) -> list[WorkerReport]:
        """Return a report on every worker, for people to read."""
        now = self.clock()
        known = [
            worker.report(self.executor.where(worker_id))
            for worker_id, worker in self.workers.items()
        ]
        return known + [failed.report(now) for failed in self.failed.values()]

    @property
    def outage(self) -> Outage | None:
        """Return why no video can be generated now, and for how long.

        None if videos can be generated, or workers are starting for the first time.
        """
        role = self._missing_role
        if role is None:
            return None
        since = self.clock() if self._out_since is None else self._out_since
        return Outage(f"no worker can {role}: {self._last_death}", self.clock() - since)

    @property
    def _missing_role(self) -> Role | None:
        """A role without a ready worker, for which a start failed."""
        for role in ROLES:
            workers = [worker for worker in self.workers.values() if worker.has_role(role)]
            if any(worker.is_ready for worker in workers):
                continue
            failed = any(role in item.config.roles for item in self.failed.values())
            if failed or any(worker.failed_starts for worker in workers):
                return role
        return None

    @property
    def _retries_forever(self) -> bool:
        return self.config.max_failed_starts is None and self._has_worked

    def _gives_up(self, failed: int, death: WorkerDied) -> bool:
        """Return whether to give up a worker after `failed` starts in a row.

        The last of them ended with `death`.
        """
        if death.is_final and not self._retries_forever:
            return True
        limit = self.config.max_failed_starts or MAX_FAILED_STARTS
        return failed >= limit and not self._retries_forever

    def _change(self) -> None:
        """A worker has come, gone, or changed its phase."""
        self._ready.clear()
        self._is_checked = False
        self._draining = [worker for worker in self.workers.values() if worker.is_draining]

    def _kill_late(self, now: float) -> None:
        """Kill late workers, and note when the next one can be late at the earliest.

        What begins from now on has a whole deadline.
        """
        for worker in list(self.workers.values()):
            if worker.is_late(now, self.config):
                self._kill(worker)
        later = (worker.late_from(self.config) for worker in self.workers.values())
        soonest = now + min(self.config.step_deadline, self.config.start_deadline)
        self._late_from = min(soonest, min(later, default=soonest))

    def _remove(self, worker: WorkerHandle) -> None:
        if worker.scheduled is not None:
            self.scheduler.remove_worker(worker.scheduled)
        self.scheduler.devices.pop(worker.worker_id, None)
        del self.workers[worker.worker_id]
        self._change()
        self.executor.stop_worker(worker.worker_id)

    def _kill(self, worker: WorkerHandle) -> None:
        """Kill a late worker. Its WorkerDied is handled later; meanwhile it gets a new deadline."""
        logger.error("worker %s did not answer within its deadline", worker.worker_id)
        worker.busy_since = self.clock()
        for task in worker.tasks:
            task.assigned_at = self.clock()
        self.executor.kill_worker(worker.worker_id)


def may_need_plan(state: WorkerState) -> bool:
    """Whether fewer plans than it may have are in flight, and there is something to plan."""
    if len(state.plans) >= QUEUE_DEPTH:
        return False
    return bool(state.plans or state.opening or state.closing or state.queue.has_work)
