"""Tensors in and out of messages."""

import torch
from torch import Tensor

from helios_serve.messages import TensorData


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_bytes(tensor: Tensor) -> bytes:
    """The tensor's elements, row major, in its own dtype."""
    return tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def as_data(tensor: Tensor) -> TensorData:
    return TensorData(as_bytes(tensor), tuple(tensor.shape), dtype_name(tensor.dtype))


def as_tensor(message: TensorData) -> Tensor:
    """The tensor of a message, on the CPU."""
    if not message.data:
        return torch.empty(message.shape, dtype=getattr(torch, message.dtype))
    flat = torch.frombuffer(bytearray(message.data), dtype=getattr(torch, message.dtype))
    return flat.view(message.shape)
