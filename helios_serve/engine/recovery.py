"""Where stored videos go on: after a crash of the server, and in extensions."""

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from helios_serve.engine.core import EngineCore
from helios_serve.errors import CapacityError, HeliosError, InvalidRequestError
from helios_serve.messages import Snapshot, TensorData
from helios_serve.model_config import CHUNK_FRAMES, num_chunks
from helios_serve.sampling_params import VideoRequest
from helios_serve.store.snapshots import Kept
from helios_serve.store.video_store import Unfinished, VideoStore


class Start(NamedTuple):
    """What a request begins with, in the words of `EngineCore.add_request`.

    `first_chunk` is the first one that is handed on; those before it from `stored_from` on are
    stored already, for an extension as chunks of the job `behind` which it goes on. One that
    `was_accepted` before is turned away by no limit.
    """

    request: VideoRequest
    snapshot: Snapshot | None = None
    tail: TensorData | None = None
    kin: tuple[str, ...] = ()
    stored_from: int | None = None
    behind: str | None = None
    was_accepted: bool = False

    @property
    def first_chunk(self) -> int:
        chunk = 0 if self.snapshot is None else self.snapshot.chunk
        return chunk if self.tail is None else chunk - 1

    @property
    def kept(self) -> Kept | None:
        return None if self.snapshot is None else Kept(self.snapshot, self.tail)

    def add_to(self, core: EngineCore) -> None:
        core.add_request(
            self.request,
            self.snapshot,
            kin=self.kin,
            tail=self.tail,
            was_accepted=self.was_accepted,
        )


def resumption(job: Unfinished) -> Start:
    """How a job goes on behind its last committed chunk."""
    if job.kept is None:
        return Start(job.request, was_accepted=True)
    snapshot, tail = job.kept.snapshot, job.kept.tail
    shows_tail = job.next_chunk < snapshot.chunk
    return Start(
        job.request,
        snapshot,
        tail if shows_tail else None,
        stored_from=job.first_chunk,
        was_accepted=True,
    )


def extension(store: VideoStore, parent_id: str, request: VideoRequest) -> Start:
    """How `request` goes on from the end of a stored video, whose chunks become its first ones.

    Its length is that of both together, its model that of the first one if none is named. Where
    the first one was cut inside its last chunk, that chunk comes again, whole, so that nothing
    jumps. Raises InvalidRequestError where nothing is kept to go on from.
    """
    job, kept = store.job(parent_id), store.kept(parent_id)
    if job is None or kept is None or job.next_chunk < job.num_chunks:
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
    return Start(
        request,
        kept.snapshot,
        kept.tail if was_cut else None,
        stored_from=job.first_chunk,
        behind=parent_id,
    )


def unfinished(store: VideoStore, but: Collection[str] = ()) -> list[Start]:
    """All jobs that were accepted and not ended, in their order, `but` for some; those at their end
    are ended."""
    starts = []
    for job in store.unfinished(but):
        if job.next_chunk == num_chunks(job.request.params.num_frames):
            store.finish(job.request.request_id, "completed")
        else:
            starts.append(resumption(job))
    return starts


class NotTakenUp(NamedTuple):
    """Why a job is not made now; one that is over can never be."""

    reason: str
    is_over: bool


def take_up(start: Start, core: EngineCore, store: VideoStore) -> NotTakenUp | None:
    """Give a stored job to the engine again; says why, if it does not take it.

    One that it can never make is ended as failed; one for which it has no room now stays as it is,
    which is one in real time where no worker can promise that.
    """
    name = start.request.request_id
    try:
        start.add_to(core)
    except CapacityError as error:
        return NotTakenUp(f"job {name} waits for room: {error}", is_over=False)
    except HeliosError as error:
        store.finish(name, "failed", str(error))
        return NotTakenUp(f"job {name} cannot go on: {error}", is_over=True)
    return None
