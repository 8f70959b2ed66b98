"""Continuity: flicker, seams between chunks, and repetition."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from helios_serve.model_config import CHUNK_FRAMES

THUMBNAIL = 16
"""Width and height of the pictures that are compared to find repetition."""
SHORTEST_PERIOD = 2.0
"""Minimum seconds between two similar pictures that count as repetition."""


class Continuity(NamedTuple):
    """Continuity from frame to frame. None where a video is too short to measure it.

    - `flicker`: 1 - mean absolute difference of neighbouring frames / 255, as VBench's
      `temporal_flickering`; 1 for a still video.
    - `chunk_seam`: median difference across the edges of chunks, divided by the median difference
      inside chunks. 1 means that the seams cannot be seen.
    - `repetition`: largest autocorrelation of the brightness over lags of 2 s and more, -1 to 1.
    """

    flicker: float | None
    chunk_seam: float | None
    repetition: float | None


def thumbnail(gray: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a gray frame reduced to 16x16."""
    size = (THUMBNAIL, THUMBNAIL)
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA).astype(np.float32)


def continuity_of(
    steps: Sequence[float], thumbnails: Sequence[NDArray[np.float32]], rate: float
) -> Continuity:
    """Return the continuity of a video with `rate` frames a second.

    `steps` are the mean absolute differences of neighbouring frames: one fewer than frames.
    """
    flicker = 1 - float(np.mean(steps)) / 255 if steps else None
    return Continuity(flicker, seam_of(steps), repetition_of(thumbnails, rate))


def seam_of(steps: Sequence[float]) -> float | None:
    """Return `chunk_seam`; None without a seam, or for chunks that stand still."""
    at_seam = [(index + 1) % CHUNK_FRAMES == 0 for index in range(len(steps))]
    across = [step for step, seam in zip(steps, at_seam, strict=True) if seam]
    inside = [step for step, seam in zip(steps, at_seam, strict=True) if not seam]
    if not across or not float(np.median(inside)):
        return None
    return float(np.median(across) / np.median(inside))


def repetition_of(thumbnails: Sequence[NDArray[np.float32]], rate: float) -> float | None:
    """Return `repetition`; None for a video of at most 2 s, or without any change."""
    shortest = int(np.ceil(SHORTEST_PERIOD * rate))
    if len(thumbnails) <= shortest + 1:
        return None
    rows = np.stack(thumbnails).reshape(len(thumbnails), -1)
    rows = rows - rows.mean(axis=0)
    found = []
    # A lag leaves at least a quarter of the video: a few frames match by chance.
    for lag in range(shortest, max(shortest + 1, 3 * len(rows) // 4)):
        one, other = rows[:-lag], rows[lag:]
        scale = float(np.linalg.norm(one) * np.linalg.norm(other))
        if scale:
            found.append(float((one * other).sum()) / scale)
    return max(found, default=None)
