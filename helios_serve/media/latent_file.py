"""Writes the latents of a video to a safetensors file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from helios_serve.messages import TensorData

NAME = "latents"
"""Name of the tensor in the file."""


def save_latents(path: Path, parts: Sequence[TensorData]) -> tuple[int, ...]:
    """Write `parts`, (1, 16, latent frames, h, w) each, as one float32 tensor called `latents`.

    The parts are concatenated along time. Returns the shape of the tensor.
    """
    joined = np.concatenate([to_float32(part) for part in parts], axis=2)
    save_file({NAME: joined}, path)
    return joined.shape


def to_float32(part: TensorData) -> NDArray[np.float32]:
    """Convert latents to float32, which is exact; numpy has no bfloat16."""
    if part.dtype == "float32":
        return np.frombuffer(part.data, np.float32).reshape(part.shape)
    if part.dtype == "bfloat16":
        bits = np.frombuffer(part.data, np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(part.shape)
    raise ValueError(f"got latents in {part.dtype}, expected float32 or bfloat16")
