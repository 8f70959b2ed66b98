"""Engine options: workers, scheduling and deadlines."""

import msgspec

from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import WorkerConfig


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of an engine.

    A worker is replaced if it does not start within `start_deadline` seconds, or does not finish a
    plan, an encode task or a decode task within `step_deadline` seconds.
    """

    workers: tuple[WorkerConfig, ...] = (WorkerConfig(),)
    step_deadline: float = 300.0
    start_deadline: float = 1800.0
    scheduling: SchedulingConfig = SchedulingConfig()
