"""The engine's videos of SGLang's requests and realtime sessions."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from helios_serve.errors import InvalidRequestError, RequestFailedError
from helios_serve.integrations.host import EngineHost, HostedVideo
from helios_serve.integrations.sglang.sampling import seeds
from helios_serve.logger import logger
from helios_serve.media.mp4 import as_array
from helios_serve.model_config import num_chunks

LEAD = 1
"""Chunks generated ahead of a realtime session's client. A higher value delays prompt switches."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""Array of shape (frames, height, width, 3), uint8."""
Progress = Callable[[int, int], None]
"""Callback with the number of finished chunks and the total number of chunks."""


class SglangVideos:
    """Videos of a request or session, which may be cancelled at any time.

    `begin` and `finish` raise HeliosError, or ValueError for an invalid request.
    """

    def __init__(self, host: EngineHost) -> None:
        self.host = host
        self.videos: list[HostedVideo] = []
        self._is_cancelled = False
        self._lock = threading.Lock()

    def begin(self, batch: Any) -> None:
        """Submit what a request needs."""
        raise NotImplementedError

    def finish(self, batch: Any, progress: Progress) -> list[Pixels]:
        """Return the pixels of a request, when they are available."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Abort the videos and free their resources. Finished videos are not changed."""
        with self._lock:
            self._is_cancelled = True
        for video in self.videos:
            video.abort()

    def submit(self, batch: Any, seed: int, lead: int | None = None) -> None:
        """Submit one video to the engine, unless the request is cancelled."""
        foreign = batch.sampling_params.foreign_request(seed, lead)
        request = foreign.to_video_request(self.host.model, self.host.config)
        with self._lock:
            if self._is_cancelled:
                raise RequestFailedError("cancelled")
            self.videos.append(self.host.submit(request))


class SglangRequest(SglangVideos):
    """The videos of one request, generated concurrently."""

    def begin(self, batch: Any) -> None:
        for seed in seeds(batch):
            self.submit(batch, seed)

    def finish(self, batch: Any, progress: Progress) -> list[Pixels]:
        found: list[list[Pixels]] = [[] for _ in self.videos]
        total = len(found) * num_chunks(batch.num_frames)
        for chunks, video in zip(found, self.videos, strict=True):
            for chunk in pixels(video):
                chunks.append(chunk)
                progress(sum(map(len, found)), total)
        return [np.concatenate(chunks) for chunks in found]


class LiveVideo(SglangVideos):
    """The video of a realtime session. Each request returns its next chunk."""

    prompt: str

    def begin(self, batch: Any) -> None:
        if batch.block_idx == 0:
            self.submit(batch, seeds(batch)[0], LEAD)
            self._chunks = pixels(self.videos[0])
        elif not self.videos:
            raise RequestFailedError("the realtime session has ended")
        elif batch.prompt != self.prompt:
            self._switch_prompt(batch.prompt)
        self.prompt = batch.prompt

    def finish(self, batch: Any, progress: Progress) -> list[Pixels]:  # noqa: ARG002
        for chunk in self._chunks:
            return [chunk]
        raise RequestFailedError("the realtime session has ended")

    def _switch_prompt(self, prompt: str) -> None:
        try:
            self.videos[0].switch_prompt(prompt).result()
        except InvalidRequestError as error:  # the last chunk is being generated
            logger.warning("prompt switch of a realtime session is too late: %s", error)


def pixels(video: HostedVideo) -> Iterator[Pixels]:
    """Yield the pixels of each chunk. Raises RequestFailedError."""
    for chunk in video.chunks():
        assert chunk.frames is not None, "videos that are not stored have pixels"
        yield as_array(chunk.frames)
