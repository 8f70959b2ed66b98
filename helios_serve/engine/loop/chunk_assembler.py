"""Holds a request's chunks until they are decoded and releases them in order."""

from collections.abc import Iterator

from helios_serve.engine.loop.events import ChunkReady
from helios_serve.messages import ChunkDecoded, ChunkResult, DecodeTask, StepCursor, TensorData
from helios_serve.model_config import frames_of_chunk
from helios_serve.options.sampling import ResolvedParams
from helios_serve.video_request import VideoRequest


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
