"""The engine's loop: requests in, plans to workers, chunks out, and lost workers replaced."""

import time
from collections import deque
from collections.abc import Callable, Iterator

from helios_serve.config import EngineConfig
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session, SessionStatus
from helios_serve.engine.delivery import Delivery
from helios_serve.engine.events import (
    EngineEvent,
    RequestFailed,
    RequestFinished,
    StepTaken,
)
from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.logger import logger
from helios_serve.messages import (
    ChunkDecoded,
    SchedulerOutput,
    StepsDone,
    WorkerDied,
    WorkerReady,
)
from helios_serve.model_config import HeliosConfig
from helios_serve.model_executor.executor.abstract import Executor, Received
from helios_serve.sampling_params import VideoRequest

QUEUE_DEPTH = 2
"""Plans that a worker has at a time, so that it never waits for the next."""
MAX_DEATHS = 3
"""Workers that may die at the same step of a lone request before it is taken to be the cause."""
MAX_DECODE_DEATHS = 6
"""Workers that may die with a chunk waiting to be decoded before its request is given up."""
MAX_FAILED_STARTS = 3
"""Starts in a row that may fail before no more are tried."""


class WorkerWatch:
    """The engine's view of a worker: whether it is ready, its plans, and since when it is at it."""

    def __init__(self, now: float) -> None:
        self.is_ready = False
        self.plans: deque[SchedulerOutput] = deque()
        self.busy_since = now
        self.decoding = 0
        self.decoding_since = now

    def start_decoding(self, now: float) -> None:
        """The worker has one chunk more to decode."""
        if not self.decoding:
            self.decoding_since = now
        self.decoding += 1

    def end_decoding(self, now: float) -> None:
        self.decoding -= 1
        self.decoding_since = now

    def is_overdue(self, now: float, config: EngineConfig) -> bool:
        """Whether it has not answered for longer than it may."""
        if not self.is_ready:
            return now - self.busy_since > config.start_deadline
        steps_late = self.plans and now - self.busy_since > config.step_deadline
        return bool(
            steps_late or (self.decoding and now - self.decoding_since > config.step_deadline)
        )


