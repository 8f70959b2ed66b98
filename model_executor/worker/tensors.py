"""Latents between tensors and messages."""

import torch
from torch import Tensor

from helios_serve.messages import Latents


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_message(latents: Tensor) -> Latents:
    """(16, frames, h, w) as raw bytes, in its own dtype."""
    held = latents.contiguous().cpu()
    raw = held.view(torch.uint8).numpy().tobytes()
    return Latents(raw, (1, *held.shape), dtype_name(held.dtype))


def as_latents(message: Latents) -> Tensor:
    """The (1, 16, frames, h, w) tensor of a message."""
    dtype = getattr(torch, message.dtype)
    return torch.frombuffer(bytearray(message.data), dtype=dtype).view(message.shape)
