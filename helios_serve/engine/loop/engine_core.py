"""The engine's loop: requests in, plans and tasks to workers, chunks of video out."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from helios_serve.core.scheduler import Scheduler, SchedulerStats
from helios_serve.core.session import Session, SessionStatus
from helios_serve.engine.loop.continuation import check_continuation, fork_snapshots
from helios_serve.engine.loop.decode_stage import DecodeStage
from helios_serve.engine.loop.encode_stage import EncodeStage
from helios_serve.engine.loop.events import (
    EngineEvent,
    RequestFailed,
    StepTaken,
)
from helios_serve.engine.loop.worker_pool import WorkerPool, WorkerReport
from helios_serve.engine.observe.observer import Observer
from helios_serve.errors import InvalidRequestError
from helios_serve.messages import (
    ChunkDecoded,
    ChunkResult,
    InputsEncoded,
    SchedulerOutput,
    Snapshot,
    StepsDone,
    WorkerDied,
    WorkerEvent,
    WorkerReady,
)
from helios_serve.model_config import HeliosConfig
from helios_serve.model_executor.executor.abstract import Executor, Received
from helios_serve.options.engine import EngineConfig
from helios_serve.options.sampling import PromptSwitch
from helios_serve.options.workers import WorkerConfig
from helios_serve.store.snapshots import ResumePoint
from helios_serve.video_request import VideoRequest

QUEUE_DEPTH = 2
"""Plans that a worker has at a time, so that it never waits for the next."""
MAX_DEATHS = 3
"""Workers that may die at the same step of a lone request before it is taken to be the cause."""


class EngineStats(NamedTuple):
    """Counts of one moment: the scheduler's, and tasks that no worker has taken."""

    scheduler: SchedulerStats
    encoding: int
    decoding: int
    workers: int


