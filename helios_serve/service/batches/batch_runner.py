"""Runs batches: submits their videos, waits for them, and writes the results."""

import asyncio
import hashlib
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from helios_serve.errors import (
    CapacityError,
    CheckpointError,
    HeliosError,
    InvalidRequestError,
    RequestFailedError,
)
from helios_serve.logger import logger
from helios_serve.service.batches.batch_line import BatchLine, LineSpan, check_file, read_line
from helios_serve.service.errors import ApiError, as_api_error
from helios_serve.service.ids import cell_of, join
from helios_serve.service.protocol import (
    BatchLineError,
    BatchLineResponse,
    BatchOutputLine,
    ErrorBody,
    Video,
)
from helios_serve.service.videos.request_builder import RequestBuilder
from helios_serve.service.videos.requests import check_has_end
from helios_serve.service.videos.videos import Videos
from helios_serve.store.batches import BatchStatus, BatchStore, LineError, StoredBatch
from helios_serve.store.files import create_file
from helios_serve.store.service_tables import ServiceTables
from helios_serve.store.user_files import UserFileStore
from helios_serve.video_request import VideoRequest

MAX_IN_FLIGHT = 64
"""Maximum number of submitted videos of one tenant's batches.

It keeps large batches out of the engine's queue. It is per tenant, so that a tenant that is out of
quota does not delay others.
"""
RETRY_SECONDS = 5.0


class BatchRunner:
    """Runs unfinished batches, including those of earlier processes.

    An asynchronous context manager. Each line's video id is derived from the batch's id, and each
    line's result is stored, so no line is generated twice, even if the process is killed.
    """

    def __init__(self, videos: Videos, builder: RequestBuilder, tables: ServiceTables) -> None:
        self.videos = videos
        self.builder = builder
        self.batches: BatchStore = tables.batches
        self.files: UserFileStore = tables.files
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(MAX_IN_FLIGHT)
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> "BatchRunner":
        for batch in await asyncio.to_thread(self.batches.open):
            self.start(batch.id)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop. The next process resumes unfinished batches."""
        await cancel_tasks(self._tasks.values())

    def start(self, batch_id: str) -> None:
        """Run a stored batch in the background until it is finished."""
        task = asyncio.create_task(self._run(batch_id), name=f"batch {batch_id}")
        self._tasks[batch_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(batch_id, None))

    async def cancel(self, batch: StoredBatch) -> StoredBatch:
        """Cancel a batch and keep its results. A finished batch is returned unchanged."""
        task = self._tasks.pop(batch.id, None)
        if task is None:
            return batch
        await cancel_tasks([task])
        current = await self._stored(batch.id)
        if current.status not in ("validating", "in_progress"):
            self.start(batch.id)
            return current
        cancelling = await self._save(current.at("cancelling", time.time()))
        self.start(batch.id)
        return cancelling

    async def _run(self, batch_id: str) -> None:
        """Run a batch to its end.

        Disk and worker errors are retried until it expires or is cancelled.
        """
        while True:
            try:
                await self._advance(await self._stored(batch_id))
                return
            except* HeliosError as group:
                logger.error("batch %s failed, retrying: %s", batch_id, group.exceptions[0])
            except* Exception as group:
                logger.error("batch %s failed, retrying", batch_id, exc_info=group)
            await asyncio.sleep(RETRY_SECONDS)

    async def _advance(self, batch: StoredBatch) -> None:
        if batch.status in ("validating", "in_progress"):
            batch = await self._make_in_time(batch)
        if batch.status in ("cancelling", "finalizing"):
            await self._finalize(batch)

    async def _make_in_time(self, batch: StoredBatch) -> StoredBatch:
        try:
            async with asyncio.timeout(max(0.0, batch.expires_at - time.time())):
                return await self._make(batch)
        except TimeoutError:
            current = await self._stored(batch.id)
            return await self._save(current.at("cancelling", time.time()))

    async def _make(self, batch: StoredBatch) -> StoredBatch:
        """Check the lines and generate their videos. Return the batch, finalizing or failed."""
        path = self.files.path(batch.input_file_id)
        try:
            spans, errors = await asyncio.to_thread(check_file, path)
        except FileNotFoundError:
            message = f"input file {batch.input_file_id!r} was deleted"
            spans, errors = [], [LineError("file_not_found", message)]
        if errors:
            return await self._save(batch.at("failed", time.time(), errors=tuple(errors)))
        if batch.status == "validating":
            batch = await self._save(batch.at("in_progress", time.time(), total=len(spans)))
        done = await asyncio.to_thread(self.batches.recorded_lines, batch.id)
        async with asyncio.TaskGroup() as group:
            for span in spans:
                if span.number not in done:
                    await self._slots[batch.tenant].acquire()
                    group.create_task(self._make_line(batch, path, span))
        return await self._save(batch.at("finalizing", time.time()))

    async def _make_line(self, batch: StoredBatch, path: Path, span: LineSpan) -> None:
        """Generate one line's video and store its result.

        Releases the slot that the caller acquired.
        """
        try:
            line = await asyncio.to_thread(read_line, path, span)
            name = line_id(batch.id, span.number)
            try:
                video = await self._make_video(batch, name, line)
                output = video_result(name, line, video)
            except Exception as error:
                if is_temporary(error):
                    raise
                output = rejected_result(name, line, as_api_error(error))
            await asyncio.to_thread(
                self.batches.record_line,
                batch.id,
                span.number,
                msgspec.json.encode(output),
                is_good=output.error is None,
            )
        finally:
            self._slots[batch.tenant].release()

    async def _make_video(self, batch: StoredBatch, name: str, line: BatchLine) -> Video:
        """Submit a line's video, unless an earlier process has, and wait until it is finished."""
        if await asyncio.to_thread(self.videos.store.job, name) is None:
            tier = self.videos.engine.models.tenant(batch.tenant).tier_like("flex")
            asked = await self.builder.make({"service_tier": tier} | line.body, batch.tenant)
            check_has_end(asked, "a batch")
            await self._submit(msgspec.structs.replace(asked, request_id=name))
        while True:
            await self.videos.engine.wait(name)
            video = await self.videos.describe_id(name)
            if video.status in ("completed", "failed"):
                return video
            await asyncio.sleep(RETRY_SECONDS)  # its model or the disk is unavailable for now

    async def _submit(self, asked: VideoRequest) -> None:
        """Submit a request, and wait while the engine has no capacity."""
        while True:
            try:
                await self.videos.engine.submit(asked)
                return
            except CapacityError as error:
                await asyncio.sleep(min(error.retry_after, RETRY_SECONDS))

    async def _finalize(self, batch: StoredBatch) -> None:
        """Write the result files. Videos of a cancelled or expired batch are aborted first."""
        was_cut = batch.status == "cancelling"
        if was_cut:
            await self._end_videos(batch)
        files = {}
        for kind, are_good in (("output", True), ("error", False)):
            files[f"{kind}_file_id"] = await asyncio.to_thread(self._write, batch, kind, are_good)
        end: BatchStatus = "completed"
        if was_cut:
            end = "expired" if time.time() >= batch.expires_at else "cancelled"
        await self._save(batch.at(end, time.time(), **files))

    async def _end_videos(self, batch: StoredBatch) -> None:
        path, done = self.files.path(batch.input_file_id), self.batches.recorded_lines(batch.id)
        with suppress(FileNotFoundError):
            for span in (await asyncio.to_thread(check_file, path)).spans:
                if span.number not in done:
                    await self.videos.engine.abort(line_id(batch.id, span.number))

    def _write(self, batch: StoredBatch, kind: str, are_good: bool) -> str | None:
        """Write a result file. Return its id, or None if there are no results."""
        file_id = join("file", cell_of(batch.id), digest(batch.id, kind))
        lines = 0
        with create_file(self.files.scratch(file_id)) as file:
            for data in self.batches.results(batch.id, are_good=are_good):
                file.write(data + b"\n")
                lines += 1
        if not lines:
            self.files.scratch(file_id).unlink()
            return None
        self.files.add(file_id, batch.tenant, f"{batch.id}_{kind}.jsonl", "batch_output")
        return file_id

    async def _stored(self, batch_id: str) -> StoredBatch:
        batch = await asyncio.to_thread(self.batches.get, batch_id)
        assert batch is not None, f"{batch_id} is missing: batches are never deleted"
        return batch

    async def _save(self, batch: StoredBatch) -> StoredBatch:
        await asyncio.to_thread(self.batches.save, batch)
        return batch


