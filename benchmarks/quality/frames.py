"""Frames of a video file: as they are, and as HeliosBench's scripts load them."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from video_reader import PyVideoReader

from helios_serve.benchmarks.quality.cases import SHORT_FRAMES
from helios_serve.errors import InvalidRequestError
from helios_serve.media.video_file import read_frames

Frame = NDArray[np.uint8]
"""An RGB frame: (height, width, 3)."""

OFFICIAL_WIDTH = 640
"""Width to which the scripts scale all videos."""


def frames_of(path: Path) -> Iterator[Frame]:
    """Yield the frames at the video's own size. Raises InvalidRequestError."""
    for frame in read_frames(path):
        pixels: Frame = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
        yield pixels


def frame_rate(path: Path) -> float:
    """Return the frames a second that the file states."""
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate or 24)


def official_frames(path: Path) -> NDArray[np.uint8]:
    """Return all frames, (frames, height, width, 3), as HeliosBench's scripts load them.

    They use the package video-reader-rs: another decoder's scaling changes motion_fb by 0.5 %.
    Raises InvalidRequestError.
    """
    try:
        _, height, width = PyVideoReader(str(path), threads=0).get_shape()
        height = 2 * round(int(OFFICIAL_WIDTH / (width / height)) / 2)
        reader = PyVideoReader(
            str(path), target_height=height, target_width=OFFICIAL_WIDTH, threads=0
        )
        frames: NDArray[np.uint8] = reader.decode()
    except (RuntimeError, ValueError, OSError) as error:
        raise InvalidRequestError(
            f"{path}: cannot be decoded ({error}), expected an MP4 video", param="videos"
        ) from error
    return frames


def shorten(source: Path, target: Path) -> int:
    """Write the first 81 frames of a video, without loss; return how many there are.

    Raises InvalidRequestError for a file that is not a video.
    """
    scratch = target.with_name(f".{target.name}.part")
    rate = Fraction(frame_rate(source)).limit_denominator(1001)
    count = 0
    with av.open(str(scratch), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"qp": "0", "preset": "fast"})
        for frame in islice(read_frames(source), SHORT_FRAMES):
            if not count:
                stream.width, stream.height = frame.width, frame.height
                stream.pix_fmt = frame.format.name
            frame.pts, frame.time_base = count, 1 / rate
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode())
    scratch.replace(target)
    return count
