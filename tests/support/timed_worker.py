"""A worker in virtual time, for an `EngineCore` whose clock is the worker's."""

from collections import deque
from typing import NamedTuple

import msgspec

from helios_serve.core.device import Stage
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.messages import (
    ChunkDecoded,
    ChunkResult,
    DecodeTask,
    EncodeTask,
    InputsEncoded,
    RunnerOutput,
    ScheduledStep,
    SchedulerOutput,
    StepsDone,
    TensorData,
    WorkerCommand,
    WorkerEvent,
    WorkerReady,
)
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.options.engine import EngineConfig
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import WorkerConfig
from tests.support.scheduling import CONFIG, SESSION_BLOCKS, Jobs, Past, read

ENCODE, STEP, DECODE = 0.5, 0.25, 4.0
"""Seconds of an encode task, of an average step of one session and of a decode task."""
LATENTS = TensorData(b"", (), "float32")
ENOUGH_TIME = 1e6


class Command(NamedTuple):
    """A command, the seconds of the device that it takes, when it was sent, and its result."""

    stage: Stage
    seconds: float
    at: float
    event: InputsEncoded | ChunkDecoded | StepsDone


class TimedWorker:
    """An executor of one worker, which does one command of each kind at a time.

    Commands of several kinds share the device equally. With the device to itself, a decode task
    takes `decode` seconds, and a plan `fixed` seconds and the time of its steps: `STEP` for the
    average one, in proportion to their costs. Each result arrives `lag` seconds late. `waits` has
    the seconds for which each plan waited for the one before.
    """

    def __init__(self, decode: float = DECODE, *, fixed: float = 0.0, lag: float = 0.0) -> None:
        self.now = 0.0
        self.decode = decode
        self.fixed = fixed
        self.lag = lag
        self.core: EngineCore | None = None
        self.jobs = Jobs()
        self.waiting: dict[Stage, deque[Command]] = {
            stage: deque() for stage in ("encode", "denoise", "decode")
        }
        """Commands of each kind, of which the first one runs."""
        self.ready: list[WorkerEvent] = [WorkerReady(SESSION_BLOCKS * 16, 10_000)]
        self.waits: list[float] = []

    def start_worker(self, config: WorkerConfig) -> str:  # noqa: ARG002
        return "worker"

    def submit(self, worker_id: str, command: WorkerCommand) -> None:  # noqa: ARG002
        given = self._given(command)
        self.waiting[given.stage].append(given)
        if len(self.waiting[given.stage]) == 1:
            self._begin(given.stage)

    def poll(self, timeout: float) -> list[Received]:
        if self.ready:
            return [Received("worker", self.ready.pop())]
        if not self.jobs.left or self.jobs.next_end > max(0.0, timeout):
            self._pass_time(timeout)
            return []
        stage = self.jobs.first
        self._pass_time(max(0.0, self.jobs.next_end))
        del self.jobs.left[stage]
        done = self.waiting[stage].popleft()
        seconds = self.now - self.jobs.begun[stage]
        self._pass_time(self.lag)
        if self.waiting[stage]:
            self._begin(stage)
        return [Received("worker", msgspec.structs.replace(done.event, seconds=seconds))]

    def wake(self) -> None:
        raise AssertionError("virtual time does not wait")

    def where(self, worker_id: str) -> str:
        return worker_id

    def kill_worker(self, worker_id: str) -> None:
        raise AssertionError(f"{worker_id} must not be killed")

    def stop_worker(self, worker_id: str) -> None:
        raise AssertionError(f"{worker_id} must not be stopped")

    def shutdown(self) -> None:
        pass

    def _pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.jobs.left:
            self.jobs.advance(seconds)

    def _begin(self, stage: Stage) -> None:
        command = self.waiting[stage][0]
        self.jobs.begin(stage, command.seconds, self.now)
        if stage == "denoise":
            self.waits.append(self.now - command.at)

    def _given(self, command: WorkerCommand) -> Command:
        match command:
            case EncodeTask():
                prompts = tuple(map(read, command.prompts))
                return Command(
                    "encode", ENCODE, self.now, InputsEncoded(command.session_id, prompts)
                )
            case DecodeTask():
                done = ChunkDecoded(command.session_id, command.chunk)
                return Command("decode", self.decode, self.now, done)
            case SchedulerOutput():
                steps = list(map(self._seconds, command.scheduled_steps))
                seconds = sum(steps) + self.fixed * bool(steps)
                event = StepsDone(RunnerOutput(tuple(self._chunks(command))), 0.0)
                return Command("denoise", seconds, self.now, event)

    def _seconds(self, step: ScheduledStep) -> float:
        assert self.core is not None
        cost = self.core.scheduler.sessions[step.session_id].cost
        return STEP * cost.steps[step.cursor.stage] * cost.chunk_steps / cost.chunk

    def _chunks(self, plan: SchedulerOutput) -> list[ChunkResult]:
        assert self.core is not None
        made = []
        for step in plan.scheduled_steps:
            session = self.core.scheduler.sessions[step.session_id]
            chunk, counts = step.cursor.chunk, session.params.stage_steps(step.cursor.chunk)
            if step.cursor[1:] == (len(counts) - 1, counts[-1] - 1):
                snapshot = Past.of(session.snapshot).then(step.session_id, chunk)
                snap = snapshot.snapshot(session, chunk + 1)
                made.append(ChunkResult(step.session_id, chunk, LATENTS, snap))
        return made


def timed_engine(worker: TimedWorker, scheduling: SchedulingConfig | None = None) -> EngineCore:
    """Return an engine with the worker, which has all roles and no deadline."""
    roles = WorkerConfig(roles=("encode", "denoise", "decode"))
    config = EngineConfig(
        workers=(roles,),
        step_deadline=ENOUGH_TIME,
        start_deadline=ENOUGH_TIME,
        scheduling=scheduling or SchedulingConfig(),
    )
    worker.core = EngineCore(worker, CONFIG, config, clock=lambda: worker.now)
    return worker.core