class EngineCore:
    """Keeps workers busy with what the scheduler picks, and hands on what they make.

    Everything happens in `step`, in the caller's thread. A worker that dies, or that does not
    answer within its deadline, is replaced; its sessions go on elsewhere from their last chunk.
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
        self.observers = observers
        self.scheduler = Scheduler(self.config.scheduling, clock)
        self.worker_pool = WorkerPool(executor, self.config, clock)
        self.encode_stage = EncodeStage(self.scheduler)
        self.decode_stage = DecodeStage(self.scheduler)
        self._task_queues = (self.encode_stage.queue, self.decode_stage.queue)
        self._pending_events: list[EngineEvent] = []
        """Events from outside of `step`, which the next one returns."""

    @property
    def has_unfinished(self) -> bool:
        return bool(self.decode_stage.assemblers)

    def check_request(self, request: VideoRequest) -> None:
        """Raise what `add_request` would, as far as that can be told without adding it."""
        self.scheduler.check(Session(request, self.model_config, arrival=self.clock()))

    def add_request(
        self,
        request: VideoRequest,
        resume_point: ResumePoint | None = None,
        *,
        siblings: tuple[str, ...] = (),
        was_accepted: bool = False,
    ) -> Session:
        """Queue a request; raises InvalidRequestError or CapacityError if it cannot be served.

        With `resume_point` the video continues at the chunk of its snapshot, exactly as if the
        earlier video had been longer; if it has a tail, that chunk is delivered first. `siblings`
        are ids of requests that continue from the same snapshot. A request that `was_accepted`
        before a restart is not refused for a full queue.
        """
        known = (self.decode_stage.assemblers, *self._task_queues)
        if any(request.request_id in names for names in known):
            raise InvalidRequestError(
                f"got request id {request.request_id!r}, which is in use", param="request_id"
            )
        session = Session(
            request,
            self.model_config,
            arrival=self.clock(),
            snapshot=None if resume_point is None else resume_point.snapshot,
            siblings=siblings,
        )
        check_continuation(session)
        self.scheduler.add_session(session, was_accepted=was_accepted)
        if resume_point is None or resume_point.tail is None:
            self.decode_stage.open(request, session.edge_chunk)
        else:
            first_chunk = session.edge_chunk - 1
            self.decode_stage.open(request, first_chunk)
            self.decode_stage.receive(
                ChunkResult(
                    request.request_id, first_chunk, resume_point.tail, resume_point.snapshot
                )
            )
        seed_from = request if session.needs_seed else None
        self._pending_events += self.encode_stage.request(
            session, session.missing_prompts, seed_from
        )
        return session

    def fork_points(self, parent_id: str, count: int) -> list[Snapshot]:
        """Where `count` children of a running video can go on: the last chunk edge it has reached.

        Each draws from a generator of its own, seeded with the parent's seed and the child's
        number. With the parent and each other as `siblings`, they share blocks where they can.
        Raises InvalidRequestError for a video without a finished chunk.
        """
        parent = self.scheduler.sessions.get(parent_id)
        if parent is None or parent.snapshot is None or parent.snapshot.chunk == 0:
            raise InvalidRequestError(
                f"got {parent_id!r} to fork, expected a running video with a finished chunk",
                param="parent",
            )
        return fork_snapshots(parent.snapshot, parent.request.params.seed, count)

    def fork(self, parent_id: str, requests: Sequence[VideoRequest]) -> list[Session]:
        """Continue a running video in several ways, counting chunks from its beginning.

        Raises what `fork_points` and `add_request` do; then no child is added.
        """
        snapshots = self.fork_points(parent_id, len(requests))
        siblings = (parent_id, *(request.request_id for request in requests))
        children: list[Session] = []
        try:
            for request, snapshot in zip(requests, snapshots, strict=True):
                start = ResumePoint(snapshot)
                children.append(self.add_request(request, start, siblings=siblings))
        except Exception:
            for child in children:
                self.abort(child.session_id)
            raise
        return children

    def switch_prompt(
        self, request_id: str, prompt: str, transition_chunks: int | None = None
    ) -> None:
        """Turn a video to another prompt at its next chunk edge; PromptSwitched says at which.

        Raises InvalidRequestError for a video that is not being made.
        """
        session = self.scheduler.sessions.get(request_id)
        if session is None or session.status.is_finished or session.is_planned:
            is_made = request_id in self.decode_stage.assemblers
            why = ", whose last chunk is made already" if is_made else ""
            raise InvalidRequestError(
                f"got {request_id!r} to switch the prompt of{why}, expected a video in the making",
                param="request_id",
            )
        switch = PromptSwitch(0, prompt, transition_chunks)
        session.request.with_switch(switch).check_inputs()
        session.pending_switches.append(switch)
        known = session.encoded.get(prompt)
        self._pending_events += self.encode_stage.request(session, () if known else (prompt,))

    def abort(self, request_id: str) -> None:
        """End a request at once; what it holds is freed when its last steps have returned."""
        self._drop(request_id, SessionStatus.FINISHED_ABORTED)

    def pause(self, request_id: str) -> None:
        """Take no more steps for a request until it is resumed."""
        self.scheduler.pause(request_id)

    def resume(self, request_id: str) -> None:
        self.scheduler.resume(request_id)

    def add_worker(self, config: WorkerConfig) -> str:
        """Start one more worker; returns its id."""
        return self.worker_pool.start(config)

    def drain_worker(self, worker_id: str) -> None:
        """Let a worker end when its sessions have left it, at their next chunk edges.

        Raises InvalidRequestError for an unknown one, or the last one of its kind.
        """
        self.worker_pool.drain(worker_id)
        if worker_id in self.scheduler.workers:
            self.scheduler.drain(worker_id)

    def close_admission(self) -> None:
        """Start nothing more; what is under way comes to its next chunk edge."""
        self.scheduler.close()

    @property
    def is_quiet(self) -> bool:
        """Whether no session is on a worker, and no chunk on its way from one."""
        stats = self.scheduler.stats()
        return not (
            stats.running
            or self.decode_stage.queue.num_waiting
            or self.decode_stage.queue.num_assigned
        )

    def stats(self) -> EngineStats:
        return EngineStats(
            self.scheduler.stats(),
            self.encode_stage.queue.num_waiting,
            self.decode_stage.queue.num_waiting,
            sum(handle.is_ready for handle in self.worker_pool.workers.values()),
        )

    def worker_reports(self) -> list[WorkerReport]:
        """Every worker, for people."""
        return [self._report(worker_id) for worker_id in self.worker_pool.workers]

    def _report(self, worker_id: str) -> WorkerReport:
        handle, state = self.worker_pool.workers[worker_id], self.scheduler.workers.get(worker_id)
        return WorkerReport(
            worker_id=worker_id,
            where=self.executor.where(worker_id),
            roles=handle.config.roles,
            state=handle.state,
            sessions=0 if state is None else len(state.queue.sessions),
            tasks=sum(queue.count(worker_id) for queue in self._task_queues),
            used_blocks=0 if state is None else state.used_blocks,
            total_blocks=0 if state is None else state.history.pool.num_blocks - 1,
        )

    def step(self, timeout: float = 0.1) -> list[EngineEvent]:
        """Give work out, and tell what came back; waits for it up to `timeout` seconds.

        Raises HeliosError if nobody is left to do the work.
        """
        self._assign_tasks()
        self._fill_queues()
        events = [
            event
            for received in self.executor.poll(timeout)
            if received.worker_id in self.worker_pool.workers
            for event in self._handle(received)
        ]
        events += self._fail_unplaceable()
        events, self._pending_events = self._pending_events + events, []
        self._end_drained()
        self._kill_late()
        self.worker_pool.check()
        return events

    def _assign_tasks(self) -> None:
        now = self.clock()
        for worker_id, task in self.encode_stage.queue.assign(
            self.worker_pool.ready("encode"), now
        ):
            self.executor.submit(worker_id, task)
        for name, chunk in self.decode_stage.queue.assign(self.worker_pool.ready("decode"), now):
            self.executor.submit(name, chunk)

    def _fill_queues(self) -> None:
        if not self.decode_stage.pace(len(self.worker_pool.ready("decode"))):
            return
        for worker_id in self.scheduler.workers:
            if self.encode_stage.queue.has_suspect(
                worker_id
            ) or self.decode_stage.queue.has_suspect(worker_id):
                continue  # so that it is clear what it dies of, if it does
            handle = self.worker_pool.workers[worker_id]
            while len(handle.plans) < QUEUE_DEPTH:
                plan = self.scheduler.schedule(worker_id)
                if plan == SchedulerOutput():
                    break
                if not handle.plans:
                    handle.busy_since = self.clock()
                handle.plans.append(plan)
                self.executor.submit(worker_id, plan)
                for observer in self.observers:
                    observer.plan(worker_id, plan, self.scheduler)

    def _handle(self, received: Received) -> Iterator[EngineEvent]:
        worker_id, event = received
        for observer in self.observers:
            self._notify(observer, worker_id, event)
        match event:
            case WorkerReady():
                self._on_ready(worker_id, event)
            case StepsDone():
                yield from self._on_steps(worker_id, event)
            case InputsEncoded():
                yield from self._on_encoded(worker_id, event)
            case ChunkDecoded():
                yield from self._on_decoded(worker_id, event)
            case WorkerDied():
                yield from self._on_death(worker_id, event)

    def _notify(self, observer: Observer, worker_id: str, event: WorkerEvent) -> None:
        match event:
            case StepsDone():
                observer.steps(worker_id, event, self.scheduler.stats())
            case InputsEncoded() | ChunkDecoded():
                observer.task(worker_id, event)
            case WorkerDied():
                observer.death(worker_id, event.reason)

    def _on_ready(self, worker_id: str, event: WorkerReady) -> None:
        handle = self.worker_pool.workers[worker_id]
        handle.is_ready, handle.failed_starts = True, 0
        if handle.has_role("denoise") and not handle.is_draining:
            self.scheduler.add_worker(worker_id, event.num_blocks, event.text_rows)

    def _on_steps(self, worker_id: str, event: StepsDone) -> Iterator[EngineEvent]:
        handle = self.worker_pool.workers[worker_id]
        plan = handle.plans.popleft()
        handle.busy_since = self.clock()
        self.decode_stage.account(plan.scheduled_steps, event.seconds)
        for failure in event.output.failures:
            yield from self._fail(failure.session_id, failure.message)
        for step in plan.scheduled_steps:
            if step.session_id in self.decode_stage.assemblers:
                yield StepTaken(step.session_id, step.cursor)
        for chunk in event.output.chunks:
            self.scheduler.finish_chunk(chunk.session_id, chunk.snapshot)
            self.decode_stage.receive(chunk, worker_id)
        if plan.scheduled_steps:
            seconds = 0.0 if event.output.failures else event.seconds
            self.scheduler.update_from_output(worker_id, seconds)

    def _on_encoded(self, worker_id: str, event: InputsEncoded) -> Iterator[EngineEvent]:
        task = self.encode_stage.queue.finish(worker_id)
        session = self.scheduler.sessions.get(event.session_id)
        if session is None or session.status.is_finished:
            return
        if event.error is not None and self.encode_stage.is_required(task, session):
            yield from self._fail(event.session_id, event.error)
            return
        if event.snapshot is not None:
            self.decode_stage.receive_inputs(event.session_id, event.input_latents)
        yield from self.encode_stage.receive(session, task, event)

    def _on_decoded(self, worker_id: str, event: ChunkDecoded) -> Iterator[EngineEvent]:
        self.decode_stage.queue.finish(worker_id)
        if event.session_id not in self.decode_stage.assemblers:
            return
        if event.error is not None:
            yield from self._fail(event.session_id, event.error)
            return
        yield from self.decode_stage.receive_decoded(event)

    def _on_death(self, worker_id: str, event: WorkerDied) -> Iterator[EngineEvent]:
        """Replace the worker, and let its sessions go on from their last chunk."""
        handle = self.worker_pool.replace_dead(worker_id, event)
        if worker_id in self.scheduler.workers:
            plan = handle.plans[0] if handle.plans else SchedulerOutput()
            for session_id in self.scheduler.blame(plan, MAX_DEATHS):
                message = f"{MAX_DEATHS} workers died at the same point of it: {event.reason}"
                yield from self._fail(session_id, message)
            self.scheduler.remove_worker(worker_id)
        encodes, decodes = (
            self.encode_stage.queue.count(worker_id),
            self.decode_stage.queue.count(worker_id),
        )
        given_up = (
            self.encode_stage.queue.lose(worker_id, was_idle=not handle.plans and not decodes),
            self.decode_stage.queue.lose(worker_id, was_idle=not handle.plans and not encodes),
        )
        for session_id in filter(None, given_up):
            message = f"too many workers died encoding or decoding for it: {event.reason}"
            yield from self._fail(session_id, message)

    def _fail_unplaceable(self) -> list[EngineEvent]:
        """Requests accepted before all was known of them and the workers, and too large."""
        names, self.scheduler.unplaceable = self.scheduler.unplaceable, []
        message = "its history and prompts are larger than any worker's memory for them"
        return [event for name in names for event in self._fail(name, message)]

    def _fail(self, request_id: str, message: str) -> Iterator[EngineEvent]:
        if self._drop(request_id, SessionStatus.FINISHED_FAILED):
            yield RequestFailed(request_id, message)

    def _drop(self, request_id: str, status: SessionStatus) -> bool:
        """Forget a request; whether it was known."""
        self.scheduler.abort(request_id, status)
        self.encode_stage.queue.forget(request_id)
        return self.decode_stage.close(request_id)

    def _end_drained(self) -> None:
        draining = [name for name, handle in self.worker_pool.workers.items() if handle.is_draining]
        for worker_id in draining:
            if worker_id in self.scheduler.workers and not self.scheduler.is_empty(worker_id):
                continue
            if any(queue.count(worker_id) for queue in self._task_queues):
                continue
            if worker_id in self.scheduler.workers:
                self.scheduler.remove_worker(worker_id)
            self.worker_pool.remove(worker_id)

    def _kill_late(self) -> None:
        now, deadline = self.clock(), self.config.step_deadline
        for worker_id, handle in self.worker_pool.workers.items():
            hangs = any(queue.is_late(worker_id, now, deadline) for queue in self._task_queues)
            if hangs or handle.is_late(now, self.config):
                self.worker_pool.kill(worker_id)
