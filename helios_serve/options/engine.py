"""Engine options: its workers, its scheduling and its deadlines."""

import msgspec

from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import WorkerConfig


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which workers an engine keeps, and how long, in seconds, it waits for one of them.

    `step_deadline` is for one batch of steps, or one task beside them, `start_deadline` for loading
    a model.
    """

    workers: tuple[WorkerConfig, ...] = (WorkerConfig(),)
    step_deadline: float = 300.0
    start_deadline: float = 1800.0
    scheduling: SchedulingConfig = SchedulingConfig()
