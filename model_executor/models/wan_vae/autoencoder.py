"""The Wan VAE as its checkpoints store it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from helios_serve.model_executor.models.wan_vae.causal_conv import (
    CausalConv3d,
    CausalState,
    conv_frames,
)
from helios_serve.model_executor.models.wan_vae.config import read_vae_config
from helios_serve.model_executor.models.wan_vae.decoder import WanDecoder, decode_video
from helios_serve.model_executor.models.wan_vae.encoder import WanEncoder, encode_video

LOG_VARIANCES = (-30.0, 20.0)
"""Limits of the logarithm of a posterior's variance."""


class Moments(NamedTuple):
    """Mean and standard deviation of the latents of a video: (1, 16, latents, h, w) each."""

    mean: Tensor
    std: Tensor


class WanVae(nn.Module):
    """AutoencoderKLWan: its encoder and decoder, whose parameters have the names, shapes and order
    of checkpoints. `settings` are those of `vae/config.json`. Raises CheckpointError."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.config = config = read_vae_config(settings)
        self.encoder = WanEncoder(
            config.base_dim,
            2 * config.z_dim,
            dim_mult=config.dim_mult,
            num_res_blocks=config.num_res_blocks,
            downsample_in_time=config.temperal_downsample,
        )
        self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = WanDecoder(
            config.decoder_base_dim or config.base_dim,
            config.z_dim,
            dim_mult=config.dim_mult,
            num_res_blocks=config.num_res_blocks,
            upsample_in_time=config.temperal_downsample[::-1],
        )

    def encode(self, frames: Tensor) -> Moments:
        """Encode RGB from -1 to 1, (1 + 4 * n, height, width, 3), to 1 + n latent frames."""
        conv = self.quant_conv
        encoded = encode_video(self.encoder, frames).contiguous()
        moments = conv_frames(encoded, conv.weight[:, :, 0], conv.bias)
        mean, log_variance = moments.permute(3, 0, 1, 2)[None].contiguous().chunk(2, dim=1)
        return Moments(mean, torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCES)))

    def decode(self, latents: Tensor, state: CausalState | None = None) -> Tensor:
        """Decode latents (16, n, h, w) to RGB from -1 to 1, (1 + 4 * (n - 1), 8 * h, 8 * w, 3).

        With `state` they continue a video; see `decode_video`.
        """
        conv = self.post_quant_conv
        frames = latents.permute(1, 2, 3, 0).contiguous()
        frames = conv_frames(frames, conv.weight[:, :, 0], conv.bias).contiguous()
        return torch.clamp(decode_video(self.decoder, frames, state), -1, 1)
