"""Contact sheets: a row of frames for each video, with its caption."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

LABEL = 12
"""Pixels above a row for its caption."""
ENLARGED = 2


def write_sheet(
    path: Path, videos: Sequence[NDArray[np.uint8]], captions: Sequence[str], *, columns: int = 10
) -> None:
    """Write a PNG with `columns` frames, evenly spaced, of each video."""
    _, height, width, _ = videos[0].shape
    height, width = height * ENLARGED, width * ENLARGED
    sheet = Image.new("RGB", (columns * (width + 2), len(videos) * (height + LABEL + 2)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (video, caption) in enumerate(zip(videos, captions, strict=True)):
        top = row * (height + LABEL + 2)
        draw.text((2, top), caption, fill="black")
        for column, frame in enumerate(np.linspace(0, len(video) - 1, columns).astype(int)):
            picture = Image.fromarray(video[frame]).resize(
                (width, height), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (column * (width + 2), top + LABEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
