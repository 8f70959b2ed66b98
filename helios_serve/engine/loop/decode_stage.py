"""Denoised chunks on their way through decoding workers to the requests' events."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from helios_serve.core.decode_lead import DecodeLead
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.engine.loop.events import ChunkReady, RequestFinished
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
from helios_serve.stage_seconds import StageSeconds


class ChunkAssembler:
    """The chunks of one request: kept until they are decoded, released in order, each once."""

    def __init__(self, session: Session, first_chunk: int, *, was_accepted: bool = False) -> None:
        self.session = session
        self.request_id = session.session_id
        self.params = session.params
        self.output = session.request.output
        self.shown_size = session.request.shown_size
        self.next_chunk = first_chunk
        self.input_latents: TensorData | None = None
        self._results: dict[int, ChunkResult] = {}
        self._decoded: dict[int, ChunkDecoded] = {}
        self._seconds: dict[StepCursor, float] = {}
        self._is_repeated = was_accepted
        """Whether what is encoded was encoded before a restart."""
        self._input_seconds = 0.0
        """Time of encoding since the last release."""
        self._queue_seconds: float | None = None

    @property
    def is_complete(self) -> bool:
        return self.next_chunk == self.params.num_chunks

    @property
    def num_left(self) -> int:
        """Chunks that are still to be released."""
        return self.params.num_chunks - self.next_chunk

    def spend(self, cursor: StepCursor, seconds: float) -> None:
        """Record the time of a step; one that is repeated after a crash counts once."""
        self._seconds[cursor] = seconds

    def begin(self, now: float) -> None:
        """Its first step began at `now`: it waited until then, apart from encoding."""
        if self._queue_seconds is None:
            waited = now - self.session.clock.arrival - self._input_seconds
            self._queue_seconds = max(0.0, waited)

    def spend_on_inputs(self, seconds: float) -> None:
        """Record the time of an encode task, which counts with the next chunk.

        What is encoded again after a restart, before any chunk, does not count.
        """
        if not self._is_repeated:
            self._input_seconds += seconds

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
            self._is_repeated = False
            inputs, self.input_latents = self.input_latents, None
            yield ChunkReady(
                self.request_id,
                result.chunk,
                ready.frames,
                ready.segment,
                result.latents,
                result.snapshot,
                inputs,
                self._take_spent(result.chunk, ready.seconds),
                self.session.request.traceparent,
            )

    def _take_spent(self, chunk: int, decoding: float) -> StageSeconds:
        """Time of a chunk, and of waiting and encoding before it, which are then forgotten."""
        cursors = [cursor for cursor in self._seconds if cursor.chunk == chunk]
        encoding, self._input_seconds = self._input_seconds, 0.0
        waiting, self._queue_seconds = self._queue_seconds or 0.0, 0.0
        denoising = sum(self._seconds.pop(cursor) for cursor in cursors)
        return StageSeconds(waiting, encoding, denoising, decoding)


class AssignedDecode(NamedTuple):
    """A decode task for a worker."""

    worker_id: str
    task: DecodeTask


class DecodeStage:
    """Has workers decode chunks, and keeps sessions from running ahead of the decoders."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.queue = scheduler.decoding
        self.lead = DecodeLead(scheduler)
        self.assemblers: dict[str, ChunkAssembler] = {}
        """By request id, of all requests that are not finished."""

    def open(self, session: Session, first_chunk: int, *, was_accepted: bool = False) -> None:
        """Take the chunks of a request from `first_chunk` on.

        One that `was_accepted` before a restart has its inputs encoded again.
        """
        self.assemblers[session.session_id] = ChunkAssembler(
            session, first_chunk, was_accepted=was_accepted
        )
        self.lead.deliver(session.session_id, first_chunk)

    def receive(self, result: ChunkResult, worker_id: str | None = None) -> None:
        """Queue a denoised chunk for decoding, best by `worker_id`, the worker that has it."""
        assembler = self.assemblers.get(result.session_id)
        if assembler is not None:
            self.lead.put(assembler.session, assembler.receive(result), worker_id)

    def receive_inputs(self, request_id: str, latents: TensorData | None) -> None:
        """Keep the latents of a request's reference, which its first chunk carries."""
        self.assemblers[request_id].input_latents = latents

    def assign(self, workers: Iterable[WorkerHandle], now: float) -> Iterator[AssignedDecode]:
        """Tasks for those of `workers` that have none."""
        for worker_id, queued in self.queue.assign([worker.device for worker in workers], now):
            yield AssignedDecode(worker_id, queued.task)

    def finish(self, worker: WorkerHandle, now: float, event: ChunkDecoded) -> None:
        """The worker has returned its task."""
        self.queue.finish(worker.device, now, event.seconds)

    def requeue_lost(self, worker: WorkerHandle, now: float, *, was_alone: bool) -> str | None:
        """Queue the task of a dead worker again; returns its request if that is given up."""
        lost = self.queue.lose(worker.device, now)
        if lost is None or lost.task.session_id not in self.assemblers:
            return None
        return self.queue.requeue(lost, was_alone=was_alone)

    def receive_decoded(self, event: ChunkDecoded) -> Iterator[ChunkReady | RequestFinished]:
        """Take a decoded chunk; yields every chunk that is next in order, and the end."""
        assembler = self.assemblers[event.session_id]
        for ready in assembler.receive_decoded(event):
            self.scheduler.deliver_chunk(assembler.session, ready.chunk)
            yield ready
        if assembler.is_complete:
            self.close(event.session_id)
            yield RequestFinished(event.session_id)
        else:
            self.lead.deliver(event.session_id, assembler.next_chunk)

    def account(self, steps: Sequence[ScheduledStep], seconds: float) -> None:
        """Share the time of a plan among its sessions, in proportion to the cost of their steps."""
        began = self.scheduler.clock() - seconds
        for step, share in zip(steps, self.scheduler.cost_shares(steps), strict=True):
            if (assembler := self.assemblers.get(step.session_id)) is not None:
                assembler.begin(began)
                assembler.spend(step.cursor, share * seconds)

    def account_inputs(self, request_id: str, seconds: float) -> None:
        """Count the time of an encode task with the request's next chunk."""
        if (assembler := self.assemblers.get(request_id)) is not None:
            assembler.spend_on_inputs(seconds)

    def close(self, request_id: str) -> bool:
        """Forget a request and its waiting chunks; returns whether it was known."""
        self.lead.forget(request_id)
        return self.assemblers.pop(request_id, None) is not None
