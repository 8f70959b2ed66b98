"""The codec between frames and latents that gates use: the trained VAE, as the server has it."""

from typing import Any

import torch
from torch import Generator, Tensor

from helios_serve.model_executor.models.helios.conditioning import draw_sigma, mix_noise
from helios_serve.model_executor.training.vae_stage import as_frames, as_video
from helios_serve.options.sampling import SamplingOptions

AT_ONCE = 4
"""Chunks that are decoded together."""


class Pictures:
    """Encodes and decodes with a VAE. `model` is an AutoencoderKLWan."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (videos, 16, 9, h, w) -> RGB frames (videos, 33, height, width, 3), uint8."""
        parts = [
            as_frames(self.model.decode(part).sample) for part in torch.split(latents, AT_ONCE)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """RGB frames (videos, 1 or 33, height, width, 3), uint8 -> latents."""
        parts = [
            self.model.encode(as_video(part)).latent_dist.mean
            for part in torch.split(frames, AT_ONCE)
        ]
        return torch.cat(parts)

    def reference(self, frames: Tensor, generator: Generator) -> Tensor:
        """Encode a reference and mix noise in, as the server does with an image or a video."""
        bounds = SamplingOptions().image_noise_sigma
        latents = [
            mix_noise(item, draw_sigma(bounds, item.shape[1], generator), generator)
            for item in self.encode(frames)
        ]
        return torch.stack(latents)
