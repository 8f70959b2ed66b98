"""Periodic maintenance: deletes expired videos and files, measures disk use, and resumes jobs."""

import asyncio
import time

from helios_serve.errors import HeliosError, StorageError
from helios_serve.logger import logger
from helios_serve.service.videos.videos import Videos
from helios_serve.store.disk import Disk
from helios_serve.store.service_tables import ServiceTables

PERIOD = 10.0
"""Seconds between rounds."""


class Housekeeper:
    """An asynchronous context manager that runs maintenance rounds in the background.

    Finished videos and files are deleted after `retention` seconds (None: never). Videos without an
    end are ended after `idle` seconds without a viewer.
    """

    def __init__(
        self,
        videos: Videos,
        tables: ServiceTables,
        disk: Disk,
        retention: float | None,
        *,
        idle: float,
    ) -> None:
        self.videos = videos
        self.tables = tables
        self.disk = disk
        self.retention = retention
        self.idle = idle
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Housekeeper":
        await asyncio.to_thread(self.videos.store.ballast.fill)
        await asyncio.to_thread(self.disk.measure)
        self._task = asyncio.create_task(self._run(), name="housekeeping")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def round(self) -> None:
        """End what nobody watches, delete what has expired, measure disk use, and resume stored
        jobs if there is room.

        Raises StorageError if there is none; then files that can be made again are deleted.
        """
        for video_id in self.videos.engine.unwatched(self.idle):
            logger.info("video %s has no viewer and ends", video_id)
            await self.videos.engine.abort(video_id)
        if self.retention is not None:
            await self._delete_older(time.time() - self.retention)
        await asyncio.to_thread(self._checkpoint)
        await asyncio.to_thread(self.disk.measure)
        try:
            self.disk.check_room()
        except StorageError:
            await asyncio.to_thread(self.videos.files.clear)
            raise
        await self.videos.engine.resume_stored()

    def _checkpoint(self) -> None:
        self.videos.store.ballast.fill()
        self.videos.store.database.checkpoint()
        self.tables.checkpoint()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            try:
                await self.round()
            except HeliosError as error:
                logger.warning("housekeeping: %s", error)
            except Exception as error:  # the next round may succeed
                logger.error("housekeeping failed", exc_info=error)

    async def _delete_older(self, limit: float) -> None:
        for job in await asyncio.to_thread(self.videos.store.ended_before, limit):
            await self.videos.delete(job)
        for file in await asyncio.to_thread(self.tables.files.older_than, limit):
            await asyncio.to_thread(self.tables.files.delete, file.id)
