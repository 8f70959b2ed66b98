"""Pictures of a video: its first frame, and a sheet of several."""

import io
import math
from collections.abc import Iterator
from pathlib import Path

import av
from PIL import Image

SHEET_COLUMNS = 5
SHEET_STILLS = 25
SHEET_WIDTH = 160
"""Pixels of one still on a sheet."""


def thumbnail(path: Path) -> bytes:
    """The first frame as WebP."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return as_webp(Image.fromarray(frame.to_ndarray(format="rgb24")))


def spritesheet(path: Path) -> bytes:
    """Up to 25 frames, evenly spread, row by row, as JPEG."""
    stills = list(evenly_spread(path, SHEET_STILLS))
    columns = min(SHEET_COLUMNS, len(stills))
    width, height = stills[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(stills) / columns) * height))
    for index, still in enumerate(stills):
        row, column = divmod(index, columns)
        sheet.paste(still, (column * width, row * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def evenly_spread(path: Path, most: int) -> Iterator[Image.Image]:
    """Small stills; one in every so many frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        every = max(1, math.ceil(count / most))
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % every == 0:
                height = max(1, round(SHEET_WIDTH * frame.height / frame.width))
                image = Image.fromarray(frame.to_ndarray(format="rgb24"))
                yield image.resize((SHEET_WIDTH, height))


def as_webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()
