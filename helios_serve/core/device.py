"""What the device of one worker is busy with, and how fast stages are on it."""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from helios_serve.core.cost import NO_STEPS, StepLoad
from helios_serve.core.queued_task import QueuedTask
from helios_serve.core.rate import PlanTime, Rate, RecentWork
from helios_serve.core.stage_queue import Claim, StageQueue

Stage = Literal["encode", "denoise", "decode"]

LONGEST_GAP = 0.25
"""Seconds without any job that are taken to be due to the engine, not to a lack of requests."""


class HostTask(NamedTuple):
    """A task that the host finishes, and the part of the device that it had before."""

    queued: QueuedTask[Any]
    share: float


class Device:
    """The device of one worker, which its stages share.

    Stages that run at the same time slow each other down. So each is taken to have an equal part of
    the device while they do, and rates are measured in seconds of the whole device: what several
    stages need on it adds up. `steps` is the scheduler's account of the denoise steps on it, None
    for a worker that does not denoise. `tasks` run on it, one for each stage at most. `on_host` are
    those that it is done with, and that the worker's host finishes, the oldest first. With
    `keeps_sessions` it decodes the chunks of a session best one after the other.
    """

    def __init__(
        self, worker_id: str, roles: Iterable[Stage], *, keeps_sessions: bool = False
    ) -> None:
        self.worker_id = worker_id
        self.roles = frozenset(roles)
        self.keeps_sessions = keeps_sessions
        self.is_draining = False
        self.step_queue: StageQueue | None = None
        self.step_rate = Rate()
        self.plan_time = PlanTime()
        self.recent = RecentWork()
        self.tasks: dict[Stage, QueuedTask[Any]] = {}
        self.on_host: deque[HostTask] = deque()
        self._busy: dict[Stage, float] = {}
        """Seconds of the device that each running stage has had since it began."""
        self._since: dict[Stage, float] = {}
        self._now = -math.inf
        self._gap = 0.0
        """Seconds without any job between those since the last one that was measured."""

    @property
    def all_tasks(self) -> list[QueuedTask[Any]]:
        """Tasks that the worker has, on the device or on its host."""
        return [*(task.queued for task in self.on_host), *self.tasks.values()]

    @property
    def step_claim(self) -> Claim:
        """The claim of the steps here, to which new tasks give way."""
        return Claim(False, False) if self.step_queue is None else self.step_queue.claim

    def begin(self, stage: Stage, now: float) -> None:
        """The stage runs from `now` on, in seconds of any clock."""
        if not self._busy and now - self._now < LONGEST_GAP:
            self._gap += now - self._now
        self._advance(now)
        self._busy[stage], self._since[stage] = 0.0, now

    def end(self, stage: Stage, now: float, work: float = 0.0) -> float:
        """The stage has ended; returns the part of the device that it had, at most 1.

        `work` is the cost of its job, 0 if that was not done.
        """
        self._advance(now)
        busy, whole = self._busy.pop(stage), now - self._since.pop(stage)
        if work:
            self.recent.add(stage, work, busy + self._gap)
            self._gap = 0.0
        return busy / whole if whole > 0 else 1.0

    def busy(self, stage: Stage, now: float) -> float:
        """Seconds of the whole device that a running stage has had since it began."""
        self._advance(now)
        return self._busy[stage]

    def realtime_share(self, more: StepLoad = NO_STEPS) -> float:
        """The part of the device that steps of priority sessions take, with `more` of them."""
        load = more if self.step_queue is None else more.plus(self.step_queue.realtime_load)
        return self.plan_time.seconds(load.flops, load.plans)

    def is_running(self, stage: Stage) -> bool:
        return stage in self._busy

    def check_integrity(self) -> None:
        """Raise AssertionError unless exactly the stages with work are taken to run."""
        assert self._busy.keys() == self._since.keys()
        assert self._busy.keys() - {"denoise"} == self.tasks.keys(), f"{self.worker_id} is idle"
        assert self.tasks.keys() <= self.roles, f"{self.worker_id} has a task without the role"
        assert not self.on_host or "decode" in self.roles, f"{self.worker_id} decodes nothing"

    def _advance(self, now: float) -> None:
        for stage in self._busy:
            self._busy[stage] += (now - self._now) / len(self._busy)
        self._now = now
