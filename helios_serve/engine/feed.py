"""A video's chunks on their way to those who read them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from helios_serve.errors import RequestFailedError
from helios_serve.messages import Segment, Snapshot, TensorData
from helios_serve.sampling_params import Frames


@dataclass(frozen=True)
class VideoChunk:
    """Up to 33 finished frames, as pixels or as a segment of an MP4.

    `snapshot` and `latents` come where the video is not stored.
    """

    index: int
    frames: Frames | None = None
    segment: Segment | None = None
    latents: TensorData | None = None
    snapshot: Snapshot | None = None


Fetch = Callable[[int], Awaitable[VideoChunk]]


class Feed:
    """The chunks of one request, in order, as they come.

    `next_chunk` is the next to come. With `fetch` they are stored elsewhere and anybody may read
    them, from any chunk on, those from `first_chunk` at once; without it each is kept here until
    it was read once.
    """

    def __init__(
        self,
        request_id: str,
        first_chunk: int | None,
        next_chunk: int,
        fetch: Fetch | None = None,
    ) -> None:
        self.request_id = request_id
        self.first_chunk = next_chunk if first_chunk is None else first_chunk
        self.next_chunk = self.read_chunk = next_chunk
        self.steps_taken = 0
        self.is_over = False
        self.error: str | None = None
        self._fetch = fetch
        self._held: dict[int, VideoChunk] = {}
        self._changed = asyncio.Event()

    @property
    def lead(self) -> int:
        """Chunks that are there and that nobody has read."""
        return self.next_chunk - self.read_chunk

    def publish(self, chunk: VideoChunk) -> None:
        if self._fetch is None:
            self._held[chunk.index] = chunk
        self.next_chunk = chunk.index + 1
        self._wake()

    def end(self, error: str | None = None) -> None:
        """No more will come; what is there can still be read."""
        if not self.is_over:
            self.is_over, self.error = True, error
            self._wake()

    async def chunks(self, from_chunk: int | None = None) -> AsyncIterator[VideoChunk]:
        """Each chunk from `from_chunk` on, when it is there.

        Raises RequestFailedError where the video ends early.
        """
        index = self.first_chunk if from_chunk is None else from_chunk
        while True:
            while index < self.next_chunk:
                chunk = self._held.pop(index) if self._fetch is None else await self._fetch(index)
                index += 1
                self.read_chunk = max(self.read_chunk, index)
                yield chunk
            if self.is_over:
                break
            await self._changed.wait()
        if self.error is not None:
            raise RequestFailedError(self.error)

    def _wake(self) -> None:
        """Everybody who waits now is woken, and later ones wait for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()
