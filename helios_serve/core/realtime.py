"""When a real-time session must deliver its chunks."""

from helios_serve.model_config import CHUNK_FRAMES


class PlaybackClock:
    """Deadlines of one session's chunks: chunk 0 at once, the others as a player consumes them.

    Chunk k is due at (delivery of chunk 0) + buffer + k * 33 / fps; pauses shift it. All times are
    seconds of one monotonic clock.
    """

    def __init__(self, *, arrival: float, fps: int) -> None:
        self.arrival = arrival
        self.period = CHUNK_FRAMES / fps
        self.started: float | None = None
        self._shift = 0.0
        self._paused_at: float | None = None

    def deadline(self, chunk: int, buffer: float) -> float:
        """When `chunk` is due; before the first delivery everything is due since its arrival."""
        if self.started is None:
            return self.arrival
        return self.started + buffer + chunk * self.period + self._shift

    def deliver_first(self, now: float) -> None:
        if self.started is None:
            self.started, self._shift = now, 0.0
            if self._paused_at is not None:
                self._paused_at = now

    def pause(self, now: float) -> None:
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """Deadlines move by the length of the pause."""
        if self._paused_at is not None:
            self._shift += now - self._paused_at
            self._paused_at = None

    @property
    def is_paused(self) -> bool:
        return self._paused_at is not None
