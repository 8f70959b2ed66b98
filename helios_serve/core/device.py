"""What the device of one worker is busy with, and how fast stages are on it."""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from helios_serve.core.queued_task import QueuedTask
from helios_serve.core.stage_queue import Claim, StageQueue

Stage = Literal["encode", "denoise", "decode"]

RATE_SECONDS = 5.0
"""Seconds of work in which the weight of what was measured before falls by a factor of e."""
RATE_MEMORY = 0.9
"""Factor by which a measurement reduces that weight at most, so that one long job does not decide
by what rate the next one is charged."""


class HostTask(NamedTuple):
    """A task that the host finishes, and the part of the device that it had before."""

    queued: QueuedTask[Any]
    share: float


class Rate:
    """Work per second as measured; 0 before the first measurement.

    Work and time are summed up, so that a short measurement has little weight. Both sums fade with
    the time that is added. The first measurement counts until there is a second one: it is slow
    where libraries are loaded and kernels are chosen or compiled.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self._done = self._spent = 0.0

    def measure(self, work: float, seconds: float) -> None:
        """Add `work` that took `seconds`; nothing if that was not measured."""
        if work and seconds > 0:
            is_first, fade = not self.value, max(RATE_MEMORY, math.exp(-seconds / RATE_SECONDS))
            done, spent = fade * self._done + work, fade * self._spent + seconds
            self.value = done / spent
            if not is_first:
                self._done, self._spent = done, spent

    def seconds(self, work: float) -> float:
        """Seconds that `work` takes; 0 before the first measurement."""
        return work / self.value if self.value else 0.0


class Device:
    """The device of one worker, which its stages share.

    Stages that run at the same time slow each other down. So each is taken to have an equal part of
    the device while they do, and rates are measured in seconds of the whole device: what several
    stages need on it adds up. `steps` is the scheduler's account of the denoise steps on it, None
    for a worker that does not denoise. `tasks` run on it, one for each stage at most. `on_host` are
    those that it is done with, and that the worker's host finishes, the oldest first.
    """

    def __init__(self, worker_id: str, roles: Iterable[Stage]) -> None:
        self.worker_id = worker_id
        self.roles = frozenset(roles)
        self.is_draining = False
        self.step_queue: StageQueue | None = None
        self.step_rate = Rate()
        self.realtime_load = 0.0
        self.tasks: dict[Stage, QueuedTask[Any]] = {}
        self.on_host: deque[HostTask] = deque()
        self._busy: dict[Stage, float] = {}
        """Seconds of the device that each running stage has had since it began."""
        self._since: dict[Stage, float] = {}
        self._now = 0.0

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
        self._advance(now)
        self._busy[stage], self._since[stage] = 0.0, now

    def end(self, stage: Stage, now: float) -> float:
        """The stage has ended; returns the part of the device that it had, at most 1."""
        self._advance(now)
        busy, whole = self._busy.pop(stage), now - self._since.pop(stage)
        return busy / whole if whole > 0 else 1.0

    def busy(self, stage: Stage, now: float) -> float:
        """Seconds of the whole device that a running stage has had since it began."""
        self._advance(now)
        return self._busy[stage]

    def realtime_share(self, more: float = 0.0) -> float:
        """The part of the device that steps of priority sessions take, with `more` FLOP/s."""
        return self.step_rate.seconds(self.realtime_load + more)

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
