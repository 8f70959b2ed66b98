"""Engine options: workers, scheduling and deadlines."""

import msgspec

from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import WorkerConfig


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of an engine.

    A worker is replaced if it does not start within `start_deadline` seconds, or does not finish a
    plan, an encode task or a decode task within `step_deadline` seconds. It is given up after
    `max_failed_starts` failed starts in a row. With None, it is restarted without limit, with
    growing delays, once any worker has been ready.
    """

    workers: tuple[WorkerConfig, ...] = (WorkerConfig(),)
    step_deadline: float = 300.0
    start_deadline: float = 1800.0
    max_failed_starts: int | None = 3
    scheduling: SchedulingConfig = SchedulingConfig()
