"""What comes of requests: chunks to be decoded, and to be handed on in order."""

from collections.abc import Iterator, Sequence

from helios_serve.core.scheduler import Scheduler
from helios_serve.engine.loop.chunk_assembler import ChunkAssembler
from helios_serve.engine.loop.events import ChunkReady, RequestFinished
from helios_serve.engine.loop.task_queue import TaskQueue
from helios_serve.messages import (
    ChunkDecoded,
    ChunkResult,
    DecodeTask,
    ScheduledStep,
    TensorData,
)
from helios_serve.video_request import VideoRequest

DECODE_AHEAD = 16
"""Chunks a decoding worker that may wait for it before no more are denoised: what waits takes the
engine's memory, and sessions that went on would be waiting where no queue counts them."""
CHUNKS_AHEAD = 1
"""Chunks of one request that may be under way beside one a decoding worker: enough that no decoder
waits for a lone request, and so few that a prompt switch is seen soon."""


class DecodeStage:
    """Has chunks decoded, and keeps sessions from running away from their decoders."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.queue: TaskQueue[DecodeTask] = TaskQueue()
        self.assemblers: dict[str, ChunkAssembler] = {}
        self._moved: set[str] = set()
        """Requests that may go on, since some of their chunks were decoded."""
        self._decoders = 0

    def open(self, request: VideoRequest, first_chunk: int) -> None:
        self.assemblers[request.request_id] = ChunkAssembler(request, first_chunk)
        self._moved.add(request.request_id)

    def receive(self, result: ChunkResult, worker_id: str | None = None) -> None:
        """A chunk was denoised, which the worker that did it had best decode."""
        assembler = self.assemblers.get(result.session_id)
        if assembler is not None:
            is_first = result.chunk == assembler.first_chunk
            self.queue.put(assembler.receive(result), preferred=worker_id, is_urgent=is_first)

    def receive_inputs(self, request_id: str, latents: TensorData | None) -> None:
        """The latents of a request's reference, which come with its first chunk."""
        self.assemblers[request_id].input_latents = latents

    def receive_decoded(self, event: ChunkDecoded) -> Iterator[ChunkReady | RequestFinished]:
        """A chunk was decoded; yields every chunk that can be handed on now, and the end."""
        assembler = self.assemblers[event.session_id]
        yield from assembler.receive_decoded(event)
        if assembler.is_complete:
            self.close(event.session_id)
            yield RequestFinished(event.session_id)
        else:
            self._moved.add(event.session_id)

    def account(self, steps: Sequence[ScheduledStep], seconds: float) -> None:
        """Share the time of a plan among its sessions, each by what its step costs."""
        for step, share in zip(steps, self.scheduler.cost_shares(steps), strict=True):
            if (assembler := self.assemblers.get(step.session_id)) is not None:
                assembler.spend(step.cursor, share * seconds)

    def pace(self, decoders: int) -> bool:
        """Let sessions go on as `decoders` workers keep up; whether more may be denoised at all."""
        decoders = max(1, decoders)
        if decoders != self._decoders:
            self._decoders = decoders
            self._moved.update(self.assemblers)
        moved, self._moved = self._moved, set()
        for name in moved & self.assemblers.keys():
            limit = self.assemblers[name].next_chunk + decoders + CHUNKS_AHEAD
            self.scheduler.allow_chunks(name, limit)
        return self.queue.num_waiting < DECODE_AHEAD * decoders

    def close(self, request_id: str) -> bool:
        """Forget a request and what waits of it; whether it was known."""
        self.queue.forget(request_id)
        return self.assemblers.pop(request_id, None) is not None
