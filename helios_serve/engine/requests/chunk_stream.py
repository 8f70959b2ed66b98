"""Streams of a video's chunks to its readers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from helios_serve.errors import RequestFailedError
from helios_serve.messages import Segment, Snapshot, TensorData
from helios_serve.video_request import Frames


@dataclass(frozen=True)
class VideoChunk:
    """Up to 33 finished frames, as pixels or as a segment of an MP4.

    `snapshot` and `latents` are set only if the video is not stored.
    """

    index: int
    frames: Frames | None = None
    segment: Segment | None = None
    latents: TensorData | None = None
    snapshot: Snapshot | None = None


Fetch = Callable[[int], Awaitable[VideoChunk]]


class ChunkStream:
    """The chunks of one request, in order, as they are finished.

    `next_chunk` is the next one that will be finished, and `read_chunk` the first one that no
    reader has got. With `fetch`, chunks are read from the store: any number of readers get them,
    and those from `first_chunk` on are there from the beginning. With `kept`, readers get only that
    many of the last chunks; a slower reader continues at the oldest of them. Without `fetch`, the
    stream holds each chunk until one reader has got it. `on_read` is called when a chunk is read
    for the first time.
    """

    def __init__(
        self,
        request_id: str,
        first_chunk: int | None,
        next_chunk: int,
        fetch: Fetch | None = None,
        *,
        kept: int | None = None,
    ) -> None:
        self.request_id = request_id
        self.first_chunk = next_chunk if first_chunk is None else first_chunk
        self.next_chunk = self.read_chunk = next_chunk
        self.is_over = False
        self.error: str | None = None
        self._fetch = fetch
        self._kept = kept
        self.on_read: Callable[[], None] = lambda: None
        self._held: dict[int, VideoChunk] = {}
        self._changed = asyncio.Event()

    @property
    def has_unread(self) -> bool:
        return self.read_chunk < self.next_chunk

    @property
    def changed(self) -> asyncio.Event:
        """An event that is set at the next chunk or at the end."""
        return self._changed

    def publish(self, chunk: VideoChunk) -> None:
        """Add the next chunk, and hold it for a reader."""
        self._held[chunk.index] = chunk
        self.announce(chunk.index)

    def announce(self, index: int) -> None:
        """Report that the next chunk can be read."""
        self.next_chunk = index + 1
        if self._kept is not None:
            self.first_chunk = max(self.first_chunk, self.next_chunk - self._kept)
        self._wake()

    def end(self, error: str | None = None) -> None:
        """End the stream. Readers still get the chunks that were published."""
        if not self.is_over:
            self.is_over, self.error = True, error
            self._wake()

    async def over(self) -> None:
        """Wait until the stream has ended, with or without an error."""
        while not self.is_over:
            await self._changed.wait()

    async def chunks(self, from_chunk: int | None = None) -> AsyncIterator[VideoChunk]:
        """Yield the chunks from `from_chunk` on, each as soon as it is finished.

        Chunks that another reader has taken are left out. Raises RequestFailedError if the video
        ends early.
        """
        index = max(self.first_chunk, from_chunk or 0)
        while True:
            while (index := self._next_for(index)) < self.next_chunk:
                chunk = self._held.pop(index) if self._fetch is None else await self._fetch(index)
                index += 1
                if index > self.read_chunk:
                    self.read_chunk = index
                    self.on_read()
                yield chunk
            if self.is_over:
                break
            await self._changed.wait()
        if self.error is not None:
            raise RequestFailedError(self.error)

    def _next_for(self, index: int) -> int:
        """Return the next chunk for a reader at `index`, after those that it can no longer get."""
        return max(index, self.read_chunk if self._fetch is None else self.first_chunk)

    def _wake(self) -> None:
        """Wake all current waiters. Later ones wait for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()