def is_temporary(error: Exception) -> bool:
    """Return whether an error is one of the server or the disk, after which a line is retried.

    Any other error, expected or not, is the result of its line: other lines are not affected.
    """
    permanent = (InvalidRequestError, CheckpointError, RequestFailedError)
    return isinstance(error, HeliosError | OSError | sqlite3.Error) and not isinstance(
        error, permanent
    )


async def cancel_tasks(tasks: Iterable["asyncio.Task[None]"]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]


def line_id(batch_id: str, line: int) -> str:
    """Return the video id of a line, the same in every process and in the batch's cell."""
    return join("video", cell_of(batch_id), digest(batch_id, str(line)))


def video_result(name: str, line: BatchLine, video: Video) -> BatchOutputLine:
    """Return the result of a finished video."""
    error = None
    if video.status != "completed":
        assert video.error is not None, f"{video.id} is {video.status} without an error"
        error = BatchLineError(video.error.code, video.error.message)
    return BatchOutputLine(name, line.custom_id, BatchLineResponse(200, name, video), error)


def rejected_result(name: str, line: BatchLine, error: ApiError) -> BatchOutputLine:
    """Return the result of a rejected request."""
    response = BatchLineResponse(error.status, name, ErrorBody(error.detail))
    line_error = BatchLineError(error.detail.code, error.detail.message)
    return BatchOutputLine(name, line.custom_id, response, line_error)
