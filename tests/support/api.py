"""Helpers of the API's tests: a short video, and functions that read responses."""

import io
import time
import warnings
from typing import Any

import av
import httpx2 as httpx
import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import openai

__all__ = ["SHORT", "error_of", "frames_of", "openai", "played", "wait_until_ready"]

PATIENCE = 60.0
SHORT: dict[str, Any] = {"extra_body": {"num_frames": 40, "seed": 3}, "size": "64x64"}
"""Two chunks, the second one cut."""


def frames_of(data: bytes) -> np.ndarray:
    """Return the decoded frames of an MP4; their timestamps must be evenly spaced."""
    with av.open(io.BytesIO(data), "r") as container:
        frames = list(container.decode(video=0))
    steps = np.diff([frame.pts for frame in frames])
    assert (steps == steps[0]).all()
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def played(url: str, headers: str = "") -> np.ndarray:
    """Return the frames that FFmpeg reads from a URL; their timestamps must be evenly spaced.

    `headers` are lines of requests, each with its CRLF.
    """
    # FFmpeg ends headers that lack a CRLF with one, also none at all, which begins another request.
    given = {"headers": headers} if headers else {}
    with av.open(url, options={"live_start_index": "0"} | given) as container:
        frames = list(container.decode(video=0))
    times = [frame.pts for frame in frames]
    assert times == [index * 512 for index in range(len(frames))]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """Return the error of a response, from the envelope that all errors have."""
    assert answer.headers["x-request-id"]
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def wait_until_ready(http: httpx.Client, patience: float = PATIENCE) -> None:
    """Wait until the server has a worker. It responds before that."""
    deadline = time.monotonic() + patience
    while http.get("/health").status_code != 200:
        assert time.monotonic() < deadline, "no worker became ready"
        time.sleep(0.05)
