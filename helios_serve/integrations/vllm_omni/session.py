"""A request of vLLM-Omni that our engine runs."""

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor
from vllm_omni.diffusion.data import DiffusionOutput
from vllm_omni.diffusion.media import (
    DiffusionMediaOutput,
    VideoMediaOutput,
    VideoTensorEncoding,
    VideoTensorLayout,
    VideoTensorSpec,
    VideoValueRange,
)
from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.errors import OmniClientError

from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.errors import (
    CapacityError,
    EngineDeadError,
    HeliosError,
    InvalidRequestError,
    NotAllowedError,
    describe_error,
)
from helios_serve.integrations.host import EngineHost, HostedVideo
from helios_serve.integrations.vllm_omni.requests import foreign_request
from helios_serve.logger import logger
from helios_serve.messages import TensorData
from helios_serve.model_config import num_chunks
from helios_serve.options.sampling import PromptSwitch
from helios_serve.video_request import Frames

PIXELS = VideoTensorSpec(
    layout=VideoTensorLayout.BTHWC,
    encoding=VideoTensorEncoding.UINT8_FRAMES,
    value_range=VideoValueRange.ZERO_TO_255,
)

STATUSES: tuple[tuple[type[HeliosError], int], ...] = (
    (NotAllowedError, 403),
    (InvalidRequestError, 400),
    (CapacityError, 429),
)
LEAD_CHUNKS = 2
"""Chunks generated ahead of a streaming reader: few, so that prompt switches take effect soon."""


class PromptEvent(NamedTuple):
    """A client's prompt switch, whose transition lasts from chunk `start` to `stop`.

    After `stop`, the new prompt is in full effect, unless another event superseded it.
    """

    start: int
    stop: int
    event_id: str
    is_superseded: bool = False


class OmniSession:
    """A request in our engine. Raises vLLM-Omni's errors.

    With `whole`, all frames are returned in one output, with the last chunk.
    """

    def __init__(self, request: OmniDiffusionRequest, *, whole: bool) -> None:
        self.request = request
        self.whole = whole
        self.is_aborted = False
        self._video: HostedVideo | None = None
        self._was_opened = threading.Event()
        self._chunks = 0
        self._transition_chunks = 0
        self._frames: list[Frames] = []
        self._latents: list[TensorData] = []
        self._events: list[PromptEvent] = []

    def open(self, host: EngineHost) -> None:
        """Submit the request to our engine. Loads and scales its reference first."""
        try:
            lead = None if self.whole else LEAD_CHUNKS
            foreign = foreign_request(self.request, host.config, max_lead_chunks=lead)
            video_request = foreign.to_video_request(host.model, host.config)
            self._chunks = num_chunks(video_request.params.num_frames)
            self._transition_chunks = video_request.params.transition_chunks
            self._video = host.submit(video_request)
        except HeliosError as error:
            raise as_omni_error(error) from error
        finally:
            self._was_opened.set()
        if self.is_aborted:
            self.abort()

    def next_chunk(self) -> "Future[VideoChunk | None]":
        """Return a future of the next chunk, or of None after the last one."""
        assert self._video is not None, "the session is not open"
        return self._video.next_chunk()

    def abort(self) -> None:
        """Abort the video. Its blocks are freed when the running steps have returned."""
        self.is_aborted = True
        if self._video is not None:
            with suppress(EngineDeadError):
                self._video.abort()

    def output(self, chunk: VideoChunk) -> DiffusionOutput | None:
        """Return vLLM-Omni's output for a chunk, or None if there is none yet."""
        is_last = chunk.index == self._chunks - 1
        assert chunk.frames is not None, "the chunk has no pixels"
        self._frames.append(chunk.frames)
        if chunk.latents is not None and self.request.sampling_params.return_trajectory_latents:
            self._latents.append(chunk.latents)
        if self.whole and not is_last:
            return None
        media = DiffusionMediaOutput(VideoMediaOutput(pixels(self._frames), PIXELS), True)
        latents = torch.cat([*map(tensor, self._latents)], dim=2) if self._latents else None
        self._frames, self._latents = [], []
        return DiffusionOutput(
            media=media,
            trajectory_latents=latents,
            finished=is_last,
            chunk_index=chunk.index,
            total_chunks=self._chunks,
            started_event_ids=[e.event_id for e in self._events if e.start == chunk.index],
            active_event_ids=[e.event_id for e in self._events if e.start <= chunk.index <= e.stop],
            completed_event_ids=[
                e.event_id for e in self._events if e.stop == chunk.index and not e.is_superseded
            ],
        )

    def switch_prompt(self, event_id: str, prompt: str, transition: int | None) -> None:
        """Change the prompt. The output of the first affected chunk lists the event as started.

        Waits until the reference is loaded. Raises ValueError if the request was rejected. If no
        chunk is left for the switch, this is only logged, because an error would abort the video.
        """
        self._was_opened.wait()
        if self._video is None:
            raise ValueError("got an event for a rejected request")
        switching = self._video.switch_prompt(prompt, transition)
        switching.add_done_callback(lambda done: self._on_switch(event_id, done))

    def _on_switch(self, event_id: str, switching: "Future[PromptSwitch]") -> None:
        if (error := switching.exception()) is not None:
            logger.info("event %s of %s failed: %s", event_id, self.request.request_id, error)
            return
        switch = switching.result()
        length = switch.transition_chunks
        length = self._transition_chunks if length is None else length
        earlier = [event for event in self._events if event.start < switch.chunk]
        self._events = [
            event._replace(stop=switch.chunk - 1, is_superseded=True)
            if event.stop >= switch.chunk
            else event
            for event in earlier
        ]
        stop = switch.chunk + max(0, length - 1)
        self._events.append(PromptEvent(switch.chunk, stop, event_id))


def pixels(frames: Iterable[Frames]) -> Tensor:
    """Return the frames as (1, frames, height, width, 3), uint8, in memory of their own."""
    parts = list(frames)
    data = bytearray().join(part.data for part in parts)
    count = sum(part.count for part in parts)
    flat = torch.frombuffer(data, dtype=torch.uint8)
    return flat.view(1, count, parts[0].height, parts[0].width, 3)


def tensor(data: TensorData) -> Tensor:
    """Convert tensor data to a tensor with its own memory."""
    flat = torch.frombuffer(bytearray(data.data), dtype=getattr(torch, data.dtype))
    return flat.view(data.shape)


def as_omni_error(error: Exception) -> Exception:
    """Convert an error to vLLM-Omni's. Errors that the client can fix become 4xx."""
    for kind, status in STATUSES:
        if isinstance(error, kind):
            theirs: Exception = OmniClientError(str(error), status_code=status)
            return theirs
    return RuntimeError(describe_error(error))
