"""The layout of a packed sequence: runs and slices for torch, index tensors for kernels.

Index tensors are built once per pack and uploaded without a device synchronization.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Rows [start, stop) of a packed sequence, modulated by row `table_row` of a table.

    They are history or noise tokens.
    """

    start: int
    stop: int
    table_row: int
    is_history: bool = False

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


class PackRows:
    """The rows of a packed sequence as contiguous runs, starting at row 0."""

    def __init__(self, runs: Sequence[Run], device: torch.device) -> None:
        self.runs = tuple(runs)
        self.device = device

    def __len__(self) -> int:
        return self.runs[-1].stop

    @cached_property
    def num_noise(self) -> int:
        return sum(run.stop - run.start for run in self.runs if not run.is_history)

    @cached_property
    def table_row(self) -> Tensor:
        """The row of the modulation table for each row: int32 (rows,)."""
        lengths = torch.tensor([run.stop - run.start for run in self.runs])
        numbers = torch.tensor([run.table_row for run in self.runs], dtype=torch.int32)
        return upload(numbers.repeat_interleave(lengths), self.device)

    @cached_property
    def noise_place(self) -> Tensor:
        """The index of each noise row among the noise rows, -1 for history: int32 (rows,)."""
        places = torch.full((len(self),), -1, dtype=torch.int32)
        first = 0
        for run in self.runs:
            if not run.is_history:
                stop = first + run.stop - run.start
                places[run.rows] = torch.arange(first, stop, dtype=torch.int32)
                first = stop
        return upload(places, self.device)


class Lengths:
    """The lengths of the segments of a packed sequence, as attention takes them."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.offsets = (0, *accumulate(lengths))
        self.longest = max(lengths)
        self.device = device

    @property
    def slices(self) -> list[slice]:
        return [slice(start, stop) for start, stop in pairwise(self.offsets)]

    @cached_property
    def cumulative(self) -> Tensor:
        """The start of each segment and the end of the last one: int32 (segments + 1,)."""
        return upload(torch.tensor(self.offsets, dtype=torch.int32), self.device)


class NormTable(NamedTuple):
    """The factors and shifts of a layer norm: fp32 (table rows, dim) each.

    A table with one row applies to every row of the sequence.
    """

    weight: Tensor
    bias: Tensor

    def row_of(self, run: Run) -> int:
        """The row of this table that applies to `run`."""
        return run.table_row if len(self.weight) > 1 else 0


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device` without waiting for the device."""
    if device.type == "cpu":
        return tensor
    if device.type == "meta":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate parts along rows; a single part is returned without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
