"""What of a request's video has come, and what of it can be handed on."""

from collections.abc import Iterator

from helios_serve.engine.loop.events import ChunkReady
from helios_serve.messages import ChunkDecoded, ChunkResult, DecodeTask, StepCursor, TensorData
from helios_serve.model_config import frames_of_chunk, num_chunks
from helios_serve.video_request import VideoRequest


class ChunkAssembler:
    """The chunks of one request: kept until they are decoded, handed on in order, each once."""

    def __init__(self, request: VideoRequest, first_chunk: int) -> None:
        self.request_id = request.request_id
        self.params = request.params
        self.output = request.output
        self.shown_size = request.shown_size
        self.first_chunk = self.next_chunk = first_chunk
        self.num_chunks = num_chunks(request.params.num_frames)
        self.input_latents: TensorData | None = None
        self._results: dict[int, ChunkResult] = {}
        self._decoded: dict[int, ChunkDecoded] = {}
        self._seconds: dict[StepCursor, float] = {}

    @property
    def is_complete(self) -> bool:
        return self.next_chunk == self.num_chunks

    def spend(self, cursor: StepCursor, seconds: float) -> None:
        """A step took that long; one that is taken again, after a crash, counts once."""
        self._seconds[cursor] = seconds

    def receive(self, result: ChunkResult) -> DecodeTask:
        """A chunk was made; returns what there is to decode of it."""
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
        """A chunk was decoded; yields every chunk that can be handed on now."""
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
        """Seconds of all steps of a chunk, which are of no more use here."""
        cursors = [cursor for cursor in self._seconds if cursor.chunk == chunk]
        return sum(self._seconds.pop(cursor) for cursor in cursors)
