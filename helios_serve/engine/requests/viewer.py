"""A model of a realtime session's viewer: which chunks it has seen."""

import asyncio
from collections.abc import Callable


class Viewer:
    """Plays chunks in order, without a break as long as they arrive in time.

    A late chunk is played when it arrives, and delays those after it. `next_chunk` is the first
    chunk that has not been seen to its end. `on_seen` is called each time it increases. All times
    are the event loop's.
    """

    def __init__(self, next_chunk: int, fps: int, on_seen: Callable[[], None]) -> None:
        self.next_chunk = next_chunk
        self.fps = fps
        self._on_seen = on_seen
        self._free_at = 0.0
        """The time at which the last delivered chunk has been seen to its end."""
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def deliver(self, chunk: int, frames: int) -> None:
        """Record that a chunk of `frames` frames was sent to the viewer."""
        loop = asyncio.get_running_loop()
        self._free_at = max(self._free_at, loop.time()) + frames / self.fps
        self._timers[chunk] = loop.call_at(self._free_at, self._see, chunk)

    def leave(self) -> None:
        """Stop: the viewer has left."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _see(self, chunk: int) -> None:
        del self._timers[chunk]
        self.next_chunk = chunk + 1
        self._on_seen()
