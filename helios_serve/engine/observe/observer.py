"""Observers of an engine's work, one of which counts metrics."""

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from helios_serve.core.scheduler import Scheduler
from helios_serve.messages import (
    ChunkDecoded,
    ChunkRendered,
    InputsEncoded,
    SchedulerOutput,
    StepsDone,
    WorkerDied,
    WorkerEvent,
)
from helios_serve.metrics import Metrics


class Observer(Protocol):
    """Called in the engine's thread, so its methods must be quick."""

    def plan(self, worker_id: str, plan: SchedulerOutput, scheduler: Scheduler) -> None:
        """A plan was sent to a worker."""

    def steps(self, worker_id: str, event: StepsDone, scheduler: Scheduler) -> None:
        """The worker's oldest plan is done."""

    def task(self, worker_id: str, event: InputsEncoded | ChunkDecoded) -> None:
        """An encode or decode task is done."""

    def rendered(self, worker_id: str, event: ChunkRendered) -> None:
        """The frames of a decode task are made, and are encoded from now on."""

    def death(self, worker_id: str, reason: str) -> None:
        """The worker died, with all its plans."""


class Observers:
    """Calls several observers of one scheduler."""

    def __init__(self, observers: Iterable[Observer], scheduler: Scheduler) -> None:
        self.observers = list(observers)
        self.scheduler = scheduler

    def add(self, observer: Observer) -> None:
        self.observers.append(observer)

    def plan(self, worker_id: str, plan: SchedulerOutput) -> None:
        for observer in self.observers:
            observer.plan(worker_id, plan, self.scheduler)

    def event(self, worker_id: str, event: WorkerEvent) -> None:
        for observer in self.observers:
            match event:
                case StepsDone():
                    observer.steps(worker_id, event, self.scheduler)
                case InputsEncoded() | ChunkDecoded():
                    observer.task(worker_id, event)
                case ChunkRendered():
                    observer.rendered(worker_id, event)
                case WorkerDied():
                    observer.death(worker_id, event.reason)


class StepCounts(NamedTuple):
    """The counters of a finished plan."""

    stage: str
    sessions: int
    tokens: int


class StepMetrics:
    """Counts the steps and tasks of one model's workers."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.metrics = metrics
        self.model = model
        self._plans: defaultdict[str, deque[StepCounts | None]] = defaultdict(deque)
        metrics.begin(model)

    def plan(self, worker_id: str, plan: SchedulerOutput, scheduler: Scheduler) -> None:
        self._plans[worker_id].append(self._batch(plan, scheduler))

    def steps(self, worker_id: str, event: StepsDone, scheduler: Scheduler) -> None:  # noqa: ARG002
        batch = self._plans[worker_id].popleft()
        if batch is None:
            return
        self.metrics.step_seconds.labels(self.model, batch.stage).observe(event.seconds)
        self.metrics.step_sessions.labels(self.model).observe(batch.sessions)
        self.metrics.step_tokens.labels(self.model).observe(batch.tokens)

    def task(self, worker_id: str, event: InputsEncoded | ChunkDecoded) -> None:  # noqa: ARG002
        is_decoded = isinstance(event, ChunkDecoded)
        timed = self.metrics.decode_seconds if is_decoded else self.metrics.encode_seconds
        timed.labels(self.model).observe(event.seconds)

    def rendered(self, worker_id: str, event: ChunkRendered) -> None:
        """Nothing: the time of a task is counted when it is done."""

    def death(self, worker_id: str, reason: str) -> None:  # noqa: ARG002
        self._plans.pop(worker_id, None)
        self.metrics.worker_deaths.labels(self.model).inc()

    def _batch(self, plan: SchedulerOutput, scheduler: Scheduler) -> StepCounts | None:
        """Return the counts of a plan; None for a plan without steps."""
        stages, tokens = set(), 0
        for step in plan.scheduled_steps:
            stages.add(step.cursor.stage)
            tokens += scheduler.sessions[step.session_id].cost.tokens[step.cursor.stage]
        if not stages:
            return None
        stage = str(stages.pop()) if len(stages) == 1 else "mixed"
        return StepCounts(stage, len(plan.scheduled_steps), tokens)
