"""A worker in virtual time, for an `EngineCore` whose clock is the worker's."""

import itertools

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.messages import (
    ChunkDecoded,
    ChunkResult,
    DecodeTask,
    EncodeTask,
    InputsEncoded,
    RunnerOutput,
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
from tests.support.scheduling import CONFIG, SESSION_BLOCKS, Past, read

ENCODE, STEP, DECODE = 0.5, 0.25, 4.0
"""Seconds of an encode task, of a step of one session and of a decode task."""
LATENTS = TensorData(b"", (), "float32")
ENOUGH_TIME = 1e6


class TimedWorker:
    """An executor of one worker, which does one command of each kind at a time.

    A decode task takes `decode` seconds. `waits` has the seconds for which each plan waited for the
    previous one.
    """

    def __init__(self, decode: float = DECODE) -> None:
        self.now = 0.0
        self.decode = decode
        self.core: EngineCore | None = None
        self.free_at: dict[type[WorkerCommand], float] = {}
        self.ends: list[tuple[float, int, WorkerEvent]] = [
            (0.0, 0, WorkerReady(SESSION_BLOCKS * 16, 10_000))
        ]
        self.waits: list[float] = []
        self._tie = itertools.count(1)

    def start_worker(self, config: WorkerConfig) -> str:  # noqa: ARG002
        return "worker"

    def submit(self, worker_id: str, command: WorkerCommand) -> None:  # noqa: ARG002
        seconds, event = self._do(command)
        start = max(self.now, self.free_at.get(type(command), 0.0))
        self.free_at[type(command)] = start + seconds
        if isinstance(command, SchedulerOutput):
            self.waits.append(start - self.now)
        self.ends.append((start + seconds, next(self._tie), event))

    def poll(self, timeout: float) -> list[Received]:
        first = min(self.ends, key=lambda item: item[:2], default=None)
        if first is None or first[0] > self.now + timeout:
            self.now += timeout
            return []
        self.ends.remove(first)
        self.now = first[0]
        return [Received("worker", first[2])]

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

    def _do(self, command: WorkerCommand) -> tuple[float, WorkerEvent]:
        match command:
            case EncodeTask():
                prompts = tuple(map(read, command.prompts))
                return ENCODE, InputsEncoded(command.session_id, prompts, seconds=ENCODE)
            case DecodeTask():
                done = ChunkDecoded(command.session_id, command.chunk, seconds=self.decode)
                return self.decode, done
            case SchedulerOutput():
                seconds = STEP * len(command.scheduled_steps)
                return seconds, StepsDone(RunnerOutput(tuple(self._chunks(command))), seconds)

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
