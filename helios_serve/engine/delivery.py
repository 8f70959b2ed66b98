"""What of a request's video has come, and what of it can be handed on."""

from collections import Counter
from collections.abc import Iterator

from helios_serve.engine.events import ChunkReady
from helios_serve.messages import ChunkResult, DecodeTask
from helios_serve.sampling_params import Frames


class Delivery:
    """The chunks of one request: kept until they are decoded, handed on in order, each once."""

    def __init__(self, request_id: str, num_chunks: int) -> None:
        self.request_id = request_id
        self.num_chunks = num_chunks
        self.next_chunk = 0
        self._results: dict[int, ChunkResult] = {}
        self._frames: dict[int, Frames] = {}
        self._decoder: dict[int, str | None] = {}
        self._losses: Counter[int] = Counter()

    @property
    def is_complete(self) -> bool:
        return self.next_chunk == self.num_chunks

    def receive(self, result: ChunkResult, worker_id: str) -> None:
        """A chunk was made, and `worker_id` goes on to decode it; a second one is not wanted."""
        if result.chunk >= self.next_chunk:
            self._results.setdefault(result.chunk, result)
            self._decoder.setdefault(result.chunk, worker_id)

    def receive_frames(self, chunk: int, frames: Frames) -> Iterator[ChunkReady]:
        """Frames have come; yields every chunk that can be handed on now."""
        if chunk in self._results:
            self._frames[chunk] = frames
        while self.next_chunk in self._frames:
            index = self.next_chunk
            self.next_chunk += 1
            result = self._results.pop(index)
            self._decoder.pop(index)
            self._losses.pop(index, None)
            yield ChunkReady(
                self.request_id,
                index,
                self._frames.pop(index),
                result.latents,
                result.input_latents,
            )

    def lose_decoder(self, worker_id: str) -> int:
        """The worker is gone: what it had not decoded is decoded elsewhere.

        Returns how often that has happened to one chunk, at most.
        """
        for chunk, decoder in self._decoder.items():
            if decoder == worker_id and chunk not in self._frames:
                self._decoder[chunk] = None
                self._losses[chunk] += 1
        return max(self._losses.values(), default=0)

    def take_undecoded(self, worker_id: str) -> Iterator[DecodeTask]:
        """Chunks that nobody decodes, given to `worker_id`."""
        for chunk, decoder in self._decoder.items():
            if decoder is None:
                self._decoder[chunk] = worker_id
                yield DecodeTask(self.request_id, chunk, self._results[chunk].latents)
