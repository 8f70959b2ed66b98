"""What the routes do with videos: find the sender's own, and have new ones made."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.service.errors import ApiError, not_found
from helios_serve.service.lifecycle import Lifecycle
from helios_serve.service.protocol import Video
from helios_serve.service.videos.finished_files import FinishedFiles
from helios_serve.service.videos.video_object import video_object, wire_status
from helios_serve.store.disk import Disk
from helios_serve.store.jobs import StoredJob
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest


class Videos:
    """One engine, its store, and the files that are served whole."""

    def __init__(
        self,
        engine: AsyncEngine,
        store: VideoStore,
        files: FinishedFiles,
        disk: Disk,
        lifecycle: Lifecycle,
        retention: float | None = None,
    ) -> None:
        self.engine = engine
        self.store = store
        self.files = files
        self.disk = disk
        self.lifecycle = lifecycle
        self.retention = retention

    async def find(self, video_id: str, tenant: str) -> StoredJob:
        """A video of the tenant's; raises ApiError 404 for any other."""
        job = await asyncio.to_thread(self.store.job, video_id)
        if job is None or job.tenant != tenant:
            raise not_found(video_id)
        return job

    async def accept(self, asked: VideoRequest) -> Video:
        """Store a new video and have it made; raises what `AsyncEngine.submit` does, and
        StorageError if there is no room for it."""
        self.lifecycle.check_open()
        await asyncio.to_thread(self.disk.check_room)
        if asked.relation == "extension" and asked.parent is not None:
            await self.engine.submit(asked, extends=asked.parent)
        else:
            await self.engine.submit(asked)
        return await self.describe_id(asked.request_id)

    async def describe(self, job: StoredJob) -> Video:
        return video_object(job, await self.engine.progress(job.id), self.retention)

    async def describe_all(self, jobs: Sequence[StoredJob]) -> list[Video]:
        """As `describe`, for several jobs, with one call to the engine."""
        going = [job.id for job in jobs if not job.is_finished]
        progress = await self.engine.progress_of_all(going)
        return [video_object(job, progress.get(job.id), self.retention) for job in jobs]

    async def describe_id(self, video_id: str) -> Video:
        """As `video_object`, of one that was just accepted or changed."""
        job = await asyncio.to_thread(self.store.job, video_id)
        if job is None:  # deleted meanwhile
            raise not_found(video_id)
        return await self.describe(job)

    async def finished(self, job: StoredJob, variant: str) -> Path:
        """A file of what was made of a video that is over; raises ApiError 409 before that."""
        if not job.is_finished or not job.chunks:
            message = f"video {job.id} is {wire_status(job)} and has no content"
            raise ApiError(409, message, code="not_ready")
        return await asyncio.to_thread(self.files.get, job, variant)

    async def delete(self, job: StoredJob) -> None:
        """End it if it is being made, and forget it with all its files."""
        await self.engine.abort(job.id)
        await asyncio.to_thread(self.files.delete, job.id)
        await asyncio.to_thread(self.store.delete, job.id)

    async def wait_for(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for an event with a timeout; returns whether it was set in time."""
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return False
        return True
