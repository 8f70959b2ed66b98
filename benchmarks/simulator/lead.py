"""Pauses a session that runs ahead of its viewer, as the server does for live sessions."""

from collections.abc import Callable

from helios_serve.engine.requests.viewer import Viewer
from helios_serve.model_config import frames_of_chunk
from helios_serve.video_request import VideoRequest


class SessionLead:
    """How far a session is ahead of what its viewer has seen, or, with pacing "reader", of what was
    delivered; it is paused when that exceeds `max_lead_chunks`.

    `pause` and `resume` are called with the request's id, `pause` while the engine is stepped.
    """

    def __init__(
        self,
        request: VideoRequest,
        pause: Callable[[str], None],
        resume: Callable[[str], None],
        *,
        first_chunk: int = 0,
    ) -> None:
        self.request = request
        self._pause = pause
        self._resume = resume
        self._begun = self._delivered = first_chunk
        self._is_held = False
        self._viewer: Viewer | None = None
        if request.pacing == "media":
            self._viewer = Viewer(first_chunk, request.params.fps, self._release)

    def step(self, chunk: int) -> None:
        """A step of `chunk` was taken."""
        self._begun = max(self._begun, chunk)
        if not self._is_held and self._is_ahead:
            self._is_held = True
            self._pause(self.request.request_id)

    def deliver(self, chunk: int) -> None:
        """A chunk was delivered to the viewer."""
        self._delivered = chunk + 1
        if self._viewer is None:
            self._release()
        else:
            frames = frames_of_chunk(self.request.params.num_frames, chunk).length
            self._viewer.deliver(chunk, frames)

    def leave(self) -> None:
        """The viewer has left."""
        if self._viewer is not None:
            self._viewer.leave()

    @property
    def _is_ahead(self) -> bool:
        most = self.request.max_lead_chunks
        seen = self._delivered if self._viewer is None else self._viewer.next_chunk
        return most is not None and self._begun >= seen + most

    def _release(self) -> None:
        if self._is_held and not self._is_ahead:
            self._is_held = False
            self._resume(self.request.request_id)
