"""Conversion of tensors to and from messages."""

import torch
from torch import Tensor

from helios_serve.messages import TensorData


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without `torch.`, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def as_bytes(tensor: Tensor) -> bytes:
    """Return the elements of a tensor as bytes, row major, in its dtype."""
    return tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def as_data(tensor: Tensor) -> TensorData:
    """Convert a tensor to a message."""
    return TensorData(as_bytes(tensor), tuple(tensor.shape), dtype_name(tensor.dtype))


def as_tensor(message: TensorData) -> Tensor:
    """Convert a message to a tensor on the CPU."""
    if not message.data:
        return torch.empty(message.shape, dtype=getattr(torch, message.dtype))
    flat = torch.frombuffer(bytearray(message.data), dtype=getattr(torch, message.dtype))
    return flat.view(message.shape)
