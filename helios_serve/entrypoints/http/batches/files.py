"""Routes of files: batch inputs and outputs, and references."""

import asyncio
from contextlib import suppress
from pathlib import Path

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.bodies import read_body
from helios_serve.entrypoints.http.operations import LIMIT, PAGE, TEXT, Operation, RequestBody
from helios_serve.entrypoints.http.queries import page_query
from helios_serve.entrypoints.http.ranges import StoredFileResponse
from helios_serve.entrypoints.http.responses import json_response, page_response
from helios_serve.errors import InvalidRequestError
from helios_serve.service.ids import Ids
from helios_serve.service.media.uploads import Upload
from helios_serve.service.protocol import FileDeleted, FileList, FileObject
from helios_serve.store.disk import Disk
from helios_serve.store.files import create_file, storage_errors
from helios_serve.store.user_files import UserFile, UserFileStore, check_quota

FILE = "/v1/files/{file_id}"
CONTENT_TYPE = "application/octet-stream"
PURPOSES = ("batch", "user_data", "vision")
"""Accepted purposes of an upload: a batch input, or a reference of videos."""
MAX_NAME = 255
MAX_PAGE = 10_000
PIECE = 1 << 20
"""Bytes written at a time."""


class FileApi:
    """Handlers for the tenant's files."""

    def __init__(self, files: UserFileStore, engine: AsyncEngine, disk: Disk, ids: Ids) -> None:
        self.files = files
        self.engine = engine
        self.disk = disk
        self.ids = ids

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST",
                "/v1/files",
                self.create,
                "Upload a file: a batch input or a reference",
                FileObject,
                RequestBody(None, ("file",), ("purpose",), ("file", "purpose")),
                statuses=(400, 413, 415, 429, 507),
            ),
            Operation(
                "GET",
                "/v1/files",
                self.list_page,
                "List your files",
                FileList,
                query=PAGE | {"limit": LIMIT | {"maximum": MAX_PAGE}, "purpose": TEXT},
            ),
            Operation("GET", FILE, self.retrieve, "Retrieve a file's metadata", FileObject),
            Operation("DELETE", FILE, self.delete, "Delete a file", FileDeleted),
            Operation("GET", f"{FILE}/content", self.content, "Download a file", CONTENT_TYPE),
        )

    async def create(self, request: Request) -> Response:
        """Store an uploaded file."""
        fields = await read_body(request, takes_media=True)
        upload, purpose = fields.get("file"), fields.get("purpose")
        if not isinstance(upload, Upload):
            raise InvalidRequestError("missing file, expected a form with a file", param="file")
        if purpose not in PURPOSES:
            raise InvalidRequestError(
                f"got purpose {purpose!r}, expected one of: {', '.join(PURPOSES)}", param="purpose"
            )
        file_id = self.ids.new("file")
        name = (upload.filename or "upload").rpartition("/")[2][-MAX_NAME:]
        tenant, size = tenant_of(request), await upload.size()
        limit = self.engine.models.tenant(tenant).max_file_bytes
        if limit is not None:
            check_quota(tenant, await asyncio.to_thread(self.files.bytes_of, tenant), size, limit)
        try:
            with self.disk.reserve(size):
                await self._write(file_id, upload)
                stored = await asyncio.to_thread(
                    self.files.add, file_id, tenant, name, purpose, max_bytes=limit
                )
        finally:
            with suppress(OSError):  # the error that led here is the one to report
                self.files.scratch(file_id).unlink()
        return json_response(file_object(stored))

    async def list_page(self, request: Request) -> Response:
        """List the tenant's files, newest first (or `order=asc`), optionally of one `purpose`."""
        query = page_query(request, default=MAX_PAGE, maximum=MAX_PAGE)
        if query.after is not None:
            await self.find(query.after, request)
        files = await asyncio.to_thread(
            self.files.page,
            tenant_of(request),
            query.after,
            query.limit + 1,
            newest_first=query.newest_first,
            purpose=request.query_params.get("purpose"),
        )
        shown = [file_object(file) for file in files[: query.limit]]
        return page_response(FileList, shown, has_more=len(files) > query.limit)

    async def retrieve(self, request: Request) -> Response:
        """Return a file's metadata. Raises ApiError 404 if there is none."""
        return json_response(file_object(await self.find(request.path_params["file_id"], request)))

    async def delete(self, request: Request) -> Response:
        """Delete a file. Raises ApiError 404 if there is none."""
        file = await self.find(request.path_params["file_id"], request)
        await asyncio.to_thread(self.files.delete, file.id)
        return json_response(FileDeleted(id=file.id))

    async def content(self, request: Request) -> Response:
        """Return the file's content."""
        file = await self.find(request.path_params["file_id"], request)
        path = await asyncio.to_thread(self.files.check, file)
        return StoredFileResponse(path, media_type=CONTENT_TYPE, filename=file.filename)

    async def find(self, file_id: str, connection: HTTPConnection) -> UserFile:
        """Return a file of the connection's tenant.

        Raises ApiError 404 for other tenants' files, too.
        """
        file = await asyncio.to_thread(self.files.get, file_id)
        if file is None or file.tenant != tenant_of(connection):
            raise self.ids.missing(file_id, "file")
        return file

    async def path_of(self, tenant: str, file_id: str) -> Path | None:
        """Return the path of a tenant's file, or None if there is no such file."""
        file = await asyncio.to_thread(self.files.get, file_id)
        if file is None or file.tenant != tenant:
            return None
        return await asyncio.to_thread(self.files.check, file)

    async def _write(self, file_id: str, upload: Upload) -> None:
        path = self.files.scratch(file_id)
        with storage_errors("write", path), create_file(path) as file:
            while piece := await upload.read(PIECE):
                await asyncio.to_thread(file.write, piece)


def file_object(file: UserFile) -> FileObject:
    """Return a stored file as an API file."""
    return FileObject(
        id=file.id,
        bytes=file.size,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
    )
