"""Resolves reference inputs (uploads, data: URLs, URLs and file ids) to decoded frames."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from helios_serve.errors import InvalidRequestError
from helios_serve.media.decode_job import MediaKind
from helios_serve.media.decoder_pool import DecoderPool
from helios_serve.media.references import Reference
from helios_serve.service.media.data_urls import write_data_url
from helios_serve.service.media.uploads import Upload
from helios_serve.service.outbound.outbound import Outbound, OutboundError
from helios_serve.service.outbound.urls import AllowedDomains
from helios_serve.store.files import create_file, storage_errors

PIECE = 1 << 20
"""Bytes written at a time."""
MAX_NAME = 100
MAX_FETCHED = 256 << 20
"""Maximum size in bytes of a reference fetched by URL."""
FETCH_SECONDS = 30.0
MAX_FETCHES = 8
"""Maximum number of concurrent fetches. Further ones wait."""
MEDIA_FLAG = "--allowed-media-domains"
KINDS: dict[str, MediaKind] = {"image_url": "image", "video_url": "video"}

Reserve = Callable[[int], AbstractContextManager[None]]
"""Reserves room for a number of bytes that are written in the context; raises StorageError."""
FindFile = Callable[[str, str], Awaitable[Path | None]]
"""Maps a tenant and a file id to the file's path, or to None if there is no such file."""


class ReferenceInput(NamedTuple):
    """A reference as the client sent it.

    `field` is the request field that errors name. `kind` is the required media kind; None accepts
    both images and videos.
    """

    source: "Upload | Path | Any"
    field: str = "input_reference"
    kind: MediaKind | None = None


class ReferenceFile(NamedTuple):
    """A reference on disk, and the name by which error messages call it."""

    path: Path
    name: str
    kind: MediaKind | None


class References:
    """Reads references, and decodes them in separate processes. An asynchronous context manager.

    Args:
        incoming: Folder for temporary files. Nothing else may use it.
        outbound: Fetches references by URL. By default, no host is allowed.
        find_file: Finds references by file id. By default, file ids are rejected.
        pool: The decoder processes.
        reserve: Reserves room on the disk. By default, there is always room.
    """

    def __init__(
        self,
        incoming: Path,
        *,
        outbound: Outbound | None = None,
        find_file: FindFile | None = None,
        pool: DecoderPool | None = None,
        reserve: Reserve = lambda _: nullcontext(),
    ) -> None:
        self.pool = pool or DecoderPool(incoming)
        self.outbound = outbound or media_outbound(())
        self.find_file = find_file
        self.reserve = reserve
        self._fetches = asyncio.Semaphore(MAX_FETCHES)

    async def __aenter__(self) -> "References":
        await self.pool.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.pool.__aexit__(kind, error, trace)

    async def read(
        self, given: ReferenceInput, tenant: str, *, width: int, height: int
    ) -> Reference:
        """Return a reference's frames at `width` x `height` pixels.

        Raises InvalidRequestError, which names the field, or CapacityError if too many references
        are waiting to be decoded.
        """
        async with self._file(given, tenant) as (path, name, kind):
            return await self.pool.decode(
                path, width=width, height=height, kind=kind, name=name, param=given.field
            )

    @asynccontextmanager
    async def _file(self, given: ReferenceInput, tenant: str) -> AsyncIterator[ReferenceFile]:
        """Yield the reference as a file. Uploads and fetched files are deleted on exit."""
        source, field, kind = given
        if isinstance(source, Path):
            yield ReferenceFile(source, source.name, kind)
            return
        with storage_errors("make a folder in", self.pool.folder):
            scratch = tempfile.TemporaryDirectory(dir=self.pool.folder, prefix="media-")
        with scratch as folder:
            path = Path(folder) / "media"
            if isinstance(source, Upload):
                with self.reserve(await source.size()):
                    await save(source, path)
                yield ReferenceFile(path, name_of(source), kind or declared_kind(source))
                return
            key, value = only_entry(source, field, self.find_file is not None)
            if key == "file_id":
                assert self.find_file is not None
                found = await self.find_file(tenant, value)
                if found is None:
                    raise invalid_reference(f"file {value[:MAX_NAME]!r} not found", field)
                yield ReferenceFile(found, value[:MAX_NAME], kind)
                return
            if kind not in (None, KINDS[key]):
                raise invalid_reference(f"got {key}, expected {kind}_url", field)
            await self._load(value, path, field)
            yield ReferenceFile(path, key, KINDS[key])

    async def _load(self, url: str, path: Path, field: str) -> None:
        if url[:5].lower() == "data:":
            try:
                # Decoded data is shorter than the URL.
                with self.reserve(len(url)), storage_errors("write", path):
                    await asyncio.to_thread(write_data_url, url, path)
            except ValueError as error:
                raise invalid_reference(str(error), field) from error
            return
        try:
            async with self._fetches:
                await self._fetch(url, path)
        except OutboundError as error:
            raise invalid_reference(str(error), field) from error

    async def _fetch(self, url: str, path: Path) -> None:
        target, accept = self.outbound.parse(url), [("accept", "image/*, video/*")]
        async with self.outbound.request("GET", target, accept, seconds=FETCH_SECONDS) as response:
            if response.status != 200:
                raise OutboundError(
                    f"got status {response.status} from {target.host}, expected 200"
                )
            if response.headers.get("content-encoding", "identity") != "identity":
                raise OutboundError(
                    f"got a compressed response from {target.host}, expected no content-encoding"
                )
            too_large = OutboundError(
                f"response from {target.host} is too large, expected at most {MAX_FETCHED} bytes"
            )
            length = response.headers.get("content-length", "0")
            if int(length) > MAX_FETCHED:
                raise too_large
            room = self.reserve(int(length) or MAX_FETCHED)
            with room, storage_errors("write", path), create_file(path) as file:
                async for piece in response.pieces():
                    if file.tell() + len(piece) > MAX_FETCHED:
                        raise too_large
                    await asyncio.to_thread(file.write, piece)


