"""Pinned host memory for offloaded weights."""

from collections.abc import Iterable

import torch
from torch import Tensor

PIECE_BYTES = 1 << 30
"""Bytes of a piece. torch rounds allocations of pinned memory up to a power of two."""
ALIGNMENT = 256
"""Alignment of tensors, in bytes."""


class HostMemory:
    """Host memory for tensors of the given `sizes` in bytes, allocated in large pieces.

    The memory is pinned, so that `device` copies from it at full speed, unless `device` is a CPU.
    Pieces waste little memory: the space after the last tensor of each one, and the rounding of the
    last piece.
    """

    def __init__(
        self, sizes: Iterable[int], device: torch.device, *, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self.piece_bytes = piece_bytes
        self._left = sum(map(aligned, sizes))
        self._pinned = device.type != "cpu"
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def store(self, tensor: Tensor) -> Tensor:
        """Copy `tensor` into this memory and return the copy."""
        size = aligned(tensor.nbytes)
        if self._used + size > len(self._piece):
            length = max(size, min(self.piece_bytes, self._left))
            self._piece = torch.empty(length, dtype=torch.uint8, pin_memory=self._pinned)
            self._used = 0
        copy = self._piece[self._used : self._used + tensor.nbytes]
        self._used += size
        self._left -= size
        return copy.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
