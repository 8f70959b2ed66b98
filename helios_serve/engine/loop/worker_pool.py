"""The workers of an engine: starts, watches, replaces and drains them."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from helios_serve.core.device import Device
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.time_limit import Speeds
from helios_serve.engine.loop.worker_handle import (
    RATE_MARGIN,
    FailedWorker,
    WorkerHandle,
    WorkerReport,
)
from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.logger import logger
from helios_serve.messages import WorkerDied, WorkerReady
from helios_serve.model_executor.executor.abstract import Executor
from helios_serve.options.engine import EngineConfig
from helios_serve.options.workers import ROLES, Role, WorkerConfig

MAX_FAILED_STARTS = 3
"""Failed starts in a row after which a worker is given up, while restarts are limited."""
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds before a worker is restarted after a failed start: at first, and at most. They double."""


class Outage(NamedTuple):
    """Some role has had no ready worker for `seconds`, because starts failed."""

    reason: str
    seconds: float


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
        self._ready: dict[Role, list[Device]] = {}
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

    def ready(self, role: Role) -> Sequence[Device]:
        """Return the devices of the workers that accept new work of `role`."""
        if role not in self._ready:
            self._ready[role] = [
                worker.device
                for worker in self.workers.values()
                if worker.is_ready and not worker.is_draining and worker.has_role(role)
            ]
        return self._ready[role]

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
