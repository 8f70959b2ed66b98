"""A request in the form that the engine accepts."""

from typing import NamedTuple

from helios_serve.messages import Snapshot
from helios_serve.options.sampling import ResolvedParams
from helios_serve.store.snapshots import ResumePoint
from helios_serve.video_request import VideoRequest


class Submission(NamedTuple):
    """A checked request, its resolved parameters, and where its video starts.

    With `resume_point` the video continues at the chunk of that snapshot, exactly as if the earlier
    video had been longer. If the resume point has a tail, the chunk of the tail is delivered first.
    `siblings` are ids of requests that continue from the same snapshot. Chunks `stored_from` to
    `first_chunk - 1` are stored already; those of an extension belong to the job that it `extends`.
    No limit applies to a request that `was_accepted` before a restart.
    """

    request: VideoRequest
    params: ResolvedParams
    resume_point: ResumePoint | None = None
    siblings: tuple[str, ...] = ()
    stored_from: int | None = None
    extends: str | None = None
    was_accepted: bool = False

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def snapshot(self) -> Snapshot | None:
        return None if self.resume_point is None else self.resume_point.snapshot

    @property
    def first_chunk(self) -> int:
        """The first chunk that will be delivered."""
        if self.resume_point is None:
            return 0
        chunk = self.resume_point.snapshot.chunk
        return chunk if self.resume_point.tail is None else chunk - 1
