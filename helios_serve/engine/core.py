"""The engine's loop over one worker in this process: sessions in, chunks out."""

import time
from typing import Protocol

from helios_serve.config import SchedulingConfig
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session, SessionStatus
from helios_serve.messages import RunnerOutput, SchedulerOutput
from helios_serve.model_config import HeliosConfig
from helios_serve.sampling_params import VideoRequest

WORKER = "inline"


class Runner(Protocol):
    """What the engine needs of a worker."""

    def execute_model(self, output: SchedulerOutput) -> RunnerOutput:
        """Close finished sessions, open new ones, and take the scheduled steps."""
        ...


class EngineCore:
    """Asks the scheduler for a batch, has it run, and tells the scheduler what came of it."""

    def __init__(
        self,
        runner: Runner,
        config: HeliosConfig,
        num_blocks: int,
        scheduling: SchedulingConfig | None = None,
    ) -> None:
        self.runner = runner
        self.config = config
        self.scheduler = Scheduler(scheduling or SchedulingConfig(), time.monotonic)
        self.scheduler.add_worker(WORKER, num_blocks)

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished

    def add_request(self, request: VideoRequest) -> Session:
        """Queue a request; raises InvalidRequestError or CapacityError if it cannot be served."""
        session = Session(request, self.config, arrival=self.scheduler.clock())
        self.scheduler.add_session(session)
        return session

    def abort(self, request_id: str) -> None:
        """End a request and free what it holds."""
        self.scheduler.abort(request_id)

    def pause(self, request_id: str) -> None:
        """Take no more steps for a request until it is resumed."""
        self.scheduler.pause(request_id)

    def resume(self, request_id: str) -> None:
        self.scheduler.resume(request_id)

    def step(self) -> RunnerOutput:
        """One denoise step of the sessions that the scheduler picks, and what came of it."""
        plan = self.scheduler.schedule(WORKER)
        started = time.perf_counter()
        output = self.runner.execute_model(plan)
        seconds = time.perf_counter() - started
        for failure in output.failures:
            self.scheduler.abort(failure.session_id, SessionStatus.FINISHED_FAILED)
        for chunk in output.chunks:
            self.scheduler.finish_chunk(chunk.session_id, chunk.snapshot)
        if plan.scheduled_steps:
            self.scheduler.update_from_output(WORKER, seconds)
        if not self.has_unfinished:
            self.runner.execute_model(self.scheduler.schedule(WORKER))
        return output
