"""Still images of a video: a thumbnail and a spritesheet."""

import io
import math
from collections.abc import Iterator
from pathlib import Path

import av
from PIL import Image

SHEET_COLUMNS = 5
SHEET_STILLS = 25
SHEET_WIDTH = 160
"""Width of a still on a spritesheet, in pixels."""


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
