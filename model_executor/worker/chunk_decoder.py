"""Decode tasks of a worker: frames are made on the device, and encoded in another thread."""

import contextlib
import queue
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor

from helios_serve.errors import describe_error
from helios_serve.logger import logger
from helios_serve.media.mp4 import encode_chunk, encode_rgb, encode_yuv
from helios_serve.media.references import fit_frames
from helios_serve.messages import ChunkDecoded, ChunkRendered, DecodeTask, LatentsMissing
from helios_serve.model_executor.models.wan_vae.causal_conv import CausalState
from helios_serve.model_executor.models.yuv import yuv420
from helios_serve.model_executor.streams import DeviceStreams, HostCopy
from helios_serve.model_executor.worker.decoder_states import DecoderStates
from helios_serve.model_executor.worker.kept_latents import KeptLatents
from helios_serve.model_executor.worker.side_thread import TaskSource, side_thread
from helios_serve.model_executor.worker.tensors import as_bytes, as_tensor
from helios_serve.options.workers import CHUNKS_WAITING
from helios_serve.video_request import Frames

Emit = Callable[[ChunkDecoded | ChunkRendered | LatentsMissing], None]


class Renderer(Protocol):
    """The part of a VAE that makes frames."""

    def new_state(self) -> CausalState:
        """Return the state before the first chunk of a video."""
        ...

    def render(self, latents: Tensor, state: CausalState | None = None) -> Tensor:
        """Latents (16, 9, h, w) -> RGB frames (33, height, width, 3), uint8, on the device.

        With `state` they continue the chunk before, and extend it.
        """
        ...


class Place(TypedDict):
    """Where a segment belongs in its video."""

    chunk: int
    fps: int


class Rendered(NamedTuple):
    """The frames of a task on the host, or the error instead, and the seconds that it took.

    `pixels` is uint8: RGB (frames, height, width, 3), or the planes of `yuv420`.
    """

    task: DecodeTask
    pixels: Tensor | None
    seconds: float
    error: str | None = None


class ChunkDecoder:
    """Executes decode tasks, in their order.

    One thread makes frames with `vae`, on an urgent stream. It says so with ChunkRendered, after
    which the engine sends the next task, and leaves the frames to a second thread, which encodes
    and emits them. Latents that the engine did not send are in `kept`. With `states` a chunk
    continues the one before it, if that was decoded here.
    """

    def __init__(
        self,
        vae: Renderer,
        emit: Emit,
        kept: KeptLatents,
        streams: DeviceStreams,
        states: DecoderStates | None = None,
    ) -> None:
        self.vae = vae
        self.emit = emit
        self.kept = kept
        self.streams = streams
        self.states = states
        self._rendered: queue.Queue[Rendered | None] = queue.Queue(CHUNKS_WAITING)

    @contextlib.contextmanager
    def running(self, tasks: TaskSource[DecodeTask | None]) -> Iterator[None]:
        """Execute tasks until the queue has None. Leaving the context waits for the threads."""
        stream = self.streams.own(is_urgent=True)
        with side_thread(self._finish, self._rendered, "segments"):
            with side_thread(self._render, tasks, "decoder", stream):
                yield
            self._rendered.put(None)

    def _render(self, task: DecodeTask) -> None:
        """Make frames. Never raises: a failure is handed on in their place."""
        started = time.perf_counter()
        pixels = error = None
        try:
            latents = self._latents(task)
            if latents is None:
                self.emit(LatentsMissing(task.session_id, task.chunk))
                return
            pixels = self._pixels(task, latents)
        except Exception as failure:  # reported to the engine, which fails that session only
            error = failed(task, failure)
        seconds = time.perf_counter() - started
        self.emit(ChunkRendered(task.session_id, task.chunk, seconds))
        self._rendered.put(Rendered(task, pixels, seconds, error))

    def _latents(self, task: DecodeTask) -> Tensor | None:
        """Return the latents (16, 9, h, w): those of the task, or those that were kept."""
        if task.latents is not None:
            return as_tensor(task.latents)[0]
        return self.kept.take(task.session_id, task.chunk)

    @torch.inference_mode()
    def _pixels(self, task: DecodeTask, latents: Tensor) -> Tensor:
        """Return the frames of the chunk that belong to the video, on the host."""
        pixels = self._frames(task, latents)[: task.num_frames]
        if self._is_planar(task):
            pixels = yuv420(pixels)
        [host] = HostCopy(self.streams, [pixels]).wait()
        return host

    def _frames(self, task: DecodeTask, latents: Tensor) -> Tensor:
        """Return all frames of the chunk. A failure leaves no state, so that the next is alone."""
        if self.states is None:
            return self.vae.render(latents)
        state = self.states.take(task.session_id, task.chunk) or self.vae.new_state()
        frames = self.vae.render(latents, state)
        if not task.is_last:
            self.states.keep(task.session_id, task.chunk + 1, state)
        return frames

    def _is_planar(self, task: DecodeTask) -> bool:
        """Whether frames are converted to YUV on the device: half the bytes to copy, and less work
        for the host. A CPU's own conversion is as fast, and pictures are scaled in RGB."""
        is_plain = task.output == "segment" and task.shown_size is None
        return self.streams.is_concurrent and is_plain

    def _finish(self, rendered: Rendered) -> None:
        """Encode and emit frames. Never raises: a failure is the result's `error`."""
        started = time.perf_counter()
        task = rendered.task
        try:
            decoded = self._encode(rendered)
        except Exception as failure:  # reported to the engine, which fails that session only
            decoded = ChunkDecoded(task.session_id, task.chunk, error=failed(task, failure))
        if decoded.error is None:
            seconds = rendered.seconds + time.perf_counter() - started
            decoded = ChunkDecoded(
                task.session_id, task.chunk, decoded.frames, decoded.segment, seconds=seconds
            )
        self.emit(decoded)

    def _encode(self, rendered: Rendered) -> ChunkDecoded:
        task, pixels, _, error = rendered
        if pixels is None:
            return ChunkDecoded(task.session_id, task.chunk, error=error)
        place: Place = {"chunk": task.chunk, "fps": task.fps}
        if self._is_planar(task):
            segment = encode_yuv(pixels.numpy(), **place)
            return ChunkDecoded(task.session_id, task.chunk, segment=segment)
        if task.output == "segment" and task.shown_size is None:
            segment = encode_rgb(pixels.numpy(), **place)
            return ChunkDecoded(task.session_id, task.chunk, segment=segment)
        count, height, width, _ = pixels.shape
        frames = Frames(as_bytes(pixels), count, height, width)
        if task.shown_size is not None:
            frames = fit_frames(frames, *task.shown_size)
        if task.output == "segment":
            segment = encode_chunk(frames, **place)
            return ChunkDecoded(task.session_id, task.chunk, segment=segment)
        return ChunkDecoded(task.session_id, task.chunk, frames)


def failed(task: DecodeTask, error: Exception) -> str:
    """Log why a task failed; returns the message for its session."""
    logger.error("decoding chunk %d of %s failed", task.chunk, task.session_id, exc_info=error)
    return f"decoding failed: {describe_error(error)}"
