"""LoRA adapters that belong to a session: the base matmul once a pack, low-rank terms a segment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class LowRank(NamedTuple):
    """down (rank, in), up (out, rank); the adapter's scale is already in `up`."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """Low-rank terms by the name of the linear layer that they add to."""

    layers: dict[str, LowRank]


class LoraLinear(nn.Linear):
    """A linear layer that knows its name, so that segments can add their own low-rank terms."""

    name = ""

    def forward(self, x: Tensor, lora: Sequence[tuple[slice, LoraAdapter]] = ()) -> Tensor:
        """x (rows, in) -> (rows, out); `lora` says which rows follow which adapter."""
        out = F.linear(x, self.weight, self.bias)
        for rows, adapter in lora:
            if (term := adapter.layers.get(self.name)) is not None:
                out[rows] += F.linear(F.linear(x[rows], term.down), term.up)
        return out


def name_layers(module: nn.Module) -> None:
    """Tell every LoraLinear below `module` its name in the checkpoint."""
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLinear):
            layer.name = name
