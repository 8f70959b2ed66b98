"""The codec between frames and latents that gates use: the trained VAE, as the server has it."""

from typing import Any

import torch
from torch import Generator, Tensor

from helios_serve.model_executor.models.helios.conditioning import draw_sigma, mix_noise
from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae
from helios_serve.model_executor.training.vae_stage import as_frames, as_video
from helios_serve.options.sampling import SamplingOptions


class Pictures:
    """Encodes and decodes with the weights of `model`, an AutoencoderKLWan, by the server's code,
    which is several times as fast."""

    def __init__(self, model: Any) -> None:
        self.served = WanVae(dict(model.config))
        self.served.load_state_dict(model.state_dict())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (videos, 16, 9, h, w) -> RGB frames (videos, 33, height, width, 3), uint8."""
        videos = [self.served.decode(item) for item in latents]
        return as_frames(torch.stack(videos).movedim(-1, 1))

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """RGB frames (videos, 1 or 33, height, width, 3), uint8 -> latents."""
        videos = as_video(frames).movedim(1, -1)
        return torch.cat([self.served.encode(video).mean for video in videos])

    def reference(self, frames: Tensor, generator: Generator) -> Tensor:
        """Encode a reference and mix noise in, as the server does with an image or a video."""
        bounds = SamplingOptions().image_noise_sigma
        latents = [
            mix_noise(item, draw_sigma(bounds, item.shape[1], generator), generator)
            for item in self.encode(frames)
        ]
        return torch.stack(latents)
