"""An executor whose workers compute nothing: they take as long as a cost model says."""

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence

from helios_serve.benchmarks.simulator.costs import LANES, CostModel, Lane
from helios_serve.benchmarks.simulator.host import Host, Places
from helios_serve.benchmarks.simulator.lanes import (
    Contention,
    LaneJob,
    OpenSession,
    SimulatedWorker,
)
from helios_serve.benchmarks.simulator.virtual_time import VirtualClock
from helios_serve.messages import (
    ChunkDecoded,
    ChunkRendered,
    ChunkResult,
    DecodeTask,
    EncodedPrompt,
    EncodeTask,
    InputsEncoded,
    NewSession,
    RunnerOutput,
    ScheduledStep,
    SchedulerOutput,
    Snapshot,
    StepsDone,
    TensorData,
    WorkerCommand,
    WorkerDied,
    WorkerEvent,
    WorkerReady,
)
from helios_serve.model_config import (
    CHUNK_FRAMES,
    CHUNK_LATENTS,
    HISTORY_FRAMES,
    LATENT_CHANNELS,
    LATENT_STRIDE,
)
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.options.workers import WorkerConfig

WORD_TOKENS = 1.3
"""Tokens of a word of a prompt, about."""
TICK = 5e-3
"""Seconds that an engine waits at least if there is no event. While stages share a device, it would
else look again and again whether it is time for a plan; plans are sent 50 ms early."""
EPSILON = 1e-9
"""Seconds by which an event may be early: times are sums of floating-point numbers."""


