"""The configuration of a Wan VAE, as checkpoints store it."""

from typing import Any

import msgspec

from helios_serve.errors import CheckpointError

MEANS = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
STDS = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
"""Mean and standard deviation of each latent channel of Wan 2.1."""


class WanVaeConfig(msgspec.Struct, frozen=True):
    """The fields of `vae/config.json` that the modules depend on, with diffusers' defaults.

    - `base_dim`, `decoder_base_dim`: channels at the full resolution, times the first of
      `dim_mult`; None for the decoder means those of the encoder.
    - `z_dim`: channels of the latents.
    - `num_res_blocks`: residual blocks of each resolution in the encoder; the decoder has one more.
    - `temperal_downsample`: whether each downsampling halves the frames, from the pixels down.
    - `latents_mean`, `latents_std`: of each latent channel.
    - `is_residual`, `patch_size`, `attn_scales`: what Wan 2.2 has and Helios has not.
    """

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = MEANS
    latents_std: tuple[float, ...] = STDS
    is_residual: bool = False
    patch_size: int | None = None
    attn_scales: tuple[float, ...] = ()


def read_vae_config(settings: dict[str, Any]) -> WanVaeConfig:
    """Return the configuration in `vae/config.json`; other fields are ignored.

    Raises CheckpointError for invalid values, and for parts that Wan 2.1 does not have.
    """
    try:
        config = msgspec.convert(settings, WanVaeConfig)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"vae/config.json: {error}") from error
    if config.is_residual or config.patch_size is not None or config.attn_scales:
        raise CheckpointError(
            "vae/config.json: got is_residual, patch_size or attn_scales, expected none of them, "
            "as in the VAE of Wan 2.1"
        )
    levels = len(config.dim_mult)
    counts = (len(config.temperal_downsample), len(config.latents_mean), len(config.latents_std))
    if counts != (levels - 1, config.z_dim, config.z_dim):
        raise CheckpointError(
            f"vae/config.json: got {counts[0]} temperal_downsample, {counts[1]} latents_mean and "
            f"{counts[2]} latents_std, expected {levels - 1}, {config.z_dim} and {config.z_dim}"
        )
    return config
