"""Host memory that a device copies from at full speed."""

from collections.abc import Iterable

import torch
from torch import Tensor

PIECE_BYTES = 1 << 30
"""torch rounds an allocation of pinned memory up to a power of two: this is one."""
ALIGNMENT = 256


class HostMemory:
    """Room for tensors of `sizes` bytes, in large pieces; pinned where `device` is no CPU.

    What is lost is what the last tensor of a piece leaves free, and what torch rounds the last
    piece up by.
    """

    def __init__(
        self, sizes: Iterable[int], device: torch.device, *, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self.piece_bytes = piece_bytes
        self._left = sum(map(aligned, sizes))
        self._pinned = device.type != "cpu"
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor` here."""
        size = aligned(tensor.nbytes)
        if self._used + size > len(self._piece):
            length = max(size, min(self.piece_bytes, self._left))
            self._piece = torch.empty(length, dtype=torch.uint8, pin_memory=self._pinned)
            self._used = 0
        place = self._piece[self._used : self._used + tensor.nbytes]
        self._used += size
        self._left -= size
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
