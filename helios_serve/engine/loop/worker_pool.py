"""The workers that an engine keeps: started, watched, replaced when they die, drained."""

from collections import deque
from collections.abc import Callable

import msgspec

from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.logger import logger
from helios_serve.messages import SchedulerOutput, WorkerDied
from helios_serve.model_executor.executor.abstract import Executor
from helios_serve.options.engine import EngineConfig
from helios_serve.options.workers import ROLES, Role, WorkerConfig

MAX_FAILED_STARTS = 3
"""Starts in a row that may fail before a worker is given up."""


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as people see it. `state` is starting, ready or draining."""

    worker_id: str
    where: str
    roles: tuple[Role, ...]
    state: str
    sessions: int
    tasks: int
    used_blocks: int
    total_blocks: int


class WorkerHandle:
    """The engine's view of a worker: what it is for, whether it is ready, its plans, its age."""

    def __init__(self, config: WorkerConfig, now: float, failed_starts: int) -> None:
        self.config = config
        self.failed_starts = failed_starts
        self.is_ready = False
        self.is_draining = False
        self.plans: deque[SchedulerOutput] = deque()
        self.busy_since = now

    @property
    def state(self) -> str:
        if self.is_draining:
            return "draining"
        return "ready" if self.is_ready else "starting"

    def has_role(self, role: Role) -> bool:
        return role in self.config.roles

    def is_late(self, now: float, config: EngineConfig) -> bool:
        """Whether it has not started, or not answered its oldest plan, within its deadline."""
        waited = now - self.busy_since
        if not self.is_ready:
            return waited > config.start_deadline
        return bool(self.plans) and waited > config.step_deadline


class WorkerPool:
    """Workers by id. One that dies is replaced by another with the same configuration."""

    def __init__(
        self, executor: Executor, config: EngineConfig, clock: Callable[[], float]
    ) -> None:
        self.executor = executor
        self.config = config
        self.clock = clock
        self.workers: dict[str, WorkerHandle] = {}
        self._last_death = "none was asked for"
        for worker in config.workers:
            self.start(worker)

    def start(self, config: WorkerConfig, failed_starts: int = 0) -> str:
        worker_id = self.executor.start_worker(config)
        self.workers[worker_id] = WorkerHandle(config, self.clock(), failed_starts)
        return worker_id

    def ready(self, role: Role) -> list[str]:
        """Ids of the workers that can be given work of one kind."""
        return [
            worker_id
            for worker_id, handle in self.workers.items()
            if handle.is_ready and not handle.is_draining and handle.has_role(role)
        ]

    def replace_dead(self, worker_id: str, death: WorkerDied) -> WorkerHandle:
        """Replace a worker that died, unless that is hopeless; returns what was known of it."""
        logger.error("worker %s died: %s", worker_id, death.reason)
        self._last_death = death.reason
        handle = self.workers.pop(worker_id)
        failed = 0 if handle.is_ready else handle.failed_starts + 1
        if not (handle.is_draining or death.is_final or failed >= MAX_FAILED_STARTS):
            self.start(handle.config, failed)
        return handle

    def drain(self, worker_id: str) -> None:
        """Give the worker nothing new; raises InvalidRequestError for one that must stay."""
        if worker_id not in self.workers:
            known = ", ".join(self.workers) or "none"
            raise InvalidRequestError(
                f"got worker {worker_id!r}, expected one of: {known}", param="worker"
            )
        staying = [
            handle
            for name, handle in self.workers.items()
            if name != worker_id and not handle.is_draining
        ]
        for role in self.workers[worker_id].config.roles:
            if not any(handle.has_role(role) for handle in staying):
                raise InvalidRequestError(
                    f"got worker {worker_id!r}, which is the last one to {role}: "
                    "add another one first",
                    param="worker",
                )
        self.workers[worker_id].is_draining = True

    def remove(self, worker_id: str) -> None:
        """Let a worker that has nothing left to do end."""
        del self.workers[worker_id]
        self.executor.stop_worker(worker_id)

    def kill(self, worker_id: str) -> None:
        """End a worker that does not answer; it is as good as dead."""
        logger.error("worker %s did not answer within its deadline", worker_id)
        self.workers[worker_id].busy_since = self.clock()
        self.executor.kill_worker(worker_id)

    def check(self) -> None:
        """Raise HeliosError if nobody is left, nor on the way, for some kind of work."""
        for role in ROLES:
            if not any(handle.has_role(role) for handle in self.workers.values()):
                raise HeliosError(f"no worker can be started to {role}: {self._last_death}")
