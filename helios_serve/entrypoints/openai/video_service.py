"""What the routes do with videos: find the sender's own, and have new ones made."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import HTTPConnection

from helios_serve.engine.async_engine import AsyncEngine
from helios_serve.entrypoints.openai.errors import ApiError, not_found
from helios_serve.entrypoints.openai.finished_files import FinishedFiles
from helios_serve.entrypoints.openai.identity import tenant_of
from helios_serve.entrypoints.openai.lifecycle import Lifecycle
from helios_serve.entrypoints.openai.protocol import Video
from helios_serve.entrypoints.openai.video_object import describe, wire_status
from helios_serve.sampling_params import VideoRequest
from helios_serve.store.disk import Disk
from helios_serve.store.jobs import StoredJob
from helios_serve.store.video_store import VideoStore


class VideoService:
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

    async def find(self, video_id: str, connection: HTTPConnection) -> StoredJob:
        """A video of the sender's; to others there is none: raises ApiError 404."""
        job = await asyncio.to_thread(self.store.job, video_id)
        if job is None or job.tenant != tenant_of(connection):
            raise not_found(video_id)
        return job

    async def accept(self, asked: VideoRequest) -> Video:
        """Store a new video and have it made; raises what `AsyncEngine.submit` does, and
        StorageError if there is no room for it."""
        self.lifecycle.check_open()
        await asyncio.to_thread(self.disk.check_room)
        if asked.relation == "extension" and asked.parent is not None:
            await self.engine.extend(asked.parent, asked)
        else:
            await self.engine.submit(asked)
        return await self.describe_id(asked.request_id)

    async def describe(self, job: StoredJob) -> Video:
        return describe(job, await self.engine.progress(job.id), self.retention)

    async def describe_all(self, jobs: Sequence[StoredJob]) -> list[Video]:
        """As `describe`; the engine is asked once, since it answers between two of its steps."""
        going = [job.id for job in jobs if not job.is_finished]
        progress = await self.engine.progress_of_all(going)
        return [describe(job, progress.get(job.id), self.retention) for job in jobs]

    async def describe_id(self, video_id: str) -> Video:
        """As `describe`, of one that was just accepted or changed."""
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
