"""Denoised chunks on their way through decoding workers to the requests' events."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.engine.loop.events import ChunkReady, RequestFinished
from helios_serve.engine.loop.task_queue import TaskQueue
from helios_serve.engine.loop.worker_pool import WorkerHandle
from helios_serve.messages import (
    ChunkDecoded,
    ChunkResult,
    DecodeTask,
    ScheduledStep,
    StepCursor,
    TensorData,
)
from helios_serve.model_config import frames_of_chunk
from helios_serve.options.sampling import ResolvedParams
from helios_serve.video_request import VideoRequest

DECODE_AHEAD = 16
"""Waiting chunks per decoding worker from which no more steps are planned. Waiting chunks take the
engine's memory, and are counted by no limit on sessions."""
CHUNKS_AHEAD = 1
"""Chunks of one request that may be undelivered in addition to one per decoding worker: enough that
a lone request keeps all decoders busy, and so few that a prompt switch is seen soon."""


class ChunkAssembler:
    """The chunks of one request: kept until they are decoded, released in order, each once."""

    def __init__(self, request: VideoRequest, params: ResolvedParams, first_chunk: int) -> None:
        self.request_id = request.request_id
        self.params = params
        self.output = request.output
        self.shown_size = request.shown_size
        self.first_chunk = self.next_chunk = first_chunk
        self.input_latents: TensorData | None = None
        self._results: dict[int, ChunkResult] = {}
        self._decoded: dict[int, ChunkDecoded] = {}
        self._seconds: dict[StepCursor, float] = {}

    @property
    def is_complete(self) -> bool:
        return self.next_chunk == self.params.num_chunks

    def spend(self, cursor: StepCursor, seconds: float) -> None:
        """Record the time of a step; one that is repeated after a crash counts once."""
        self._seconds[cursor] = seconds

    def receive(self, result: ChunkResult) -> DecodeTask:
        """Keep a denoised chunk; returns the task that decodes it."""
        self._results[result.chunk] = result
        return DecodeTask(
            self.request_id,
            result.chunk,
            result.latents,
            num_frames=frames_of_chunk(self.params.num_frames, result.chunk).length,
            fps=self.params.fps,
            output=self.output,
            shown_size=self.shown_size,
        )

    def receive_decoded(self, decoded: ChunkDecoded) -> Iterator[ChunkReady]:
        """Keep a decoded chunk; yields every chunk that is next in order."""
        self._decoded[decoded.chunk] = decoded
        while self.next_chunk in self._decoded:
            ready = self._decoded.pop(self.next_chunk)
            result = self._results.pop(self.next_chunk)
            self.next_chunk += 1
            inputs, self.input_latents = self.input_latents, None
            yield ChunkReady(
                self.request_id,
                result.chunk,
                ready.frames,
                ready.segment,
                result.latents,
                result.snapshot,
                inputs,
                self._spent(result.chunk),
            )

    def _spent(self, chunk: int) -> float:
        """Seconds of all steps of a chunk, which are then forgotten."""
        cursors = [cursor for cursor in self._seconds if cursor.chunk == chunk]
        return sum(self._seconds.pop(cursor) for cursor in cursors)


class AssignedDecode(NamedTuple):
    """A decode task for a worker."""

    worker_id: str
    task: DecodeTask


class DecodeStage:
    """Has workers decode chunks, and keeps sessions from running ahead of the decoders."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.queue: TaskQueue[DecodeTask] = TaskQueue()
        self.assemblers: dict[str, ChunkAssembler] = {}
        """By request id, of all requests that are not finished."""
        self._advanced: set[str] = set()
        """Requests whose chunk limit has to be set anew."""
        self._decoders = 0

    def open(self, session: Session, first_chunk: int) -> None:
        """Take the chunks of a request from `first_chunk` on."""
        assembler = ChunkAssembler(session.request, session.params, first_chunk)
        self.assemblers[session.session_id] = assembler
        self._advanced.add(session.session_id)

    def receive(self, result: ChunkResult, worker_id: str | None = None) -> None:
        """Queue a denoised chunk for decoding, best by `worker_id`, the worker that has it."""
        assembler = self.assemblers.get(result.session_id)
        if assembler is not None:
            is_first = result.chunk == assembler.first_chunk
            self.queue.put(assembler.receive(result), preferred=worker_id, is_urgent=is_first)

    def receive_inputs(self, request_id: str, latents: TensorData | None) -> None:
        """Keep the latents of a request's reference, which its first chunk carries."""
        self.assemblers[request_id].input_latents = latents

    def assign(self, workers: Iterable[WorkerHandle], now: float) -> Iterator[AssignedDecode]:
        """Tasks for those of `workers` that have none."""
        free = {worker.worker_id: worker for worker in workers if worker.decoding is None}
        for worker_id, queued in self.queue.assign(free, now):
            free[worker_id].decoding = queued
            yield AssignedDecode(worker_id, queued.task)

    def requeue_lost(self, worker: WorkerHandle) -> str | None:
        """Queue the task of a dead worker again; returns its request if that is given up."""
        lost = worker.decoding
        if lost is None or lost.task.session_id not in self.assemblers:
            return None
        return self.queue.requeue(lost, was_alone=worker.has_single_job)

    def receive_decoded(self, event: ChunkDecoded) -> Iterator[ChunkReady | RequestFinished]:
        """Take a decoded chunk; yields every chunk that is next in order, and the end."""
        assembler = self.assemblers[event.session_id]
        yield from assembler.receive_decoded(event)
        if assembler.is_complete:
            self.close(event.session_id)
            yield RequestFinished(event.session_id)
        else:
            self._advanced.add(event.session_id)

    def account(self, steps: Sequence[ScheduledStep], seconds: float) -> None:
        """Share the time of a plan among its sessions, in proportion to the cost of their steps."""
        for step, share in zip(steps, self.scheduler.cost_shares(steps), strict=True):
            if (assembler := self.assemblers.get(step.session_id)) is not None:
                assembler.spend(step.cursor, share * seconds)

    def update_limits(self, decoders: int) -> None:
        """Let each session begin as many chunks as `decoders` workers keep up with."""
        decoders = max(1, decoders)
        if decoders != self._decoders:
            self._decoders = decoders
            self._advanced.update(self.assemblers)
        advanced, self._advanced = self._advanced, set()
        for request_id in advanced & self.assemblers.keys():
            limit = self.assemblers[request_id].next_chunk + decoders + CHUNKS_AHEAD
            self.scheduler.allow_chunks(request_id, limit)

    @property
    def is_behind(self) -> bool:
        """Whether so many chunks wait that no more should be denoised."""
        return self.queue.num_waiting >= DECODE_AHEAD * max(1, self._decoders)

    def close(self, request_id: str) -> bool:
        """Forget a request and its waiting chunks; returns whether it was known."""
        self.queue.forget(request_id)
        return self.assemblers.pop(request_id, None) is not None
