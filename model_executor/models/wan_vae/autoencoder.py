"""The Wan VAE as its checkpoints store it: diffusers' encoder, and a decoder of our own."""

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from helios_serve.model_executor.models.wan_vae.causal_conv import conv_frames
from helios_serve.model_executor.models.wan_vae.decoder import WanDecoder, decode_video


def build_wan_vae(settings: dict[str, Any]) -> Any:
    """Return diffusers' AutoencoderKLWan of a configuration, with `WanDecoder` as its decoder.

    Parameters have the same names, shapes and order. Decode with `decode_latents`: diffusers' own
    `decode` does not know the decoder.
    """
    model = AutoencoderKLWan.from_config(settings)
    config = model.config
    model.decoder = WanDecoder(
        config.decoder_base_dim or config.base_dim,
        config.z_dim,
        dim_mult=config.dim_mult,
        num_res_blocks=config.num_res_blocks,
        upsample_in_time=config.temperal_downsample[::-1],
    )
    return model


def decode_latents(model: Any, latents: Tensor) -> Tensor:
    """Decode VAE latents (16, n, h, w) to RGB from -1 to 1, (1 + 4 * (n - 1), height, width, 3)."""
    conv = model.post_quant_conv
    frames = latents.permute(1, 2, 3, 0).contiguous()
    frames = conv_frames(frames, conv.weight[:, :, 0], conv.bias).contiguous()
    video = decode_video(model.decoder, frames)
    return torch.clamp(video, -1, 1)
