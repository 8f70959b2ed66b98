"""References of sessions: images and videos as data: URLs."""

import base64
import mimetypes
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.errors import InvalidRequestError

SIZE = (128, 64)
FRAMES = 33


def reference_of(request: SessionRequest) -> dict[str, str] | None:
    """Return the JSON form of a session's reference, or None if it has none.

    For the tasks i2v and v2v without a file, one is generated. Raises InvalidRequestError for a
    file that cannot be read.
    """
    if request.video is not None or (request.task == "v2v" and request.image is None):
        return {"video_url": file_url(request.video) if request.video else made_video()}
    if request.image is not None or request.task == "i2v":
        return {"image_url": file_url(request.image) if request.image else made_image()}
    return None


@lru_cache(maxsize=64)
def file_url(name: str) -> str:
    """Return a file as a data: URL; URLs are returned as they are."""
    if name.startswith(("http://", "https://", "data:")):
        return name
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    try:
        return data_url(kind, Path(name).read_bytes())
    except OSError as error:
        raise InvalidRequestError(
            f"got reference {name}, expected a readable file: {error.strerror}", param="image"
        ) from error


@lru_cache(maxsize=1)
def made_image() -> str:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels(1)[0]).save(buffer, "PNG")
    return data_url("image/png", buffer.getvalue())


@lru_cache(maxsize=1)
def made_video() -> str:
    from helios_serve.media.mp4 import encode_chunk
    from helios_serve.video_request import Frames

    frames = Frames(pixels(FRAMES).tobytes(), FRAMES, SIZE[1], SIZE[0])
    segment = encode_chunk(frames, chunk=0, fps=24)
    return data_url("video/mp4", segment.header + segment.fragment)


def pixels(count: int) -> NDArray[np.uint8]:
    """Return frames with a moving gradient: uint8, (count, height, width, 3)."""
    width, height = SIZE
    across = np.linspace(0, 255, width)[None, None, :, None]
    down = np.linspace(0, 255, height)[None, :, None, None]
    time = 4 * np.arange(count)[:, None, None, None]
    colours: NDArray[np.uint8] = (across + down + time + np.array([0, 60, 120])) % 256
    return colours.astype(np.uint8)


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