class SimulatedExecutor:
    """Workers in virtual time, for an `EngineCore` that has the same clock.

    Workers that are started at the beginning are ready at once, later ones after the seconds that
    the costs say. With `jitter`, durations are multiplied by residuals of the fit, drawn by it.
    `workers` are those that live, in the order of their starts. Each `host_workers` of them share a
    host with `host_cores`; None: hosts have as many as they need.
    """

    def __init__(
        self,
        model: CostModel,
        clock: VirtualClock,
        *,
        jitter: random.Random | None = None,
        host_cores: float | None = None,
        host_workers: int = 1,
    ) -> None:
        self.model = model
        self.clock = clock
        self.workers: dict[str, SimulatedWorker] = {}
        self.done: Counter[Lane] = Counter()
        """Plans and tasks that were finished."""
        self.ended_busy: dict[Lane, float] = dict.fromkeys(LANES, 0.0)
        """Seconds in which lanes of workers that are gone were busy."""
        self.last_received = 0
        """Events that the last `poll` returned."""
        self._contention = Contention(model.costs)
        self._host_cores = host_cores
        self._hosts: dict[int, Host] = {}
        self._places = Places(host_workers)
        self._areas: dict[tuple[str, int], tuple[int, int]] = {}
        """Height and width of the latents of chunks that are still to be decoded."""
        self._jitter = jitter
        self._began = clock.now()
        self._numbers = itertools.count(1)
        self._tie = itertools.count()
        self._ends: list[tuple[float, int, SimulatedWorker, int]] = []
        self._events: list[tuple[float, int, Received]] = []

    def start_worker(self, config: WorkerConfig) -> str:
        worker_id, costs = f"worker-{next(self._numbers)}", self.model.costs
        self.workers[worker_id] = SimulatedWorker(
            worker_id, config, self._contention, self._enter_host(worker_id)
        )
        now = self.clock.now()
        ready = WorkerReady()
        if "denoise" in config.roles:
            ready = WorkerReady(config.history_blocks or costs.num_blocks, costs.text_rows)
        is_first = now == self._began
        self._put(now if is_first else now + costs.start_seconds, worker_id, ready)
        return worker_id

    def submit(self, worker_id: str, command: WorkerCommand) -> None:
        worker, now, segment_seconds = self.workers.get(worker_id), self.clock.now(), 0.0
        if worker is None:  # it has died, which the engine will see
            return
        match command:
            case SchedulerOutput():
                lane: Lane = "denoise"
                seconds = self._plan_seconds(worker, command)
            case EncodeTask():
                lane, seconds = "encode", self.model.encode(command)
            case DecodeTask():
                lane, (height, width) = "decode", self._take_size(command)
                seconds = self.model.decode(height, width)
                segment_seconds = self.model.segment(height, width)
        residuals = self.model.costs.residuals.get(lane)
        if self._jitter is not None and residuals:
            seconds *= self._jitter.choice(residuals)
        worker.put(lane, LaneJob(command, seconds, segment_seconds), now)
        self._await(worker, now)

    def poll(self, timeout: float) -> list[Received]:
        """Return what has happened by now, or let the time pass to the next event."""
        found = self._due()
        if not found:
            self.clock.wait_until(min(self.next_at, self.clock.now() + max(TICK, timeout)))
            found = self._due()
        self.last_received = len(found)
        return found

    @property
    def next_at(self) -> float:
        """When the next event is to come, if nothing is submitted before."""
        while self._ends and self._is_stale(self._ends[0]):
            heapq.heappop(self._ends)
        first = self._events[0][0] if self._events else math.inf
        return min(first, self._ends[0][0]) if self._ends else first

    def wake(self) -> None:
        """No thread waits here."""

    def where(self, worker_id: str) -> str:
        return f"simulated {worker_id}"

    def kill_worker(self, worker_id: str) -> None:
        self.lose(worker_id, "killed after its deadline")

    def lose(self, worker_id: str, reason: str) -> None:
        """Let a worker die, with all that it has."""
        if self._forget(worker_id):
            self._put(self.clock.now(), worker_id, WorkerDied(reason))

    def stop_worker(self, worker_id: str) -> None:
        self._forget(worker_id)

    def shutdown(self) -> None:
        for worker_id in list(self.workers):
            self._forget(worker_id)

    def busy_seconds(self, lane: Lane) -> float:
        """Return the seconds in which a lane of any worker was busy, without jobs under way."""
        return self.ended_busy[lane] + sum(item.busy[lane] for item in self.workers.values())

    def _due(self) -> list[Received]:
        """Take the events whose time has come, in order of time."""
        now, found = self.clock.now(), []
        while self.next_at <= now + EPSILON:
            if self._events and (not self._ends or self._events[0][0] <= self._ends[0][0]):
                received = heapq.heappop(self._events)[2]
                worker = self.workers.get(received.worker_id)
                if worker is None and not isinstance(received.event, WorkerDied):
                    continue  # it died while it started, or while its host encoded
                if worker is not None and isinstance(received.event, WorkerReady):
                    worker.is_ready = True
                found.append(received)
            else:
                worker = heapq.heappop(self._ends)[2]
                lane, job = worker.finish(now)
                self.done[lane] += 1
                name = worker.worker_id
                found += [Received(name, event) for event in self._results(worker, lane, job, now)]
                self._await(worker, now)
        return found

    def _await(self, worker: SimulatedWorker, now: float) -> None:
        """Note when the worker's next job ends, as things stand."""
        changed = () if worker.host is None else worker.host.take_changed()
        for each in (worker, *(self.workers[name] for name in changed if name != worker.worker_id)):
            if (end := each.next_end(now)) is not None:
                heapq.heappush(self._ends, (end, next(self._tie), each, each.version))

    def _is_stale(self, item: tuple[float, int, SimulatedWorker, int]) -> bool:
        _, _, worker, version = item
        return worker.version != version or worker.worker_id not in self.workers

    def _put(self, when: float, worker_id: str, event: WorkerEvent) -> None:
        heapq.heappush(self._events, (when, next(self._tie), Received(worker_id, event)))

    def _forget(self, worker_id: str) -> bool:
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return False
        for lane in LANES:
            self.ended_busy[lane] += worker.busy[lane]
        if worker.host is not None:
            now = self.clock.now()
            self._places.free(worker_id)
            worker.host.leave(worker_id, worker.cores, now)
            for name in worker.host.take_changed():
                self._await(self.workers[name], now)
        return True

    def _enter_host(self, worker_id: str) -> Host | None:
        """Return the host of a new worker; None if hosts have as many cores as they need."""
        if self._host_cores is None:
            return None
        number = self._places.take(worker_id)
        return self._hosts.setdefault(number, Host(self._host_cores))

    def _plan_seconds(self, worker: SimulatedWorker, plan: SchedulerOutput) -> float:
        for name in plan.finished:
            worker.sessions.pop(name, None)
        for new in plan.new_sessions:
            worker.sessions[new.session_id] = self._open(new)
        stages = [step.cursor.stage for step in plan.scheduled_steps]
        steps = sum(
            worker.sessions[step.session_id].steps[step.cursor.stage]
            for step in plan.scheduled_steps
        )
        return self.model.plan(stages, steps)

    def _open(self, new: NewSession) -> OpenSession:
        params = new.request.params.resolve(self.model.config)
        branches = 2 if params.is_guided else 1
        return OpenSession(
            new,
            self.model.steps(params.height, params.width, branches),
            (params.stage_steps(0), params.stage_steps(1)),
            0 if new.snapshot is None else new.snapshot.num_frames,
        )

    def _results(
        self, worker: SimulatedWorker, lane: Lane, job: LaneJob, now: float
    ) -> Iterator[WorkerEvent]:
        seconds = now - job.begun
        match job.command:
            case SchedulerOutput():
                chunks = tuple(
                    chunk
                    for step in job.command.scheduled_steps
                    if (chunk := self._chunk(worker, step)) is not None
                )
                yield StepsDone(RunnerOutput(chunks), seconds, worker.cpu_seconds)
            case EncodeTask():
                yield self._encoded(job.command, seconds)
            case DecodeTask():
                name, number = job.command.session_id, job.command.chunk
                if lane == "decode":
                    yield ChunkRendered(name, number, seconds)
                if lane == "segment" or not job.segment_seconds:
                    yield ChunkDecoded(name, number, seconds=job.rendered + seconds)

    def _chunk(self, worker: SimulatedWorker, step: ScheduledStep) -> ChunkResult | None:
        """Return the chunk that a step ends, if it ends one."""
        known = worker.sessions[step.session_id]
        chunk, stage, number = step.cursor
        counts = known.counts[chunk > 0]
        if (stage, number) != (len(counts) - 1, counts[-1] - 1):
            return None
        known.frames = min(HISTORY_FRAMES, known.frames + CHUNK_LATENTS)
        params = known.opened.request.params
        area = (params.height // LATENT_STRIDE, params.width // LATENT_STRIDE)
        shape = (1, LATENT_CHANNELS, CHUNK_LATENTS, *area)
        snapshot = Snapshot(
            chunk + 1, b"", b"", b"", known.frames, "bfloat16", params.height, params.width
        )
        latents = TensorData(b"", shape, "bfloat16")
        self._areas[step.session_id, chunk] = area
        return ChunkResult(step.session_id, chunk, latents, snapshot)

    def _take_size(self, task: DecodeTask) -> tuple[int, int]:
        """Return height and width of a chunk, whose latents the task may leave out."""
        area: Sequence[int] | None = self._areas.pop((task.session_id, task.chunk), None)
        if area is None:  # another worker has lost the chunk
            assert task.latents is not None, f"no worker has made chunk {task.chunk}"
            _, _, _, *area = task.latents.shape
        height, width = area
        return LATENT_STRIDE * height, LATENT_STRIDE * width

    def _encoded(self, task: EncodeTask, seconds: float) -> InputsEncoded:
        prompts = tuple(
            EncodedPrompt(text, TensorData(b"", (tokens_of(text, task), 1), "bfloat16"))
            for text in task.prompts
        )
        snapshot = None
        if (request := task.seed_from) is not None:
            chunks = 1 if request.video is None else request.video.count // CHUNK_FRAMES
            frames = min(HISTORY_FRAMES, chunks * CHUNK_LATENTS)
            size = request.params.height, request.params.width
            snapshot = Snapshot(0, b"", b"", b"", frames, "bfloat16", *size)
        return InputsEncoded(task.session_id, prompts, snapshot, seconds=seconds)


def tokens_of(text: str, task: EncodeTask) -> int:
    """Return about how many tokens a prompt has."""
    return min(task.max_sequence_length, 1 + math.ceil(WORD_TOKENS * len(text.split())))
