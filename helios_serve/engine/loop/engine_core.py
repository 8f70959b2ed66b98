"""The engine's loop: takes requests, sends plans and tasks to workers, returns chunks of video."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from helios_serve.core.scheduler import Scheduler, SchedulerStats
from helios_serve.core.session import Session, SessionStatus
from helios_serve.core.time_limit import TimeLimit
from helios_serve.core.worker_state import WorkerState
from helios_serve.engine.loop.continuation import check_continuation
from helios_serve.engine.loop.decode_stage import DecodeStage
from helios_serve.engine.loop.encode_stage import EncodeStage
from helios_serve.engine.loop.events import (
    EngineEvent,
    RequestFailed,
    StepTaken,
)
from helios_serve.engine.loop.submission import Submission
from helios_serve.engine.loop.worker_handle import WorkerHandle
from helios_serve.engine.loop.worker_pool import Outage, WorkerPool
from helios_serve.engine.observe.observer import Observer, Observers
from helios_serve.errors import InvalidRequestError
from helios_serve.messages import (
    ChunkDecoded,
    ChunkRendered,
    ChunkResult,
    InputsEncoded,
    LatentsMissing,
    SchedulerOutput,
    Snapshot,
    StepsDone,
    WorkerDied,
    WorkerEvent,
    WorkerReady,
)
from helios_serve.model_config import HeliosConfig
from helios_serve.model_executor.executor.abstract import Executor
from helios_serve.options.engine import EngineConfig
from helios_serve.options.sampling import PromptSwitch
from helios_serve.store.snapshots import ResumePoint
from helios_serve.video_request import VideoRequest

MAX_DEATHS = 3
"""Worker deaths at the same step of a request that ran alone, after which the request fails."""

TOO_LARGE = "the history and prompts of the request are larger than any worker's memory for them"


class EngineStats(NamedTuple):
    """The engine's current counts: the scheduler's, waiting tasks of each kind, and ready workers.

    `failed_workers` counts those that wait to be restarted. `outage` is set while no video can be
    generated.
    """

    scheduler: SchedulerStats
    encoding: int
    decoding: int
    workers: int
    failed_workers: int = 0
    outage: Outage | None = None


class EngineCore:
    """Keeps workers busy with the steps that the scheduler picks, and returns results as events.

    Everything happens in `step`, in the caller's thread. A worker that dies, or does not answer
    within its deadline, is replaced; its sessions resume elsewhere from their last chunk.
    """

    def __init__(
        self,
        executor: Executor,
        model_config: HeliosConfig,
        config: EngineConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        observers: tuple[Observer, ...] = (),
    ) -> None:
        self.executor = executor
        self.model_config = model_config
        self.config = config or EngineConfig()
        self.clock = clock
        self.scheduler = Scheduler(self.config.scheduling, clock)
        self.observers = Observers(observers, self.scheduler)
        self.worker_pool = WorkerPool(executor, self.scheduler, self.config, clock)
        self.time_limit = TimeLimit(model_config, self.config.step_deadline)
        self.encode_stage = EncodeStage(self.scheduler)
        self.decode_stage = DecodeStage(self.scheduler)
        self._pending_events: list[EngineEvent] = []
        """Events that arose outside of `step`. The next `step` returns them."""

    @property
    def has_unfinished(self) -> bool:
        return bool(self.decode_stage.assemblers)

    def add_request(
        self,
        request: VideoRequest,
        resume_point: ResumePoint | None = None,
        *,
        siblings: tuple[str, ...] = (),
    ) -> Session:
        """Check and `add` a request. With `resume_point`, the video continues from there."""
        params = request.resolve(self.model_config)
        return self.add(Submission(request, params, resume_point, siblings))

    def add(self, submission: Submission) -> Session:
        """Admit and start a request. Raises the errors of `reserve`."""
        session = self.reserve(submission)
        self.start(submission)
        return session

    def reserve(self, submission: Submission) -> Session:
        """Admit a request without starting it. It counts against all limits from now on.

        `start` starts it, `abort` releases it. Raises InvalidRequestError if it can never be
        served, and CapacityError if there is no room now.
        """
        if self._is_in_use(submission.request_id):
            raise InvalidRequestError(
                f"got request id {submission.request_id!r}, which is in use", param="request_id"
            )
        session = Session(
            submission.request,
            submission.params,
            self.model_config,
            arrival=self.clock(),
            snapshot=submission.snapshot,
            siblings=submission.siblings,
        )
        check_continuation(session)
        self.time_limit.check(session, self.worker_pool.speeds)
        self.scheduler.add_session(session, was_accepted=submission.was_accepted)
        return session

    def is_ending(self, request_id: str) -> bool:
        """Return whether only plans or tasks in flight of an ended request use the id."""
        session = self.scheduler.sessions.get(request_id)
        is_live = session is not None and not session.status.is_finished
        return not is_live and request_id not in self.decode_stage.assemblers

    def start(self, submission: Submission) -> None:
        """Start a reserved request. Its inputs are encoded first."""
        session = self.scheduler.sessions[submission.request_id]
        self.decode_stage.open(
            session, submission.first_chunk, was_accepted=submission.was_accepted
        )
        start = submission.resume_point
        if start is not None and start.tail is not None:
            self.decode_stage.receive(
                ChunkResult(
                    submission.request_id, submission.first_chunk, start.tail, start.snapshot
                )
            )
        seed_from = session.request if session.needs_seed else None
        self._pending_events += self.encode_stage.request(
            session, session.prompts.missing, seed_from
        )

    def fork_point(self, parent_id: str) -> Snapshot:
        """Return the snapshot after the last finished chunk of a running video.

        Raises InvalidRequestError for a video without a finished chunk.
        """
        parent = self.scheduler.sessions.get(parent_id)
        if parent is None or parent.snapshot is None or parent.snapshot.chunk == 0:
            raise InvalidRequestError(
                f"got {parent_id!r} to fork, expected a running video with a finished chunk",
                param="video",
            )
        return parent.snapshot

    def switch_prompt(
        self, request_id: str, prompt: str, transition_chunks: int | None = None
    ) -> None:
        """Switch a video to another prompt at its next chunk edge, which PromptSwitched reports.

        Raises InvalidRequestError if the video is unknown or has no chunk left.
        """
        session = self.scheduler.sessions.get(request_id)
        if session is None or session.status.is_finished or session.is_planned:
            is_made = request_id in self.decode_stage.assemblers
            why = ", whose last chunk is already denoised" if is_made else ""
            raise InvalidRequestError(
                f"got {request_id!r} to switch the prompt of{why}, expected a running video",
                param="request_id",
            )
        switch = PromptSwitch(0, prompt, transition_chunks)
        session.request.with_switch(switch).check_inputs()
        session.prompts.pending.append(switch)
        missing = () if prompt in session.prompts.encoded else (prompt,)
        self._pending_events += self.encode_stage.request(session, missing)

    def abort(self, request_id: str) -> None:
        """End a reserved or started request. Its blocks are freed when its last steps return."""
        self._drop(request_id, SessionStatus.FINISHED_ABORTED)

    @property
    def is_quiet(self) -> bool:
        """Whether no session is on a worker, and no chunk is decoded or waits for decoding."""
        devices = self.scheduler.devices.values()
        is_decoding = any("decode" in item.tasks or item.on_host for item in devices)
        running = self.scheduler.stats().running
        return not (running or self.decode_stage.queue.num_waiting or is_decoding)

    def stats(self) -> EngineStats:
        return EngineStats(
            self.scheduler.stats(),
            self.encode_stage.queue.num_waiting,
            self.decode_stage.queue.num_waiting,
            sum(worker.is_ready for worker in self.worker_pool.workers.values()),
            len(self.worker_pool.failed),
            self.worker_pool.outage,
        )

    def step(self, timeout: float = 0.1) -> list[EngineEvent]:
        """Send work to the workers, and return events after at most `timeout` seconds.

        Raises HeliosError if no worker is left, or starting, for some role.
        """
        next_plan_at = self._dispatch()
        events = self._receive(max(0.0, min(timeout, next_plan_at - self.clock())))
        self.worker_pool.reap()
        return events

    def _dispatch(self) -> float:
        """Assign tasks to idle workers, and plan steps for those that need a plan now.

        Returns the time at which the next plan is due if no event arrives before.
        """
        now = self.clock()
        decoders = self.worker_pool.ready("decode")
        for worker_id, encode in self.encode_stage.assign(self.worker_pool.ready("encode"), now):
            self.executor.submit(worker_id, encode)
        for worker_id, decode in self.decode_stage.assign(decoders, now):
            self.executor.submit(worker_id, decode)
        self.decode_stage.lead.update(len(decoders))
        for state in self.scheduler.due(now):
            for plan in self._plans(state, now):
                self.executor.submit(state.worker_id, plan)
        return self.scheduler.timetable.next_at

    def _plans(self, state: WorkerState, now: float) -> Iterator[SchedulerOutput]:
        """Yield the plans that the worker needs now."""
        worker = self.worker_pool.workers[state.worker_id]
        while state.next_plan_at(now) <= now and not worker.has_suspect:
            was_idle = not state.plans
            plan = self.scheduler.schedule(state)
            if plan.is_empty:
                return
            if was_idle:
                worker.busy_since = self.clock()
            self.observers.plan(worker.worker_id, plan)
            yield plan

    def _receive(self, timeout: float) -> list[EngineEvent]:
        """Handle the workers' events. Those of removed workers are dropped."""
        events, self._pending_events = self._pending_events, []
        for worker_id, event in self.executor.poll(timeout):
            if (worker := self.worker_pool.workers.get(worker_id)) is not None:
                events += self._handle(worker, event)
        for request_id in self.scheduler.take_unplaceable():
            events += self._fail(request_id, TOO_LARGE)
        return events

    def _handle(self, worker: WorkerHandle, event: WorkerEvent) -> Iterator[EngineEvent]:
        self.observers.event(worker.worker_id, event)
        match event:
            case WorkerReady():
                self.worker_pool.mark_ready(worker, event)
                speeds = self.worker_pool.speeds
                for name, message in self.time_limit.too_slow(self.scheduler.waiting, speeds):
                    yield from self._fail(name, message)
            case StepsDone():
                yield from self._on_steps(worker, event)
            case InputsEncoded():
                yield from self._on_encoded(worker, event)
            case LatentsMissing():
                self.executor.submit(worker.worker_id, self.decode_stage.with_latents(worker))
            case ChunkRendered():
                self.decode_stage.hand_over(worker, self.clock())
            case ChunkDecoded():
                yield from self._on_decoded(worker, event)
            case WorkerDied():
                yield from self._on_death(worker, event)

    def _on_steps(self, worker: WorkerHandle, event: StepsDone) -> Iterator[EngineEvent]:
        state = worker.scheduled
        assert state is not None, f"{worker.worker_id} does not denoise"
        steps = state.plans[0].output.scheduled_steps
        worker.busy_since = self.clock()
        worker.note("denoise", state.plans[0].cost, event.seconds, self.config.step_deadline)
        self.decode_stage.account(steps, event.seconds)
        for failure in event.output.failures:
            yield from self._fail(failure.session_id, failure.message)
        for step in steps:
            if step.session_id in self.decode_stage.assemblers:
                yield StepTaken(step.session_id, step.cursor)
        for chunk in event.output.chunks:
            self.scheduler.finish_chunk(chunk.session_id, chunk.snapshot)
            self.decode_stage.receive(chunk, worker.worker_id)
        self.scheduler.update_from_output(state, 0.0 if event.output.failures else event.seconds)

    def _on_encoded(self, worker: WorkerHandle, event: InputsEncoded) -> Iterator[EngineEvent]:
        queued = self.encode_stage.finish(worker, self.clock(), event)
        worker.note_task("encode", queued, event.seconds, self.config.step_deadline)
        task = queued.task
        session = self.encode_stage.live_session(event.session_id)
        if session is None:
            return
        if event.error is not None and self.encode_stage.is_required(task, session):
            yield from self._fail(event.session_id, event.error)
            return
        self.decode_stage.account_inputs(event.session_id, event.seconds)
        if event.snapshot is not None:
            self.decode_stage.receive_inputs(event.session_id, event.input_latents)
        yield from self.encode_stage.receive(session, task, event)

    def _on_decoded(self, worker: WorkerHandle, event: ChunkDecoded) -> Iterator[EngineEvent]:
        queued = self.decode_stage.finish(worker, self.clock(), event)
        worker.note_task("decode", queued, event.seconds, self.config.step_deadline)
        if event.session_id not in self.decode_stage.assemblers:
            return
        if event.error is not None:
            yield from self._fail(event.session_id, event.error)
            return
        yield from self.decode_stage.receive_decoded(event)

    def _on_death(self, worker: WorkerHandle, event: WorkerDied) -> Iterator[EngineEvent]:
        """Replace the worker, and let its sessions resume from their last chunk."""
        was_alone = worker.has_single_job
        self.worker_pool.replace_dead(worker, event)
        if (state := worker.scheduled) is not None:
            for session_id in self.scheduler.blame(state, MAX_DEATHS):
                message = f"{MAX_DEATHS} workers died at the same step of the video: {event.reason}"
                yield from self._fail(session_id, message)
            self.scheduler.remove_worker(state)
        for stage in (self.encode_stage, self.decode_stage):
            for request_id in stage.requeue_lost(worker, self.clock(), was_alone=was_alone):
                message = f"too many workers died encoding or decoding the video: {event.reason}"
                yield from self._fail(request_id, message)

    def _fail(self, request_id: str, message: str) -> Iterator[EngineEvent]:
        if self._drop(request_id, SessionStatus.FINISHED_FAILED):
            yield RequestFailed(request_id, message)

    def _drop(self, request_id: str, status: SessionStatus) -> bool:
        """Forget a request. Returns whether it was known."""
        self.scheduler.abort(request_id, status)
        self.encode_stage.queue.forget(request_id)
        return self.decode_stage.close(request_id)

    def _is_in_use(self, request_id: str) -> bool:
        """Return whether the id belongs to a request, or to a task that a worker still runs."""
        owners = (
            self.scheduler.sessions,
            self.decode_stage.assemblers,
            self.encode_stage.queue,
            self.decode_stage.queue,
        )
        return any(request_id in owner for owner in owners) or any(
            task.task.session_id == request_id
            for worker in self.worker_pool.workers.values()
            for task in worker.tasks
        )
