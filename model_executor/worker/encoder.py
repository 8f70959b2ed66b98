"""Prompts and references to what a session begins with."""

import time

import torch
from torch import Generator, Tensor

from helios_serve.errors import HeliosError
from helios_serve.logger import logger
from helios_serve.messages import EncodedPrompt, EncodeTask, InputsEncoded, Snapshot
from helios_serve.model_executor.models.helios.conditioning import (
    HistorySeed,
    seed_from_image,
    seed_from_video,
)
from helios_serve.model_executor.models.text_encoder import TextEncoder
from helios_serve.model_executor.models.vae import Vae
from helios_serve.model_executor.worker.history_pool import tile_rows
from helios_serve.model_executor.worker.tensors import as_bytes, as_data
from helios_serve.video_request import Frames, VideoRequest


class InputEncoder:
    """Encodes for one session after another; one that fails does not end the others."""

    def __init__(self, text_encoder: TextEncoder, vae: Vae) -> None:
        self.text_encoder = text_encoder
        self.vae = vae

    def encode(self, task: EncodeTask) -> InputsEncoded:
        started = time.perf_counter()
        try:
            limit = task.max_sequence_length
            prompts = tuple(
                EncodedPrompt(text, as_data(self.text_encoder.encode(text, limit)))
                for text in task.prompts
            )
            snapshot, inputs = None, None
            if task.seed_from is not None:
                snapshot, inputs = self._seed(task.seed_from)
        except Exception as error:  # told to the engine, which ends that session
            logger.error("encoding for %s failed", task.session_id, exc_info=error)
            message = str(error) if isinstance(error, HeliosError) else repr(error)
            return InputsEncoded(task.session_id, error=f"encoding failed: {message}")
        return InputsEncoded(
            task.session_id,
            prompts,
            snapshot,
            None if inputs is None else as_data(inputs[None]),
            seconds=time.perf_counter() - started,
        )

    def _seed(self, request: VideoRequest) -> tuple[Snapshot, Tensor | None]:
        """The state of a session before its first chunk, and the input latents if asked for."""
        generator = Generator().manual_seed(request.params.seed)
        anchor, frames, inputs = self._history(request, generator)
        snapshot = Snapshot(
            chunk=0,
            rng=as_bytes(generator.get_state()),
            anchor=as_bytes(tile_rows(anchor)),
            frames=as_bytes(tile_rows(frames)),
            num_frames=frames.shape[1],
            dtype="float32",
            height=request.params.height,
            width=request.params.width,
        )
        return snapshot, inputs if request.keep_input_latents else None

    def _history(self, request: VideoRequest, generator: Generator) -> HistorySeed:
        if request.image is not None:
            return seed_from_image(as_pixels(request.image), self.vae, generator, request.params)
        assert request.video is not None, "a request without a reference has no history"
        return seed_from_video(
            as_pixels(request.video),
            self.vae,
            generator,
            request.params,
            keep_inputs=request.keep_input_latents,
            skipped=request.video.skipped,
        )


def as_pixels(frames: Frames) -> Tensor:
    """(count, height, width, 3), uint8."""
    flat = torch.frombuffer(bytearray(frames.data), dtype=torch.uint8)
    return flat.view(frames.count, frames.height, frames.width, 3)
