"""The routes of files: what batches are read from and written to."""

import asyncio
import secrets
from pathlib import Path

from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, Response

from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.bodies import read_body
from helios_serve.entrypoints.http.operations import LIMIT, PAGE, TEXT, Operation, RequestBody
from helios_serve.entrypoints.http.queries import page_query
from helios_serve.entrypoints.http.responses import json_response, page_response
from helios_serve.errors import InvalidRequestError
from helios_serve.service.errors import ApiError
from helios_serve.service.media.uploads import Upload
from helios_serve.service.protocol import FileDeleted, FileList, FileObject
from helios_serve.store.files import storage_errors
from helios_serve.store.user_files import UserFile, UserFileStore

FILE = "/v1/files/{file_id}"
CONTENT_TYPE = "application/octet-stream"
PURPOSES = ("batch", "user_data", "vision")
"""What an upload may be for: the lines of a batch, or a reference of a video."""
MAX_NAME = 255
MAX_PAGE = 10_000
PIECE = 1 << 20


class FileApi:
    """Handlers over the sender's files."""

    def __init__(self, files: UserFileStore) -> None:
        self.files = files

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST",
                "/v1/files",
                self.create,
                "Upload a file: the lines of a batch, or a reference",
                FileObject,
                RequestBody(None, ("file",), ("purpose",), ("file", "purpose")),
                statuses=(400, 413, 415, 507),
            ),
            Operation(
                "GET",
                "/v1/files",
                self.list_page,
                "List your files, page by page",
                FileList,
                query=PAGE | {"limit": LIMIT | {"maximum": MAX_PAGE}, "purpose": TEXT},
            ),
            Operation("GET", FILE, self.retrieve, "Retrieve a file's name and size", FileObject),
            Operation("DELETE", FILE, self.delete, "Delete a file", FileDeleted),
            Operation("GET", f"{FILE}/content", self.content, "Download a file", CONTENT_TYPE),
        )

    async def create(self, request: Request) -> Response:
        """Keep an uploaded file."""
        fields = await read_body(request)
        upload, purpose = fields.get("file"), fields.get("purpose")
        if not isinstance(upload, Upload):
            raise InvalidRequestError("got no file, expected a form with one", param="file")
        if purpose not in PURPOSES:
            raise InvalidRequestError(
                f"got purpose {purpose!r}, expected one of: {', '.join(PURPOSES)}", param="purpose"
            )
        file_id = f"file-{secrets.token_hex(16)}"
        name = (upload.filename or "upload").rpartition("/")[2][-MAX_NAME:]
        try:
            await self._write(file_id, upload)
            stored = await asyncio.to_thread(
                self.files.add, file_id, tenant_of(request), name, purpose
            )
        finally:
            self.files.scratch(file_id).unlink(missing_ok=True)
        return json_response(file_object(stored))

    async def list_page(self, request: Request) -> Response:
        """Newest first, or `order=asc`; `purpose` narrows them down."""
        query = page_query(request, default=MAX_PAGE, most=MAX_PAGE)
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
        return json_response(file_object(await self.find(request.path_params["file_id"], request)))

    async def delete(self, request: Request) -> Response:
        file = await self.find(request.path_params["file_id"], request)
        await asyncio.to_thread(self.files.delete, file.id)
        return json_response(FileDeleted(id=file.id))

    async def content(self, request: Request) -> Response:
        """The bytes that were uploaded."""
        file = await self.find(request.path_params["file_id"], request)
        return FileResponse(
            self.files.path(file.id), media_type=CONTENT_TYPE, filename=file.filename
        )

    async def find(self, file_id: str, connection: HTTPConnection) -> UserFile:
        """A file of the sender's; to others there is none: raises ApiError 404."""
        file = await asyncio.to_thread(self.files.get, file_id)
        if file is None or file.tenant != tenant_of(connection):
            raise ApiError(404, f"got file {file_id!r}, which does not exist", code="not_found")
        return file

    async def path_of(self, tenant: str, file_id: str) -> Path | None:
        """What is in a file of the tenant's; None if there is none."""
        file = await asyncio.to_thread(self.files.get, file_id)
        return None if file is None or file.tenant != tenant else self.files.path(file.id)

    async def _write(self, file_id: str, upload: Upload) -> None:
        path = self.files.scratch(file_id)
        with storage_errors("write", path), path.open("wb") as file:
            while piece := await upload.read(PIECE):
                await asyncio.to_thread(file.write, piece)


def file_object(file: UserFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.size,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
    )
