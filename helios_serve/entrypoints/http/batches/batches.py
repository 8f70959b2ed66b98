"""Routes of batches."""

import asyncio
import time

from starlette.requests import Request
from starlette.responses import Response

from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.batches.files import FileApi
from helios_serve.entrypoints.http.bodies import read_body
from helios_serve.entrypoints.http.operations import LIMIT, TEXT, Operation, RequestBody
from helios_serve.entrypoints.http.queries import page_query
from helios_serve.entrypoints.http.responses import json_response, page_response
from helios_serve.errors import InvalidRequestError
from helios_serve.service.batches.batch_runner import BatchRunner
from helios_serve.service.protocol import (
    Batch,
    BatchCounts,
    BatchErrors,
    BatchList,
    CreateBatch,
)
from helios_serve.service.validation import convert
from helios_serve.store.batches import BatchStatus, StoredBatch
from helios_serve.store.disk import Disk

BATCH = "/v1/batches/{batch_id}"
WINDOW = 24 * 3600.0
"""Seconds after which an unfinished batch expires."""


class BatchApi:
    """Handlers for the tenant's batches."""

    def __init__(self, runner: BatchRunner, files: FileApi, disk: Disk) -> None:
        self.disk = disk
        self.runner = runner
        self.batches = runner.batches
        self.files = files
        self.ids = files.ids

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST",
                "/v1/batches",
                self.create,
                "Create a batch: one video for each line of a file",
                Batch,
                RequestBody(CreateBatch),
                statuses=(400, 404, 413, 415, 507),
            ),
            Operation(
                "GET",
                "/v1/batches",
                self.list_page,
                "List your batches, newest first",
                BatchList,
                query={"after": TEXT, "limit": LIMIT},
            ),
            Operation("GET", BATCH, self.retrieve, "Retrieve a batch", Batch),
            Operation(
                "POST", f"{BATCH}/cancel", self.cancel, "Cancel a batch and keep its results", Batch
            ),
        )

    async def create(self, request: Request) -> Response:
        """Create a batch that generates a video for each line of an uploaded file."""
        body = convert(await read_body(request), CreateBatch)
        file = await self.files.find(body.input_file_id, request)
        if file.purpose != "batch":
            raise InvalidRequestError(
                f"got a file with purpose {file.purpose!r}, expected 'batch'",
                param="input_file_id",
            )
        await asyncio.to_thread(self.disk.check_room)
        now = time.time()
        batch = StoredBatch(
            id=self.ids.new("batch"),
            tenant=tenant_of(request),
            input_file_id=file.id,
            endpoint=body.endpoint,
            completion_window=body.completion_window,
            created_at=now,
            expires_at=now + WINDOW,
            metadata=body.metadata,
        )
        await asyncio.to_thread(self.batches.add, batch)
        self.runner.start(batch.id)
        return json_response(await self._describe(batch))

    async def list_page(self, request: Request) -> Response:
        """List the tenant's batches, newest first."""
        query = page_query(request)
        if query.after is not None:
            await self._find(query.after, request)
        batches = await asyncio.to_thread(
            self.batches.page, tenant_of(request), query.after, query.limit + 1
        )
        shown = [await self._describe(batch) for batch in batches[: query.limit]]
        return page_response(BatchList, shown, has_more=len(batches) > query.limit)

    async def retrieve(self, request: Request) -> Response:
        """Return a batch. Raises ApiError 404 if there is none."""
        batch = await self._find(request.path_params["batch_id"], request)
        return json_response(await self._describe(batch))

    async def cancel(self, request: Request) -> Response:
        """Cancel a batch and keep its results. A finished batch is not changed."""
        batch = await self._find(request.path_params["batch_id"], request)
        return json_response(await self._describe(await self.runner.cancel(batch)))

    async def _find(self, batch_id: str, request: Request) -> StoredBatch:
        batch = await asyncio.to_thread(self.batches.get, batch_id)
        if batch is None or batch.tenant != tenant_of(request):
            raise self.ids.missing(batch_id, "batch")
        return batch

    async def _describe(self, batch: StoredBatch) -> Batch:
        completed, failed = await asyncio.to_thread(self.batches.counts, batch.id)
        return batch_object(batch, BatchCounts(batch.total, completed, failed))


def batch_object(batch: StoredBatch, counts: BatchCounts) -> Batch:
    """Return a stored batch as an API batch."""

    def reached(status: BatchStatus) -> int | None:
        return int(batch.reached[status]) if status in batch.reached else None

    return Batch(
        id=batch.id,
        endpoint=batch.endpoint,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status,
        errors=BatchErrors(data=batch.errors) if batch.errors else None,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=int(batch.created_at),
        in_progress_at=reached("in_progress"),
        finalizing_at=reached("finalizing"),
        completed_at=reached("completed"),
        failed_at=reached("failed"),
        expires_at=int(batch.expires_at),
        expired_at=reached("expired"),
        cancelling_at=reached("cancelling"),
        cancelled_at=reached("cancelled"),
        request_counts=counts,
        metadata=batch.metadata,
    )
