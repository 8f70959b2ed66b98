"""The decode stage: has workers decode denoised chunks, and releases them in order."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from helios_serve.core.decode_lead import DecodeLead
from helios_serve.core.device import Device
from helios_serve.core.queued_task import QueuedTask
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.engine.loop.events import ChunkReady, RequestFinished
from helios_serve.engine.loop.worker_handle import WorkerHandle
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
    """Holds the chunks of one request until they are decoded, and releases each once, in order."""

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
        """Whether encode tasks of the request repeat those from before a restart."""
        self._input_seconds = 0.0
        """Seconds of encode tasks since the last release of a chunk."""
        self._queue_seconds: float | None = None

    @property
    def is_complete(self) -> bool:
        return self.next_chunk == self.params.num_chunks

    @property
    def num_left(self) -> int:
        """The number of chunks that have not been released."""
        return self.params.num_chunks - self.next_chunk

    def spend(self, cursor: StepCursor, seconds: float) -> None:
        """Record the seconds of a step. A step that is repeated after a crash counts once."""
        self._seconds[cursor] = seconds

    def begin(self, now: float) -> None:
        """Record that the first step began at `now`, which ends the time in the queue."""
        if self._queue_seconds is None:
            waited = now - self.session.clock.arrival - self._input_seconds
            self._queue_seconds = max(0.0, waited)

    def spend_on_inputs(self, seconds: float) -> None:
        """Record the seconds of an encode task, which count towards the next chunk.

        Tasks that are repeated after a restart, before any chunk, do not count.
        """
        if not self._is_repeated:
            self._input_seconds += seconds

    def receive(self, result: ChunkResult) -> DecodeTask:
        """Store a denoised chunk, and return the task that decodes it."""
        self._results[result.chunk] = result
        return DecodeTask(
            self.request_id,
            result.chunk,
            result.latents,
            num_frames=frames_of_chunk(self.params.num_frames, result.chunk).length,
            fps=self.params.fps,
            output=self.output,
            shown_size=self.shown_size,
            is_last=result.chunk + 1 == self.params.num_chunks,
        )

    def receive_decoded(self, decoded: ChunkDecoded) -> Iterator[ChunkReady]:
        """Store a decoded chunk, and yield all chunks that are next in order."""
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
        """Return the time of a chunk, with the waiting and encoding before it, and reset these."""
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
    """Has workers decode chunks. `lead` keeps sessions from running ahead of the decoders."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.queue = scheduler.decoding
        self.lead = DecodeLead(scheduler)
        self.assemblers: dict[str, ChunkAssembler] = {}
        """The assemblers of all unfinished requests, by request id."""

    def open(self, session: Session, first_chunk: int, *, was_accepted: bool = False) -> None:
        """Begin a request, whose chunks are released from `first_chunk` on.

        For a request that `was_accepted` before a restart, inputs are encoded again.
        """
        self.assemblers[session.session_id] = ChunkAssembler(
            session, first_chunk, was_accepted=was_accepted
        )
        self.lead.deliver(session.session_id, first_chunk)

    def receive(self, result: ChunkResult, worker_id: str | None = None) -> None:
        """Queue a denoised chunk for decoding, preferably by `worker_id`, which denoised it."""
        assembler = self.assemblers.get(result.session_id)
        if assembler is not None:
            self.lead.put(assembler.session, assembler.receive(result), worker_id)

    def receive_inputs(self, request_id: str, latents: TensorData | None) -> None:
        """Store the latents of a request's reference. They are reported with its first chunk."""
        self.assemblers[request_id].input_latents = latents

    def assign(self, devices: Iterable[Device], now: float) -> Iterator[AssignedDecode]:
        """Yield a task for each of `devices` that decodes no frames at present.

        The task has no latents if it goes to the worker that denoised the chunk, which keeps them.
        """
        for worker_id, queued in self.queue.assign(devices, now):
            task = queued.task
            if worker_id == queued.preferred:
                task = msgspec.structs.replace(task, latents=None)
            yield AssignedDecode(worker_id, task)

    def hand_over(self, worker: WorkerHandle, now: float) -> None:
        """Record that the worker has decoded the frames of its task, and now encodes them."""
        self.queue.hand_over(worker.device, now)

    def with_latents(self, worker: WorkerHandle) -> DecodeTask:
        """Return the task of a worker that lacks its latents, with these."""
        task: DecodeTask = worker.device.tasks["decode"].task
        return task

    def finish(
        self, worker: WorkerHandle, now: float, event: ChunkDecoded
    ) -> QueuedTask[DecodeTask]:
        """Return the oldest task of the worker, which it has finished."""
        return self.queue.finish(worker.device, now, event.seconds)

    def requeue_lost(self, worker: WorkerHandle, now: float, *, was_alone: bool) -> Iterator[str]:
        """Queue the tasks of a dead worker again. Yields the ids of requests that are given up."""
        for lost in reversed(self.queue.lose(worker.device, now)):
            if lost.task.session_id in self.assemblers:
                given_up = self.queue.requeue(lost, was_alone=was_alone)
                yield from () if given_up is None else (given_up,)

    def receive_decoded(self, event: ChunkDecoded) -> Iterator[ChunkReady | RequestFinished]:
        """Store a decoded chunk. Yields all chunks that are next in order, and the final event."""
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
        """Divide the seconds of a plan among its sessions, by the cost of their steps."""
        began = self.scheduler.clock() - seconds
        for step, share in zip(steps, self.scheduler.cost_shares(steps), strict=True):
            if (assembler := self.assemblers.get(step.session_id)) is not None:
                assembler.begin(began)
                assembler.spend(step.cursor, share * seconds)

    def account_inputs(self, request_id: str, seconds: float) -> None:
        """Record the seconds of an encode task, which count towards the request's next chunk."""
        if (assembler := self.assemblers.get(request_id)) is not None:
            assembler.spend_on_inputs(seconds)

    def close(self, request_id: str) -> bool:
        """Forget a request and its chunks. Returns whether the request was known."""
        self.lead.forget(request_id)
        return self.assemblers.pop(request_id, None) is not None
