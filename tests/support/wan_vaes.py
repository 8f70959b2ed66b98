"""The Wan VAE twice, ours and diffusers', with the same random weights."""

from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan

from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae

NANO: dict[str, Any] = {"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
PUBLISHED: dict[str, Any] = {}
"""Widths, as arguments of `vae_pair`."""
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Largest difference between the results of both, by dtype."""


class VaePair(NamedTuple):
    own: WanVae
    reference: AutoencoderKLWan


def vae_pair(widths: dict[str, Any], dtype: torch.dtype) -> VaePair:
    """Return both with `widths`, in `dtype`."""
    torch.manual_seed(0)
    reference = AutoencoderKLWan(**widths).eval()
    for name, parameter in reference.named_parameters():
        if "gamma" in name:
            parameter.normal_(1, 0.2)
    own = WanVae(dict(reference.config)).eval()
    own.load_state_dict(reference.state_dict())
    for model in (reference, own):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return VaePair(own, reference)
