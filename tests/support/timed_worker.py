"""A worker in virtual time, for an `EngineCore` whose clock is the worker's."""

from helios_serve.benchmarks.simulator.costs import CostModel
from helios_serve.benchmarks.simulator.executor import SimulatedExecutor
from helios_serve.benchmarks.simulator.virtual_time import SteppedClock
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.messages import SchedulerOutput, WorkerCommand
from helios_serve.options.engine import EngineConfig
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import WorkerConfig
from tests.support.scheduling import CONFIG
from tests.support.simulated import seconds_of

ENCODE, STEP, DECODE = 0.5, 0.25, 4.0
"""Seconds of an encode task, of a step of one session and of a decode task."""
ENOUGH_TIME = 1e6


class TimedWorker(SimulatedExecutor):
    """An executor of one worker, whose stages do not slow each other down.

    A decode task takes `decode` seconds. `waits` has the seconds for which each plan
    waited behind the one before.
    """

    def __init__(self, decode: float = DECODE) -> None:
        costs = seconds_of(encode=ENCODE, step=STEP, decode=decode)
        super().__init__(CostModel(costs, CONFIG), SteppedClock())
        self.waits: list[float] = []

    @property
    def now(self) -> float:
        return self.clock.now()

    def submit(self, worker_id: str, command: WorkerCommand) -> None:
        if isinstance(command, SchedulerOutput):
            self.waits.append(self.workers[worker_id].backlog("denoise", self.now))
        super().submit(worker_id, command)


def timed_engine(worker: TimedWorker, scheduling: SchedulingConfig | None = None) -> EngineCore:
    """An engine on the worker, which has all roles and no deadline."""
    roles = WorkerConfig(roles=("encode", "denoise", "decode"))
    config = EngineConfig(
        workers=(roles,),
        step_deadline=ENOUGH_TIME,
        start_deadline=ENOUGH_TIME,
        scheduling=scheduling or SchedulingConfig(),
    )
    return EngineCore(worker, CONFIG, config, clock=worker.clock.now)
