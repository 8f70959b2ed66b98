"""Dense optical flow by Farneback's method, and measures of motion from it."""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Flow = NDArray[np.float32]
"""(height, width, 2): how far each pixel moves to the right and down, in pixels a frame."""
Gray = NDArray[np.uint8]

MAP_WIDTH = 16
"""Width to which HeliosBench reduces a flow map."""


class Motion(NamedTuple):
    """Motion of a video.

    - `mean_flow_magnitude`: mean length of the flow, in pixels a frame at the video's own size.
    - `flow_smoothness`: 1 - mean |f(t) - f(t - 1)| / (mean |f| + 1 pixel).
    """

    mean_flow_magnitude: float
    flow_smoothness: float


def flow_between(before: Gray, after: Gray) -> Flow:
    """Return the flow between two frames, with HeliosBench's parameters."""
    found: Flow = cv2.calcOpticalFlowFarneback(
        before,
        after,
        np.zeros((*before.shape, 2), np.float32),
        pyr_scale=0.5,
        levels=3,
        winsize=15,
        iterations=3,
        poly_n=5,
        poly_sigma=1.2,
        flags=0,
    ).astype(np.float32, copy=False)
    return found


def gray_of(frame: NDArray[np.uint8]) -> Gray:
    """Return an RGB frame (height, width, 3) in gray: (height, width)."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)


def motion_amplitude(frames: NDArray[np.uint8]) -> float:
    """Return HeliosBench's `motion_fb` of RGB frames (frames, height, width, 3).

    It is the absolute value of the mean of all flow *components*, which have signs: a pan scores
    high, while motion to and fro cancels out and scores nearly 0. `mean_flow_magnitude` does not.
    """
    maps = []
    for flow in flows(map(gray_of, frames)):
        height, width = flow.shape[:2]
        size = (MAP_WIDTH, int(height * (MAP_WIDTH / width)))
        maps.append(cv2.resize(flow, size, interpolation=cv2.INTER_AREA))
    return abs(float(np.mean(np.mean(np.array(maps), axis=0)))) if maps else 0.0


def flows(grays: Iterator[Gray]) -> Iterator[Flow]:
    """Yield the flow between each frame and the next."""
    before = next(grays, None)
    for gray in grays:
        assert before is not None
        yield flow_between(before, gray)
        before = gray


class MotionMeter:
    """Measures the motion of frames that come one by one."""

    def __init__(self) -> None:
        self._gray: Gray | None = None
        self._flow: Flow | None = None
        self._lengths: list[float] = []
        self._changes: list[float] = []

    def add(self, gray: Gray) -> None:
        """Take the next frame, (height, width)."""
        if self._gray is not None:
            flow = flow_between(self._gray, gray)
            self._lengths.append(float(np.linalg.norm(flow, axis=-1).mean()))
            if self._flow is not None:
                self._changes.append(float(np.linalg.norm(flow - self._flow, axis=-1).mean()))
            self._flow = flow
        self._gray = gray

    def motion(self) -> Motion | None:
        """Return the motion of all frames; None if there are fewer than three."""
        if not self._changes:
            return None
        length, change = float(np.mean(self._lengths)), float(np.mean(self._changes))
        return Motion(length, 1 - change / (length + 1))
