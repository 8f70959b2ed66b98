"""A video's chunks on their way to its readers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from helios_serve.errors import RequestFailedError
from helios_serve.messages import Segment, Snapshot, TensorData
from helios_serve.video_request import Frames


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


class ChunkStream:
    """The chunks of one request, in order, as they come.

    `next_chunk` is the next to come, `read_chunk` the next that no reader has had. With `fetch` the
    chunks are stored: any number of readers get them, from any chunk on, those from `first_chunk`
    at once. With `kept`, readers find that many of the last chunks, and one who is later goes on at
    the oldest of them. Without `fetch` each chunk is held here until one reader has had it.
    `on_read` is called when a chunk is read for the first time.
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
        """Set when the next chunk comes, or the end."""
        return self._changed

    def publish(self, chunk: VideoChunk) -> None:
        """Hold the next chunk for a reader."""
        self._held[chunk.index] = chunk
        self.announce(chunk.index)

    def announce(self, index: int) -> None:
        """The next chunk can be read."""
        self.next_chunk = index + 1
        if self._kept is not None:
            self.first_chunk = max(self.first_chunk, self.next_chunk - self._kept)
        self._wake()

    def end(self, error: str | None = None) -> None:
        """No more chunks come; readers can still have those that did."""
        if not self.is_over:
            self.is_over, self.error = True, error
            self._wake()

    async def over(self) -> None:
        """Returns when no more chunks come, for whatever reason."""
        while not self.is_over:
            await self._changed.wait()

    async def chunks(self, from_chunk: int | None = None) -> AsyncIterator[VideoChunk]:
        """Each chunk from `from_chunk` on that can still be read, as soon as it can be.

        Raises RequestFailedError where the video ends early.
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
        """The next chunk for a reader at `index`; other readers may have had those held here."""
        return max(index, self.read_chunk if self._fetch is None else self.first_chunk)

    def _wake(self) -> None:
        """Wake all who wait now; later ones wait for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()
