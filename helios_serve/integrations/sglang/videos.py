"""What SGLang's requests and realtime sessions have in our engine."""

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
"""Chunks that a realtime session is made ahead of its client: more, and prompts come later."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""(frames, height, width, 3)."""
Progress = Callable[[int, int], None]
"""Called with the number of chunks that are there, and of all."""


class SglangVideos:
    """Videos that may be cancelled at any time. `begin` and `finish` raise HeliosError, and
    ValueError for a request that is none."""

    def __init__(self, host: EngineHost) -> None:
        self.host = host
        self.videos: list[HostedVideo] = []
        self._is_cancelled = False
        self._lock = threading.Lock()

    def begin(self, batch: Any) -> None:
        """Have made what the request is for."""
        raise NotImplementedError

    def finish(self, batch: Any, progress: Progress) -> list[Pixels]:
        """What it is for, when it is there."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Free what they hold; videos that are over are left as they are."""
        with self._lock:
            self._is_cancelled = True
        for video in self.videos:
            video.abort()

    def submit(self, batch: Any, seed: int, lead: int | None = None) -> None:
        foreign = batch.sampling_params.foreign_request(seed, lead)
        request = foreign.to_video_request(self.host.model, self.host.config)
        with self._lock:
            if self._is_cancelled:
                raise RequestFailedError("cancelled")
            self.videos.append(self.host.submit(request))


class SglangRequest(SglangVideos):
    """The videos of one request, which are made together."""

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
    """The one video of a realtime session, of which each request is for the next chunk."""

    prompt: str

    def begin(self, batch: Any) -> None:
        if batch.block_idx == 0:
            self.submit(batch, seeds(batch)[0], LEAD)
            self._chunks = pixels(self.videos[0])
        elif not self.videos:
            raise RequestFailedError("the realtime session is over")
        elif batch.prompt != self.prompt:
            self._turn_to(batch.prompt)
        self.prompt = batch.prompt

    def finish(self, batch: Any, progress: Progress) -> list[Pixels]:  # noqa: ARG002
        for chunk in self._chunks:
            return [chunk]
        raise RequestFailedError("the realtime session is over")

    def _turn_to(self, prompt: str) -> None:
        try:
            self.videos[0].switch_prompt(prompt).result()
        except InvalidRequestError as error:  # the last chunk is being made
            logger.warning("A prompt of a realtime session came too late: %s", error)


def pixels(video: HostedVideo) -> Iterator[Pixels]:
    """Chunk by chunk; raises RequestFailedError."""
    for chunk in video.chunks():
        assert chunk.frames is not None, "chunks of videos that are not stored come as pixels"
        yield as_array(chunk.frames)
