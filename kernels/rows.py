"""What the rows of a packed sequence are: runs and slices for torch, tables of indices for kernels.

Tables are made once a pack, on its device, and the host never waits for them.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Rows [start, stop) of a packed sequence, modulated by row `table_row`.

    Row 0 of a modulation table is timestep 0, which history alone takes.
    """

    start: int
    stop: int
    table_row: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def is_history(self) -> bool:
        return self.table_row == 0


class PackRows:
    """The rows of a packed sequence as runs, which follow each other from row 0 on."""

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
        """Each row's row of the modulation table: int32 (rows,)."""
        lengths = torch.tensor([run.stop - run.start for run in self.runs])
        numbers = torch.tensor([run.table_row for run in self.runs], dtype=torch.int32)
        return upload(numbers.repeat_interleave(lengths), self.device)

    @cached_property
    def noise_place(self) -> Tensor:
        """Each noise row's place among the noise rows, -1 for history: int32 (rows,)."""
        places = torch.full((len(self),), -1, dtype=torch.int32)
        first = 0
        for run in self.runs:
            if not run.is_history:
                stop = first + run.stop - run.start
                places[run.rows] = torch.arange(first, stop, dtype=torch.int32)
                first = stop
        return upload(places, self.device)


class Lengths:
    """Segments that lie end to end, as attention takes them."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.offsets = (0, *accumulate(lengths))
        self.longest = max(lengths)
        self.device = device

    @property
    def slices(self) -> list[slice]:
        return [slice(start, stop) for start, stop in pairwise(self.offsets)]

    @cached_property
    def cumulative(self) -> Tensor:
        """Where each segment starts, and where the last one stops: int32 (segments + 1,)."""
        return upload(torch.tensor(self.offsets, dtype=torch.int32), self.device)


class NormTable(NamedTuple):
    """What a layer norm is multiplied with and shifted by: fp32 (table rows, dim) each.

    A table of one row serves every row of the sequence.
    """

    weight: Tensor
    bias: Tensor

    def row_of(self, run: Run) -> int:
        return run.table_row if len(self.weight) > 1 else 0


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`, without waiting for what the device is at."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def join(parts: Sequence[Tensor]) -> Tensor:
    """Parts end to end; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
