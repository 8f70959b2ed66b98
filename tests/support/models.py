"""Loading a checkpoint in one call."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from helios_serve.model_executor.device import DTYPES
from helios_serve.model_executor.loader import (
    LoadedModel,
    load_checkpoint,
    open_checkpoint,
)
from helios_serve.options.workers import ROLES, LoadFormat, WorkerOptions

Part = TypeVar("Part")


def load_model(
    model: str, *, dtype: str = "float32", load_format: LoadFormat = "auto", **options: Any
) -> LoadedModel:
    """Load a checkpoint on the CPU. `options` are roles and fields of WorkerOptions."""
    checkpoint = open_checkpoint(model, load_format)
    roles = options.pop("roles", ROLES)
    return load_checkpoint(
        checkpoint, torch.device("cpu"), DTYPES[dtype], roles, WorkerOptions(**options)
    )


def loaded(part: Part | None) -> Part:
    """Return a part of a model. Asserts that it is loaded."""
    assert part is not None
    return part


def blank_frames(latents: Tensor) -> Tensor:
    """A replacement for VAE decoding, which would take most of the time of a test of latents."""
    return torch.zeros(33, 8 * latents.shape[-2], 8 * latents.shape[-1], 3, dtype=torch.uint8)
