"""Reference images and videos that came with a request, as frames of the video's size."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.datastructures import UploadFile

from helios_serve.errors import InvalidRequestError
from helios_serve.media.references import load_image, load_video
from helios_serve.sampling_params import Frames

PIECE = 1 << 20


@asynccontextmanager
async def stored(upload: UploadFile) -> AsyncIterator[Path]:
    """The upload as a file under a name of our own; gone when the context is left."""
    with tempfile.TemporaryDirectory(prefix="helios-upload-") as folder:
        path = Path(folder) / "upload"
        with path.open("wb") as file:
            while piece := await upload.read(PIECE):
                await asyncio.to_thread(file.write, piece)
        yield path


async def read_reference(
    upload: UploadFile, field: str, *, width: int, height: int
) -> tuple[Frames | None, Frames | None]:
    """(image, video), of which one is given; raises InvalidRequestError about `field`."""
    async with stored(upload) as path:
        name = upload.filename or "upload"
        is_video = (upload.content_type or "").startswith("video/")
        try:
            if is_video:
                return None, await asyncio.to_thread(load_video, path, width=width, height=height)
            return await asyncio.to_thread(load_image, path, width=width, height=height), None
        except InvalidRequestError as error:
            if not is_video and not (upload.content_type or "").startswith("image/"):
                return None, await read_unknown(path, name, field, width, height)
            raise renamed(error, path, name, field) from error


async def read_unknown(path: Path, name: str, field: str, width: int, height: int) -> Frames:
    """A file that does not say what it is, and is no image: it may be a video."""
    try:
        return await asyncio.to_thread(load_video, path, width=width, height=height)
    except InvalidRequestError as error:
        raise renamed(error, path, name, field) from error


def renamed(error: InvalidRequestError, path: Path, name: str, field: str) -> InvalidRequestError:
    """The same error in terms of what the client knows."""
    return InvalidRequestError(str(error).replace(str(path), name), param=field)
