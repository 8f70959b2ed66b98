"""Loading a checkpoint in one call."""

from typing import Any, TypeVar

import torch

from helios_serve.model_executor.device import DTYPES
from helios_serve.model_executor.loader import (
    LoadedModel,
    LoadFormat,
    load_checkpoint,
    open_checkpoint,
)

Part = TypeVar("Part")


def load_model(
    model: str, *, dtype: str = "float32", load_format: LoadFormat = "auto", **options: Any
) -> LoadedModel:
    """The checkpoint on the CPU; `options` are those of `load_checkpoint`."""
    checkpoint = open_checkpoint(model, load_format)
    return load_checkpoint(checkpoint, torch.device("cpu"), DTYPES[dtype], **options)


def loaded(part: Part | None) -> Part:
    """A part of a model, which must be loaded."""
    assert part is not None
    return part