class EngineCore:
    """Keeps `config.num_workers` workers busy with what the scheduler picks.

    Everything happens in `step`, in the caller's thread. A worker that dies, or that does not
    answer within its deadline, is replaced; its sessions go on elsewhere from their last chunk.
    """

    def __init__(
        self,
        executor: Executor,
        model_config: HeliosConfig,
        config: EngineConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.executor = executor
        self.model_config = model_config
        self.config = config or EngineConfig()
        self.clock = clock
        self.scheduler = Scheduler(self.config.scheduling, clock)
        self.workers: dict[str, WorkerWatch] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._has_undecoded = False
        """Whether a lost worker may have left chunks that nobody decodes."""
        self._failed_starts = 0
        self._last_death = "none was asked for"
        for _ in range(self.config.num_workers):
            self._start_worker()

    @property
    def has_unfinished(self) -> bool:
        return bool(self._deliveries)

    def add_request(self, request: VideoRequest) -> Session:
        """Queue a request; raises InvalidRequestError or CapacityError if it cannot be served."""
        if request.request_id in self._deliveries:
            raise InvalidRequestError(
                f"got request id {request.request_id!r}, which is in use", param="request_id"
            )
        session = Session(request, self.model_config, arrival=self.clock())
        self.scheduler.add_session(session)
        self._deliveries[request.request_id] = Delivery(
            request.request_id, session.params.num_chunks
        )
        return session

    def abort(self, request_id: str) -> None:
        """End a request at once; what it holds is freed when its last steps have returned."""
        self.scheduler.abort(request_id)
        self._deliveries.pop(request_id, None)

    def pause(self, request_id: str) -> None:
        """Take no more steps for a request until it is resumed."""
        self.scheduler.pause(request_id)

    def resume(self, request_id: str) -> None:
        self.scheduler.resume(request_id)

    def step(self, timeout: float = 0.1) -> list[EngineEvent]:
        """Give plans out, and tell what came back; waits for it up to `timeout` seconds.

        Raises HeliosError if no worker can be started.
        """
        self._fill_queues()
        events = [
            event
            for received in self.executor.poll(timeout)
            if received.worker_id in self.workers
            for event in self._handle(received)
        ]
        events += self._fail_unplaceable()
        self._kill_overdue()
        if not self.workers:
            raise HeliosError(f"no worker can be started: {self._last_death}")
        return events

    def _fill_queues(self) -> None:
        for worker_id, watch in self.workers.items():
            while watch.is_ready and len(watch.plans) < QUEUE_DEPTH:
                plan = self._next_plan(worker_id)
                if plan == SchedulerOutput():
                    break
                if not watch.plans:
                    watch.busy_since = self.clock()
                watch.plans.append(plan)
                for _ in plan.decode:
                    watch.start_decoding(self.clock())
                self.executor.submit(worker_id, plan)

    def _next_plan(self, worker_id: str) -> SchedulerOutput:
        plan = self.scheduler.schedule(worker_id)
        if not self._has_undecoded:
            return plan
        self._has_undecoded = False
        decode = tuple(
            task
            for delivery in self._deliveries.values()
            for task in delivery.take_undecoded(worker_id)
        )
        return SchedulerOutput(plan.new_sessions, plan.scheduled_steps, plan.finished, decode)

    def _handle(self, received: Received) -> Iterator[EngineEvent]:
        worker_id, event = received
        match event:
            case WorkerReady():
                self._failed_starts = 0
                self.workers[worker_id].is_ready = True
                self.scheduler.add_worker(worker_id, event.num_blocks)
            case StepsDone():
                yield from self._on_steps(worker_id, event)
            case ChunkDecoded():
                self.workers[worker_id].end_decoding(self.clock())
                yield from self._on_decoded(event)
            case WorkerDied():
                yield from self._on_death(worker_id, event)

    def _on_steps(self, worker_id: str, event: StepsDone) -> Iterator[EngineEvent]:
        watch = self.workers[worker_id]
        plan = watch.plans.popleft()
        watch.busy_since = self.clock()
        for failure in event.output.failures:
            yield from self._fail(failure.session_id, failure.message)
        for step in plan.scheduled_steps:
            if step.session_id in self._deliveries:
                yield StepTaken(step.session_id, step.cursor)
        for chunk in event.output.chunks:
            watch.start_decoding(self.clock())
            self.scheduler.finish_chunk(chunk.session_id, chunk.snapshot)
            if chunk.session_id in self._deliveries:
                self._deliveries[chunk.session_id].receive(chunk, worker_id)
        if plan.scheduled_steps:
            seconds = 0.0 if event.output.failures else event.seconds
            self.scheduler.update_from_output(worker_id, seconds)

    def _on_decoded(self, event: ChunkDecoded) -> Iterator[EngineEvent]:
        delivery = self._deliveries.get(event.session_id)
        if delivery is None:
            return
        if event.frames is None:
            yield from self._fail(event.session_id, event.error or "decoding failed")
            return
        yield from delivery.receive_frames(event.chunk, event.frames)
        if delivery.is_complete:
            del self._deliveries[event.session_id]
            yield RequestFinished(event.session_id)

    def _on_death(self, worker_id: str, event: WorkerDied) -> Iterator[EngineEvent]:
        """Replace the worker, and let its sessions go on from their last chunk."""
        logger.error("worker %s died: %s", worker_id, event.reason)
        watch = self.workers.pop(worker_id)
        self._last_death = event.reason
        if watch.is_ready:
            plan = watch.plans[0] if watch.plans else SchedulerOutput()
            for session_id in self.scheduler.blame(plan, MAX_DEATHS):
                message = f"{MAX_DEATHS} workers died at the same point of it: {event.reason}"
                yield from self._fail(session_id, message)
            self.scheduler.remove_worker(worker_id)
            self._has_undecoded = True
            for delivery in list(self._deliveries.values()):
                if delivery.lose_decoder(worker_id) >= MAX_DECODE_DEATHS:
                    message = f"{MAX_DECODE_DEATHS} workers died decoding it: {event.reason}"
                    yield from self._fail(delivery.request_id, message)
        else:
            self._failed_starts += 1
        if not event.is_final and self._failed_starts < MAX_FAILED_STARTS:
            self._start_worker()

    def _fail_unplaceable(self) -> list[EngineEvent]:
        """Requests accepted before the workers' sizes were known, and too large for them."""
        names, self.scheduler.unplaceable = self.scheduler.unplaceable, []
        message = "its history is larger than any worker's pool"
        return [event for name in names for event in self._fail(name, message)]

    def _fail(self, request_id: str, message: str) -> Iterator[EngineEvent]:
        self.scheduler.abort(request_id, SessionStatus.FINISHED_FAILED)
        if self._deliveries.pop(request_id, None) is not None:
            yield RequestFailed(request_id, message)

    def _start_worker(self) -> None:
        self.workers[self.executor.start_worker()] = WorkerWatch(self.clock())

    def _kill_overdue(self) -> None:
        """A worker that does not answer in time is as good as dead."""
        now = self.clock()
        for worker_id, watch in self.workers.items():
            if watch.is_overdue(now, self.config):
                logger.error("worker %s did not answer within its deadline", worker_id)
                watch.busy_since = watch.decoding_since = now
                self.executor.kill_worker(worker_id)
