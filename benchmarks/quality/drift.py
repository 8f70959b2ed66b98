"""Drift: how the last 15 % of a video differ from the first 15 %."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

WINDOW = 0.15
"""Share of the frames at either end, as in HeliosBench's drift metrics."""


class Look(NamedTuple):
    """What a frame looks like.

    - `luma`: mean brightness, 0 to 255.
    - `saturation`: mean of max(R, G, B) - min(R, G, B), 0 to 255.
    - `lab`: mean colour in CIE L*a*b*.
    - `sharpness`: variance of the Laplacian of the brightness.
    """

    luma: float
    saturation: float
    lab: NDArray[np.float64]
    sharpness: float

    @classmethod
    def of(cls, frame: NDArray[np.uint8], gray: NDArray[np.uint8]) -> "Look":
        """Look at an RGB frame (height, width, 3) and its gray form (height, width)."""
        lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        spread = frame.max(axis=-1).astype(np.int16) - frame.min(axis=-1)
        sharpness = float(cv2.Laplacian(gray, cv2.CV_64F).var())
        mean = lab.mean(axis=(0, 1), dtype=np.float64)
        return cls(float(gray.mean()), float(spread.mean()), mean, sharpness)


class Drift(NamedTuple):
    """Differences between both ends: absolute, that of the colour is CIE 1976's delta E."""

    drift_luma: float
    drift_saturation: float
    drift_colour: float
    drift_sharpness: float


def drift_of(looks: Sequence[Look]) -> Drift:
    """Return the drift of a video of at least one frame."""
    count = max(1, int(WINDOW * len(looks)))
    first, last = looks[:count], looks[-count:]

    def change(name: str) -> float:
        ends = [np.mean([getattr(look, name) for look in part], axis=0) for part in (first, last)]
        return float(np.linalg.norm(ends[0] - ends[1]))

    return Drift(change("luma"), change("saturation"), change("lab"), change("sharpness"))
