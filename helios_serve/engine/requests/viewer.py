"""A viewer of a realtime session: how much of the video has been seen."""

import asyncio
from collections.abc import Callable


class Viewer:
    """Plays chunks from the first one on, without a break while they come in time.

    A chunk that comes late is played when it comes, and the later ones after it. `next_chunk` is
    the first chunk that has not been seen to its end. `on_seen` is called each time it grows. All
    times are the event loop's.
    """

    def __init__(self, next_chunk: int, fps: int, on_seen: Callable[[], None]) -> None:
        self.next_chunk = next_chunk
        self.fps = fps
        self._on_seen = on_seen
        self._free_at = 0.0
        """When the last delivered chunk has been seen."""
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def deliver(self, chunk: int, frames: int) -> None:
        """A chunk of `frames` frames was sent to the viewer."""
        loop = asyncio.get_running_loop()
        self._free_at = max(self._free_at, loop.time()) + frames / self.fps
        self._timers[chunk] = loop.call_at(self._free_at, self._see, chunk)

    def leave(self) -> None:
        """See nothing more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _see(self, chunk: int) -> None:
        del self._timers[chunk]
        self.next_chunk = chunk + 1
        self._on_seen()