def media_outbound(patterns: tuple[str, ...]) -> Outbound:
    """Return an Outbound that is limited to the hosts of `--allowed-media-domains`.

    Raises ValueError for an invalid pattern.
    """
    return Outbound(AllowedDomains(patterns, MEDIA_FLAG), ("https", "http"))


async def save(upload: Upload, path: Path) -> None:
    with storage_errors("write", path), create_file(path) as file:
        while piece := await upload.read(PIECE):
            await asyncio.to_thread(file.write, piece)


def name_of(upload: Upload) -> str:
    """Return the client's name of an upload, shortened. It is for messages only, never a path."""
    return (upload.filename or "upload")[:MAX_NAME]


def declared_kind(upload: Upload) -> MediaKind | None:
    """Return the media kind of an upload's declared content type, or None."""
    kind = (upload.content_type or "").partition("/")[0]
    return kind if kind in ("image", "video") else None  # type: ignore[return-value]


def only_entry(source: Any, field: str, takes_ids: bool) -> tuple[str, str]:
    """Return the single key and value of a reference in JSON, such as `{"image_url": URL}`.

    Raises InvalidRequestError for anything else.
    """
    keys = (*KINDS, "file_id") if takes_ids else tuple(KINDS)
    expected = f"expected a file, or an object with exactly one of: {', '.join(keys)}"
    if not isinstance(source, dict):
        raise invalid_reference(f"got {field} of type {type(source).__name__}, {expected}", field)
    if len(source) != 1 or (key := next(iter(source))) not in keys:
        got = ", ".join(str(key)[:20] for key in source)[:MAX_NAME]
        raise invalid_reference(f"got {field} with keys ({got}), {expected}", field)
    value = source[key]
    if not isinstance(value, str):
        raise invalid_reference(
            f"got {key} of type {type(value).__name__}, expected a string", field
        )
    return key, value


def invalid_reference(message: str, field: str) -> InvalidRequestError:
    return InvalidRequestError(message, param=field)
