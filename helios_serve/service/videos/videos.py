"""Operations on videos, independent of HTTP: find, create, describe and delete."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.service.errors import ApiError, not_found
from helios_serve.service.ids import Ids
from helios_serve.service.lifecycle import Lifecycle
from helios_serve.service.protocol import Video
from helios_serve.service.videos.finished_files import FinishedFiles
from helios_serve.service.videos.requests import fork
from helios_serve.service.videos.video_object import video_object, wire_status
from helios_serve.store.disk import Disk
from helios_serve.store.jobs import StoredJob
from helios_serve.store.objects.video_objects import VideoObjects
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest


class Videos:
    """The videos of one engine and its store.

    Args:
        engine: Generates the videos.
        store: Stores jobs, segments and snapshots.
        files: Cache of finished files.
        disk: Limits the disk space of new videos.
        lifecycle: Rejects new videos during shutdown.
        retention: Seconds for which finished videos are kept; None: forever.
        ids: Makes the ids of new videos, and knows those of other cells.
        objects: The videos in an object store, if there is one.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        store: VideoStore,
        files: FinishedFiles,
        disk: Disk,
        lifecycle: Lifecycle,
        retention: float | None = None,
        *,
        ids: Ids | None = None,
        objects: VideoObjects | None = None,
    ) -> None:
        self.engine = engine
        self.store = store
        self.files = files
        self.disk = disk
        self.lifecycle = lifecycle
        self.retention = retention
        self.ids = ids or Ids()
        self.objects = objects

    async def find(self, video_id: str, tenant: str) -> StoredJob:
        """Return a video of the tenant.

        Raises ApiError 404 if there is none, or it belongs to another tenant, and 421 if it belongs
        to another cell.
        """
        job = await asyncio.to_thread(self.store.job, video_id)
        if job is None or job.tenant != tenant:
            raise self.ids.missing(video_id)
        return job

    async def accept(self, asked: VideoRequest) -> Video:
        """Submit a request and return the new video.

        Raises the errors of `AsyncEngine.submit`, StorageError if the disk is full, and
        CapacityError during shutdown.
        """
        self.lifecycle.check_open()
        await asyncio.to_thread(self.disk.check_room, reference_bytes(asked))
        asked = self._traced(asked)
        if asked.relation == "extension" and asked.parent is not None:
            await self.engine.submit(asked, extends=asked.parent)
        else:
            await self.engine.submit(asked)
        return await self.describe_id(asked.request_id)

    async def fork(
        self, job: StoredJob, prompts: Sequence[str | None], seconds: float | None
    ) -> list[Video]:
        """Continue a video once for each prompt, and return the new videos.

        New videos that another client deletes meanwhile are left out. Raises ApiError 409 if `job`
        has no finished chunk, and the errors of `accept`; then no video is created.
        """
        if not job.chunks:
            message = f"video {job.id} is {wire_status(job)} and has no finished chunk"
            raise ApiError(409, message, code="not_ready")
        self.lifecycle.check_open()
        await asyncio.to_thread(self.disk.check_room)
        made: list[VideoRequest] = []

        def make(edge: int) -> list[VideoRequest]:
            for prompt in prompts:
                name = self.ids.new("video")
                child = fork(job.request, name, edge=edge, prompt=prompt, seconds=seconds)
                made.append(self._traced(child))
            return made

        await self.engine.fork(job.id, make)
        jobs = await asyncio.to_thread(
            lambda: [self.store.job(request.request_id) for request in made]
        )
        return await self.describe_all([child for child in jobs if child is not None])

    async def describe(self, job: StoredJob) -> Video:
        """Return a job as an API video, with its current progress."""
        return video_object(job, await self.engine.progress(job.id), self.retention)

    async def describe_all(self, jobs: Sequence[StoredJob]) -> list[Video]:
        """Do the same as `describe` for several jobs, with one call to the engine."""
        going = [job.id for job in jobs if not job.is_finished]
        progress = await self.engine.progress_of_all(going)
        return [video_object(job, progress.get(job.id), self.retention) for job in jobs]

    async def describe_id(self, video_id: str) -> Video:
        """Do the same as `describe` for a video id.

        Raises ApiError 404 if the video was deleted meanwhile.
        """
        job = await asyncio.to_thread(self.store.job, video_id)
        if job is None:  # deleted meanwhile
            raise not_found(video_id)
        return await self.describe(job)

    async def finished(self, job: StoredJob, variant: str) -> Path:
        """Return the path of a finished video's file (`variant`: a key of MEDIA_TYPES).

        Raises ApiError 409 while the video is not finished, or if it has no chunks.
        """
        if not job.is_finished or not job.chunks:
            message = f"video {job.id} is {wire_status(job)} and has no content"
            raise ApiError(409, message, code="not_ready")
        return await asyncio.to_thread(self.files.get, job, variant)

    async def delete(self, job: StoredJob) -> None:
        """Abort a video if it is running, and delete it with all its files."""
        await self.engine.abort(job.id)
        await asyncio.to_thread(self.files.delete, job.id)
        await asyncio.to_thread(self.store.delete, job.id)

    async def wait_for(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait up to `seconds` for an event, and return whether it was set in time."""
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return False
        return True

    def _traced(self, asked: VideoRequest) -> VideoRequest:
        """Return the request with the trace of what is being answered, if there are spans."""
        if self.engine.spans is None:
            return asked
        traceparent = self.engine.spans.accept(asked.request_id)
        return msgspec.structs.replace(asked, traceparent=traceparent)


def reference_bytes(asked: VideoRequest) -> int:
    """Return the bytes of a request's reference, which is stored with the job."""
    return sum(len(frames.data) for frames in (asked.image, asked.video) if frames is not None)
