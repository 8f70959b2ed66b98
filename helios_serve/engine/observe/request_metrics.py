"""Metrics of requests as users see them: waiting, chunks, and the end."""

import time

from helios_serve.metrics import Metrics
from helios_serve.model_config import frames_of_chunk
from helios_serve.video_request import VideoRequest


class RequestMetrics:
    """Measures one request, from the time at which it was accepted or resumed."""

    def __init__(self, metrics: Metrics, model: str, request: VideoRequest) -> None:
        self.metrics = metrics
        self.model = model
        self.params = request.params
        self._accepted = time.monotonic()
        self._begun = False
        self._last_chunk: float | None = None

    def step(self) -> None:
        """A step was taken; called by one thread only."""
        if not self._begun:
            self._begun = True
            self.metrics.queue_seconds.labels(self.model).observe(self._waited)

    def chunk(self, index: int) -> None:
        """A chunk was published."""
        now = time.monotonic()
        frames = frames_of_chunk(self.params.num_frames, index).length
        self.metrics.frames.labels(self.model).inc(frames)
        if self._last_chunk is None:
            self.metrics.first_chunk_seconds.labels(self.model).observe(self._waited)
        else:
            seconds = now - self._last_chunk
            self.metrics.chunk_seconds.labels(self.model).observe(seconds)
            self.metrics.chunk_rtf.labels(self.model).observe(seconds * self.params.fps / frames)
        self._last_chunk = now

    def end(self, status: str) -> None:
        """The request is completed, failed or cancelled."""
        self.metrics.requests.labels(self.model, status).inc()
        if status == "completed":
            self.metrics.request_seconds.labels(self.model).observe(self._waited)

    @property
    def _waited(self) -> float:
        return time.monotonic() - self._accepted
