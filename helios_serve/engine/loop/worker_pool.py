"""The workers of an engine: started, watched, replaced when they die, drained."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from helios_serve.core.device import Device
from helios_serve.core.queued_task import QueuedTask
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.worker_state import Plan, WorkerState
from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.logger import logger
from helios_serve.messages import DecodeTask, EncodeTask, WorkerDied, WorkerInfo, WorkerReady
from helios_serve.model_executor.executor.abstract import Executor
from helios_serve.options.engine import EngineConfig
from helios_serve.options.workers import ROLES, Role, WorkerConfig

MAX_FAILED_STARTS = 3
"""Failed starts in a row before a worker is not started again, where that is limited."""
RATE_MARGIN = 2.0
"""A step is taken to be too long if it were even at this multiple of the known rate."""
LONG_STEP = 0.01
"""Share of the step deadline from which on a step is long: its time is nearly all computation."""
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds before a worker is started again after its first failed start, and at most. They double
with each failure."""


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as `helios-serve workers list` shows it.

    `state` is starting, ready, draining or failed. A failed worker is started again in `retry_in`
    seconds, under another id; `error` is why its last start failed, of `failed_starts` in a row.
    `info` is empty until it is ready.
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
    """A worker whose start failed, and the time at which another one is started in its place."""

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
    """No worker is ready for some role, and the last start of one failed, `seconds` ago."""

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
        self.step_rate = 0.0
        """FLOP/s at which its steps can be at most; 0 if that is not known."""
        self.scheduled: WorkerState | None = None
        self.info = WorkerInfo()

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
        return list(self.device.tasks.values())

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

    def note_step(self, cost: float, seconds: float, deadline: float) -> None:
        """Learn the rate from a plan of `cost` FLOPs if it took long enough to tell that of longer
        ones."""
        if cost and seconds >= LONG_STEP * deadline:
            self.step_rate = RATE_MARGIN * cost / seconds

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
            failed_starts=self.failed_starts,
            info=self.info,
        )


class WorkerPool:
    """Workers by id. A worker that dies is replaced by one with the same configuration.

    If the replacement fails to start, it is started again after a while, without end unless
    `EngineConfig.max_failed_starts` limits it. Before any worker has ever been ready, the number of
    failures is limited in any case: then the configuration is wrong.
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
        for worker in config.workers:
            self.start(worker)

    def start(self, config: WorkerConfig, *, failed_starts: int = 0) -> str:
        """Start one more worker; returns its id at once."""
        worker_id = self.executor.start_worker(config)
        self.workers[worker_id] = WorkerHandle(
            worker_id, config, self.clock(), failed_starts=failed_starts
        )
        return worker_id

    def mark_ready(self, worker: WorkerHandle, event: WorkerReady) -> None:
        worker.is_ready, worker.failed_starts, worker.info = True, 0, event.info
        self.scheduler.devices[worker.worker_id] = worker.device
        worker.step_rate = RATE_MARGIN * event.flops
        self._has_worked = True
        if worker.has_role("denoise") and not worker.is_draining:
            worker.scheduled = self.scheduler.add_worker(
                worker.worker_id, event.num_blocks, event.text_rows
            )

    def ready(self, role: Role) -> list[WorkerHandle]:
        """Workers that can be given new work of one kind."""
        return [
            worker
            for worker in self.workers.values()
            if worker.is_ready and not worker.is_draining and worker.has_role(role)
        ]

    def scheduled(self) -> Iterator[tuple[WorkerHandle, WorkerState]]:
        """Workers that can be given plans, draining ones too: their sessions have to leave."""
        for worker in self.workers.values():
            if worker.scheduled is not None:
                yield worker, worker.scheduled

    def replace_dead(self, worker: WorkerHandle, death: WorkerDied) -> None:
        """Remove a worker that died and start another one, now or after a while."""
        logger.error("worker %s died: %s", worker.worker_id, death.reason)
        self._last_death = death.reason
        del self.workers[worker.worker_id]
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
        """Give the worker nothing new, and end it when its sessions have left it.

        They leave at their next chunk edges. Raises InvalidRequestError for an unknown worker and
        for the last one with some role.
        """
        if self.failed.pop(worker_id, None) is not None:
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
        if worker.scheduled is not None:
            self.scheduler.drain(worker.scheduled)

    def reap(self) -> None:
        """Remove drained workers, kill late ones, and start failed ones again when it is time.

        Raises HeliosError if no worker is left, or starting, for some role.
        """
        for worker in list(self.workers.values()):
            if worker.is_draining and worker.is_empty:
                self._remove(worker)
            elif worker.is_late(self.clock(), self.config):
                self._kill(worker)
        now = self.clock()
        for failed in [item for item in self.failed.values() if item.retry_at <= now]:
            del self.failed[failed.worker_id]
            self.start(failed.config, failed_starts=failed.failed_starts)
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
    def step_rates(self) -> list[float]:
        """The most FLOP/s of each worker whose rate is known."""
        return [worker.step_rate for worker in self.workers.values() if worker.step_rate]

    def reports(self) -> list[WorkerReport]:
        """Every worker, for people."""
        now = self.clock()
        known = [
            worker.report(self.executor.where(worker_id))
            for worker_id, worker in self.workers.items()
        ]
        return known + [failed.report(now) for failed in self.failed.values()]

    @property
    def outage(self) -> Outage | None:
        """Why no video can be made now, and for how long; None if that is possible, or the workers
        have only begun to start."""
        role = self._missing_role
        if role is None:
            return None
        since = self.clock() if self._out_since is None else self._out_since
        return Outage(f"no worker can {role}: {self._last_death}", self.clock() - since)

    @property
    def _missing_role(self) -> Role | None:
        """A role that no ready worker has, and one whose last start failed."""
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
        """Whether a worker is not started again after `failed` starts in a row, the last of which
        ended with `death`."""
        if death.is_final and not self._retries_forever:
            return True
        limit = self.config.max_failed_starts or MAX_FAILED_STARTS
        return failed >= limit and not self._retries_forever

    def _remove(self, worker: WorkerHandle) -> None:
        if worker.scheduled is not None:
            self.scheduler.remove_worker(worker.scheduled)
        self.scheduler.devices.pop(worker.worker_id, None)
        del self.workers[worker.worker_id]
        self.executor.stop_worker(worker.worker_id)

    def _kill(self, worker: WorkerHandle) -> None:
        """WorkerDied follows; until then the worker has another deadline's time."""
        logger.error("worker %s did not answer within its deadline", worker.worker_id)
        worker.busy_since = self.clock()
        for task in worker.tasks:
            task.assigned_at = self.clock()
        self.executor.kill_worker(worker.worker_id)
