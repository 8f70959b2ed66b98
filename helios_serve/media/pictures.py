"""Converts images and videos in memory to frames, and makes thumbnails of video files."""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from helios_serve.errors import InvalidRequestError
from helios_serve.media.decode_job import MediaKind
from helios_serve.media.image_file import upright
from helios_serve.media.references import TAIL_FRAMES, check_length, fit, load_reference
from helios_serve.media.refusals import refusing
from helios_serve.video_request import Frames

EXPECTED = (
    "a path, a PIL image, an array or tensor (..., height, width, 3) of uint8 or of floats from "
    "0 to 1, or a list of those"
)
SHEET_COLUMNS = 5
SHEET_STILLS = 25
SHEET_WIDTH = 160
"""Width of a still on a spritesheet, in pixels."""


def frames_from(media: Any, kind: MediaKind, *, width: int, height: int) -> Frames:
    """Return an image as one frame, or the ends of a video, scaled and cropped to width x height.

    `media` is a path, a PIL image, an array or tensor (..., height, width, 3) of uint8 or of floats
    from 0 to 1, or a list of those. As in `load_video_ends`, the first frame of a video and its
    last `TAIL_FRAMES` are kept. Raises InvalidRequestError for other media and for videos of fewer
    than 33 frames.
    """
    if isinstance(media, list | tuple) and len(media) == 1 and kind == "image":
        media = media[0]
    if isinstance(media, str | Path):
        return load_reference(Path(media), width=width, height=height, kind=kind).frames
    pictures = list(_pictures(media, kind))
    skipped = 0
    if kind == "image" and len(pictures) != 1:
        raise InvalidRequestError(f"got {len(pictures)} images, expected one", param="image")
    if kind == "video":
        check_length(Path("video"), len(pictures))
        skipped = max(0, len(pictures) - 1 - TAIL_FRAMES)
    kept = [pictures[0], *pictures[1 + skipped :]]
    data = b"".join(fit(picture, width, height).tobytes() for picture in kept)
    return Frames(data, len(kept), height, width, skipped)


def _pictures(media: Any, kind: MediaKind) -> Iterator[Image.Image]:
    if isinstance(media, Image.Image):
        with refusing(Path(kind), EXPECTED, kind):
            picture = upright(media)
        yield picture
    elif isinstance(media, list | tuple):
        for item in media:
            yield from _pictures(item, kind)
    else:
        for pixels in _as_bytes(media, kind):
            yield Image.fromarray(pixels)


def _as_bytes(media: Any, kind: MediaKind) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an array or tensor as uint8 (frames, height, width, 3)."""
    array = np.asarray(media.detach().cpu() if hasattr(media, "detach") else media)
    numbers = array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)
    if not numbers or array.ndim < 3 or array.shape[-1] != 3 or not array.size:
        got = f"{type(media).__name__} of {array.dtype} {list(array.shape)}"
        raise InvalidRequestError(f"got {kind} as {got}, expected {EXPECTED}", param=kind)
    if array.dtype != np.uint8:
        if not (array.min() >= 0 and array.max() <= 1):
            got = f"floats from {array.min():.3g} to {array.max():.3g}"
            raise InvalidRequestError(f"got {kind} as {got}, expected {EXPECTED}", param=kind)
        array = (array * 255).round().astype(np.uint8)
    return array.reshape(-1, *array.shape[-3:])


def thumbnail(path: Path) -> bytes:
    """Return the first frame of a video file as WebP."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return as_webp(Image.fromarray(frame.to_ndarray(format="rgb24")))


def spritesheet(path: Path) -> bytes:
    """Return up to 25 evenly spaced frames as a JPEG, row by row."""
    stills = list(evenly_spaced(path, SHEET_STILLS))
    columns = min(SHEET_COLUMNS, len(stills))
    width, height = stills[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(stills) / columns) * height))
    for index, still in enumerate(stills):
        row, column = divmod(index, columns)
        sheet.paste(still, (column * width, row * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def evenly_spaced(path: Path, max_stills: int) -> Iterator[Image.Image]:
    """Yield up to `max_stills` evenly spaced frames, scaled to `SHEET_WIDTH`."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        interval = max(1, math.ceil(count / max_stills))
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % interval == 0:
                height = max(1, round(SHEET_WIDTH * frame.height / frame.width))
                image = Image.fromarray(frame.to_ndarray(format="rgb24"))
                yield image.resize((SHEET_WIDTH, height))


def as_webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()
