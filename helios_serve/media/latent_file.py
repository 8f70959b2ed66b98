"""Latents of a video as one safetensors file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from helios_serve.messages import TensorData

NAME = "latents"


def save_latents(path: Path, parts: Sequence[TensorData]) -> tuple[int, ...]:
    """Write `parts`, joined along time, as the float32 tensor `latents`; returns its shape."""
    joined = np.concatenate([widened(part) for part in parts], axis=2)
    save_file({NAME: joined}, path)
    return joined.shape


def widened(part: TensorData) -> NDArray[np.float32]:
    """The latents in float32, which holds every bfloat16 exactly; numpy has no bfloat16."""
    if part.dtype == "float32":
        return np.frombuffer(part.data, np.float32).reshape(part.shape)
    if part.dtype == "bfloat16":
        bits = np.frombuffer(part.data, np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(part.shape)
    raise ValueError(f"got latents in {part.dtype}, expected float32 or bfloat16")
