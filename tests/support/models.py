"""Loading a checkpoint in one call."""

import torch

from helios_serve.model_executor.device import DTYPES
from helios_serve.model_executor.loader import (
    LoadedModel,
    LoadFormat,
    load_checkpoint,
    open_checkpoint,
)


def load_model(
    model: str, *, dtype: str = "float32", load_format: LoadFormat = "auto"
) -> LoadedModel:
    """The checkpoint on the CPU."""
    return load_checkpoint(open_checkpoint(model, load_format), torch.device("cpu"), DTYPES[dtype])
