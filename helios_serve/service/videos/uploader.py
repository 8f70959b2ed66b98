"""Uploads videos to an object store after they are stored here, and deletes their objects."""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

from helios_serve.errors import public_message
from helios_serve.logger import logger
from helios_serve.metrics import Metrics
from helios_serve.service.videos.finished_files import FinishedFiles
from helios_serve.store.job_files import folder_name
from helios_serve.store.jobs import StoredJob
from helios_serve.store.objects.object_store import ObjectStoreError
from helios_serve.store.objects.uploads import PendingObjects, VideoUpload
from helios_serve.store.objects.video_objects import Part, VideoObjects, media_type_of, name_of
from helios_serve.store.video_store import VideoStore

POLL_SECONDS = 0.25
FIRST_DELAY, MAX_DELAY = 1.0, 300.0
"""Seconds before the first retry and between late ones. Each delay is twice the one before."""
JITTER = 0.2
"""Maximum random extension of a delay, as a fraction, so that retries do not come all at once."""
MAX_AT_ONCE = 8
"""Videos that are uploaded or deleted at the same time."""


class Uploader:
    """Brings the objects of videos up to date, including those of earlier processes.

    An asynchronous context manager. What is under way at its end is repeated by the next process.
    Nothing is given up: failed uploads and deletions are tried again until they succeed.

    Args:
        videos: The objects.
        store: The local copies.
        files: Makes the MP4s of finished videos.
        metrics: Counts bytes and failures.
        clock: Returns Unix seconds.
    """

    def __init__(
        self,
        videos: VideoObjects,
        store: VideoStore,
        files: FinishedFiles,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.videos = videos
        self.objects, self.uploads = videos.objects, videos.uploads
        self.store = store
        self.files = files
        self.metrics = metrics.objects
        self.clock = clock
        self.last_error: str | None = None
        self._working: dict[str, asyncio.Task[None]] = {}
        self._runner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Uploader":
        self._runner = asyncio.create_task(self._run(), name="uploads")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        tasks = (self._runner, *self._working.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def pending(self) -> PendingObjects:
        """Return how many videos wait for uploads and deletions, and set their gauges."""
        pending = await asyncio.to_thread(self.uploads.pending)
        self.metrics.pending.labels("upload").set(pending.uploads)
        self.metrics.pending.labels("delete").set(pending.deletions)
        return pending

    async def _run(self) -> None:
        """Poll the table: jobs change in any thread."""
        while True:
            try:
                await self._start_due()
            except Exception as error:  # such as a full disk: the next poll may succeed
                logger.error("cannot read the table of uploads", exc_info=error)
            await asyncio.sleep(POLL_SECONDS)

    async def _start_due(self) -> None:
        """Start on videos until none is due or enough are under way."""
        while (room := MAX_AT_ONCE - len(self._working)) > 0:
            due = await asyncio.to_thread(self.uploads.due, room, exclude=tuple(self._working))
            for upload in due:
                self._working[upload.video_id] = asyncio.create_task(self._try(upload))
            if not due:
                return
        await asyncio.wait(self._working.values(), return_when=asyncio.FIRST_COMPLETED)

    async def _try(self, upload: VideoUpload) -> None:
        """Do what is due for a video, or schedule the next attempt."""
        try:
            try:
                await self._bring_up_to_date(upload)
            except Exception as error:
                await self._postpone(upload, error)
            else:
                self.last_error = None
        except Exception as error:  # of the disk: the row stays due
            logger.error("cannot store the state of an upload", exc_info=error)
            await asyncio.sleep(FIRST_DELAY)
        finally:
            del self._working[upload.video_id]

    async def _postpone(self, upload: VideoUpload, error: Exception) -> None:
        work = "delete" if upload.is_deleted else "upload"
        delay = min(MAX_DELAY, FIRST_DELAY * 2 ** min(upload.attempts, 20))
        delay *= random.uniform(1, 1 + JITTER)
        self.last_error = public_message(error)
        self.metrics.failures.labels(work).inc()
        logger.warning(
            "cannot %s the objects of video %s, retrying in %.0f s: %s",
            *(work, upload.video_id, delay, error),
        )
        await asyncio.to_thread(self.uploads.postpone, upload, self.clock() + delay)

    async def _bring_up_to_date(self, upload: VideoUpload) -> None:
        """Upload what is stored here and not there, and delete what is not to be there."""
        if upload.is_deleted:
            await self.objects.delete_folder(folder_name(upload.video_id))
            await asyncio.to_thread(self.uploads.forget, upload.video_id)
            return
        job = await asyncio.to_thread(self.store.job, upload.video_id)
        if job is None:  # deleted meanwhile, or set aside because its row is damaged
            await asyncio.to_thread(self.uploads.rest, upload)
            return
        await self._put_segments(job, upload)
        await self._delete_old(job, upload)
        if job.is_finished and job.chunks:
            if not upload.has_video:
                await self._put_video(job)
            if self.videos.options.object_store_drop_local or upload.is_dropped:
                await self._drop(job, upload)
        await asyncio.to_thread(self.uploads.rest, upload)

    async def _put_segments(self, job: StoredJob, upload: VideoUpload) -> None:
        """Upload the segments that are not uploaded, and before the first one the header."""
        stored = upload.next_chunk
        for chunk in range(max(stored, job.first_chunk), job.next_chunk):
            if stored <= job.first_chunk:
                header = await asyncio.to_thread(self.store.header, job.id)
                await self._put(job, "header", header)
            fragment = await asyncio.to_thread(self.store.fragment, job.id, chunk)
            if fragment is not None:  # else it has left the window of a video without an end
                await self._put(job, chunk, fragment)
            await asyncio.to_thread(self.uploads.add_chunk, job.id, chunk, before=stored)
            stored = chunk + 1

    async def _put_video(self, job: StoredJob) -> None:
        """Upload the finished MP4, which is then not kept here: it can be made again."""
        path = await asyncio.to_thread(self.files.get, job, "video")
        await self._put(job, "video", path)
        await asyncio.to_thread(self.uploads.add_video, job.id)
        await asyncio.to_thread(self.files.delete, job.id)

    async def _put(self, job: StoredJob, part: Part, data: bytes | Path | None) -> None:
        if data is not None:
            size = await self.objects.put(name_of(job.id, part), data, media_type_of(part))
            self.metrics.bytes.inc(size)

    async def _delete_old(self, job: StoredJob, upload: VideoUpload) -> None:
        """Delete the segments that have left the window of a video without an end."""
        if upload.first_chunk < job.first_chunk:
            for chunk in range(upload.first_chunk, job.first_chunk):
                await self.objects.delete(name_of(job.id, chunk))
            await asyncio.to_thread(self.uploads.remove_before, job.id, job.first_chunk)

    async def _drop(self, job: StoredJob, upload: VideoUpload) -> None:
        """Delete the local segments of a finished video after its objects were read back.

        If one is missing or damaged, all are uploaded again.
        """
        if not upload.is_dropped:
            parts: list[Part] = ["video", "header", *job.chunks]
            for part in parts:
                if not await self._is_same(job, part):
                    await asyncio.to_thread(self.uploads.start_again, job.id)
                    raise ObjectStoreError(
                        f"{name_of(job.id, part)} of {self.objects.url} is missing or damaged: "
                        "the video is uploaded again"
                    )
        await asyncio.to_thread(self._drop_local, job.id)

    async def _is_same(self, job: StoredJob, part: Part) -> bool:
        """Read an object back, and compare it with the local copy.

        The MP4, which is not kept here, is compared with its checksum.
        """
        match part:
            case "video":
                data = None
            case "header":
                data = await asyncio.to_thread(self.store.header, job.id)
            case chunk:
                data = await asyncio.to_thread(self.store.fragment, job.id, chunk)
        return await self.objects.is_whole(name_of(job.id, part), data)

    def _drop_local(self, video_id: str) -> None:
        with self.store.lock(video_id):
            self.uploads.drop(video_id)
            self.store.files.segments.delete(video_id)
        self.files.delete(video_id)
