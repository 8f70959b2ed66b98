"""References as clients give them - uploads, data: URLs, URLs, ids - as frames of a video."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from helios_serve.errors import InvalidRequestError
from helios_serve.media.decode_job import MediaKind
from helios_serve.media.decoder_pool import DecoderPool
from helios_serve.media.references import Reference
from helios_serve.service.media.data_urls import decode_data_url
from helios_serve.service.media.uploads import Upload
from helios_serve.service.outbound.outbound import Outbound, OutboundError
from helios_serve.service.outbound.urls import AllowedDomains

PIECE = 1 << 20
MAX_NAME = 100
MAX_FETCHED = 256 << 20
"""Bytes of a reference that the server fetches."""
FETCH_SECONDS = 30.0
MAX_FETCHES = 8
"""At a time; others wait."""
MEDIA_FLAG = "--allowed-media-domains"
KINDS: dict[str, MediaKind] = {"image_url": "image", "video_url": "video"}

FindFile = Callable[[str, str], Awaitable[Path | None]]
"""From tenant and file id to the file, None if there is none."""


class ReferenceInput(NamedTuple):
    """A reference as it came, in the field that errors name.

    None for `kind` lets its content say.
    """

    source: "Upload | Path | Any"
    field: str = "input_reference"
    kind: MediaKind | None = None


class ReferenceFile(NamedTuple):
    """A reference on disk, and what the client knows it by."""

    path: Path
    name: str
    kind: MediaKind | None


class References:
    """Reads references in processes of their own.

    `incoming` is a folder of its own for what is on its way. With `find_file` a reference may be
    the id of a file. An asynchronous context.
    """

    def __init__(
        self,
        incoming: Path,
        *,
        outbound: Outbound | None = None,
        find_file: FindFile | None = None,
        pool: DecoderPool | None = None,
    ) -> None:
        self.pool = pool or DecoderPool(incoming)
        self.outbound = outbound or media_outbound(())
        self.find_file = find_file
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
        """Raises InvalidRequestError naming the field, or CapacityError."""
        async with self._file(given, tenant) as (path, name, kind):
            return await self.pool.decode(
                path, width=width, height=height, kind=kind, name=name, param=given.field
            )

    @asynccontextmanager
    async def _file(self, given: ReferenceInput, tenant: str) -> AsyncIterator[ReferenceFile]:
        """What came is gone when the context is left; what was here before stays."""
        source, field, kind = given
        if isinstance(source, Path):
            yield ReferenceFile(source, source.name, kind)
            return
        with tempfile.TemporaryDirectory(dir=self.pool.folder, prefix="media-") as folder:
            path = Path(folder) / "media"
            if isinstance(source, Upload):
                await save(source, path)
                yield ReferenceFile(path, name_of(source), kind or declared_kind(source))
                return
            key, value = only_entry(source, field, self.find_file is not None)
            if key == "file_id":
                assert self.find_file is not None
                found = await self.find_file(tenant, value)
                if found is None:
                    raise wrong(f"got file {value[:MAX_NAME]!r}, which does not exist", field)
                yield ReferenceFile(found, value[:MAX_NAME], kind)
                return
            if kind not in (None, KINDS[key]):
                raise wrong(f"got {key}, expected {kind}_url", field)
            await self._load(value, path, field)
            yield ReferenceFile(path, key, KINDS[key])

    async def _load(self, url: str, path: Path, field: str) -> None:
        if url[:5].lower() == "data:":
            try:
                await asyncio.to_thread(lambda: path.write_bytes(decode_data_url(url)))
            except ValueError as error:
                raise wrong(str(error), field) from error
            return
        try:
            async with self._fetches:
                await self._fetch(url, path)
        except OutboundError as error:
            raise wrong(str(error), field) from error

    async def _fetch(self, url: str, path: Path) -> None:
        where, accept = self.outbound.parse(url), [("accept", "image/*, video/*")]
        async with self.outbound.request("GET", where, accept, seconds=FETCH_SECONDS) as answer:
            if answer.status != 200:
                raise OutboundError(f"got status {answer.status} of {where.host}, expected 200")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise OutboundError(f"got an answer of {where.host} that is compressed")
            got = f"got an answer of {where.host} of more than {MAX_FETCHED} bytes"
            too_large = OutboundError(f"{got}, expected a smaller one")
            length = answer.headers.get("content-length", "0")
            if int(length) > MAX_FETCHED:
                raise too_large
            with path.open("wb") as file:
                async for piece in answer.pieces():
                    if file.tell() + len(piece) > MAX_FETCHED:
                        raise too_large
                    await asyncio.to_thread(file.write, piece)


def media_outbound(patterns: tuple[str, ...]) -> Outbound:
    """To hosts of `--allowed-media-domains`; raises ValueError."""
    return Outbound(AllowedDomains(patterns, MEDIA_FLAG), ("https", "http"))


async def save(upload: Upload, path: Path) -> None:
    with path.open("wb") as file:
        while piece := await upload.read(PIECE):
            await asyncio.to_thread(file.write, piece)


def name_of(upload: Upload) -> str:
    """What the client calls it; it is never the name of a file here."""
    return (upload.filename or "upload")[:MAX_NAME]


def declared_kind(upload: Upload) -> MediaKind | None:
    """What the client says that it is, if it says so."""
    kind = (upload.content_type or "").partition("/")[0]
    return kind if kind in ("image", "video") else None  # type: ignore[return-value]


def only_entry(source: Any, field: str, takes_ids: bool) -> tuple[str, str]:
    """The one key of a reference in JSON, and its text."""
    keys = (*KINDS, "file_id") if takes_ids else tuple(KINDS)
    expected = f"expected a file, or an object with one of: {', '.join(keys)}"
    if not isinstance(source, dict):
        raise wrong(f"got a {type(source).__name__}, {expected}", field)
    if len(source) != 1 or (key := next(iter(source))) not in keys:
        got = ", ".join(str(key)[:20] for key in source)[:MAX_NAME]
        raise wrong(f"got an object with {got or 'nothing'}, {expected}", field)
    value = source[key]
    if not isinstance(value, str):
        raise wrong(f"got {key} that is a {type(value).__name__}, expected text", field)
    return key, value


def wrong(message: str, field: str) -> InvalidRequestError:
    return InvalidRequestError(message, param=field)
