"""Loading a checkpoint in one call."""

from typing import Any

import torch
from torch import Tensor

from helios_serve.model_executor.device import DTYPES
from helios_serve.model_executor.loader import (
    LoadedModel,
    LoadFormat,
    load_checkpoint,
    open_checkpoint,
)


def load_model(
    model: str, *, dtype: str = "float32", load_format: LoadFormat = "auto", **options: Any
) -> LoadedModel:
    """The checkpoint on the CPU; `options` are those of `load_checkpoint`."""
    checkpoint = open_checkpoint(model, load_format)
    return load_checkpoint(checkpoint, torch.device("cpu"), DTYPES[dtype], **options)


def blank_frames(latents: Tensor) -> Tensor:
    """A stand-in for VAE decoding, which would take most of the time of a latent test."""
    return torch.zeros(33, 8 * latents.shape[-2], 8 * latents.shape[-1], 3, dtype=torch.uint8)
