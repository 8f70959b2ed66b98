"""Encode tasks of a worker."""

import time

import torch
from torch import Generator, Tensor

from helios_serve.errors import describe_error
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
    """Executes encode tasks."""

    def __init__(self, text_encoder: TextEncoder, vae: Vae) -> None:
        self.text_encoder = text_encoder
        self.vae = vae

    def encode(self, task: EncodeTask) -> InputsEncoded:
        """Encode a session's inputs. Never raises: a failure is the result's `error`."""
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
        except Exception as error:  # reported to the engine, which fails that session only
            logger.error("encoding for %s failed", task.session_id, exc_info=error)
            message = f"encoding failed: {describe_error(error)}"
            return InputsEncoded(task.session_id, error=message)
        return InputsEncoded(
            task.session_id,
            prompts,
            snapshot,
            None if inputs is None else as_data(inputs[None]),
            seconds=time.perf_counter() - started,
        )

    def _seed(self, request: VideoRequest) -> tuple[Snapshot, Tensor | None]:
        """Return the snapshot before the first chunk, and the input latents if requested."""
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
    """Return frames as a uint8 tensor (count, height, width, 3)."""
    flat = torch.frombuffer(bytearray(frames.data), dtype=torch.uint8)
    return flat.view(frames.count, frames.height, frames.width, 3)
