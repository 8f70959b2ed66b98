"""Converts images and videos from Python callers (paths, PIL, numpy, torch) to `Frames`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helios_serve.errors import InvalidRequestError
from helios_serve.media.decode_job import MediaKind
from helios_serve.media.references import TAIL_FRAMES, check_length, fit, load_reference
from helios_serve.video_request import Frames

EXPECTED = (
    "a path, a PIL image, an array or tensor (..., height, width, 3) of uint8 or of floats from "
    "0 to 1, or a list of those"
)


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
        yield media.convert("RGB")
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
