"""Where stored videos go on: after a crash of the server, and in extensions."""

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.errors import CapacityError, HeliosError, InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES, num_chunks
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import Unfinished, VideoStore
from helios_serve.video_request import VideoRequest


class Submission(NamedTuple):
    """A request and where it starts: the arguments of `EngineCore.add_request`.

    A tail in `resume_point` is delivered again. Chunks from `stored_from` up to `first_chunk` are
    stored already; those of an extension belong to the job that it `extends`. No limit refuses a
    request that `was_accepted` before.
    """

    request: VideoRequest
    resume_point: ResumePoint | None = None
    siblings: tuple[str, ...] = ()
    stored_from: int | None = None
    extends: str | None = None
    was_accepted: bool = False

    @property
    def first_chunk(self) -> int:
        """The first chunk to be delivered."""
        if self.resume_point is None:
            return 0
        chunk = self.resume_point.snapshot.chunk
        return chunk if self.resume_point.tail is None else chunk - 1

    def add_to(self, core: EngineCore) -> None:
        core.add_request(
            self.request,
            self.resume_point,
            siblings=self.siblings,
            was_accepted=self.was_accepted,
        )


def submission_of(job: Unfinished) -> Submission:
    """How a job goes on behind its last committed chunk."""
    start = job.resume_point
    if start is None:
        return Submission(job.request, was_accepted=True)
    if job.next_chunk >= start.snapshot.chunk:  # the chunk of its tail is committed
        start = ResumePoint(start.snapshot)
    return Submission(job.request, start, stored_from=job.first_chunk, was_accepted=True)


def extension_of(store: VideoStore, parent_id: str, request: VideoRequest) -> Submission:
    """How `request` goes on from the end of a stored video, whose chunks become its first ones.

    Its length is that of both together, its model that of the first one if none is named. Where
    the first one was cut inside its last chunk, that chunk comes again, whole, so that nothing
    jumps. Raises InvalidRequestError where nothing is kept to go on from.
    """
    job, resume_point = store.job(parent_id), store.resume_point(parent_id)
    if job is None or resume_point is None or job.next_chunk < job.num_chunks:
        raise InvalidRequestError(
            f"got {parent_id!r} to extend, expected a finished video", param="video"
        )
    was_cut = job.request.params.num_frames % CHUNK_FRAMES != 0
    if request.model is None:
        request = msgspec.structs.replace(request, model=job.request.model)
    if request.params.fps != job.request.params.fps:
        raise InvalidRequestError(
            f"got fps {request.params.fps}, expected {job.request.params.fps} as in the video to "
            "go on from",
            param="fps",
        )
    start = resume_point if was_cut else ResumePoint(resume_point.snapshot)
    return Submission(request, start, stored_from=job.first_chunk, extends=parent_id)


def unfinished_submissions(store: VideoStore, but: Collection[str] = ()) -> list[Submission]:
    """All jobs that were accepted and not ended, in their order, `but` for some; those at their end
    are ended."""
    starts = []
    for job in store.unfinished(but):
        if job.next_chunk == num_chunks(job.request.params.num_frames):
            store.finish(job.request.request_id, "completed")
        else:
            starts.append(submission_of(job))
    return starts


class Refusal(NamedTuple):
    """Why a job is not made now; one that is over can never be."""

    reason: str
    is_over: bool


def resubmit(submission: Submission, core: EngineCore, store: VideoStore) -> Refusal | None:
    """Give a stored job to the engine again; says why, if it does not take it.

    One that it can never make is ended as failed; one for which it has no room now stays as it is,
    which is one in real time where no worker can promise that.
    """
    name = submission.request.request_id
    try:
        submission.add_to(core)
    except CapacityError as error:
        return Refusal(f"job {name} waits for room: {error}", is_over=False)
    except HeliosError as error:
        store.finish(name, "failed", str(error))
        return Refusal(f"job {name} cannot go on: {error}", is_over=True)
    return None
