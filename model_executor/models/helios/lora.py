"""Linear layers with per-segment LoRA adapters: one base matmul per pack, plus low-rank terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios_serve.kernels.fp8 import Rows
from helios_serve.kernels.linear import linear

TIME_LAYERS = ("condition_embedder.time_embedder.", "condition_embedder.time_proj")
"""Names of the layers that embed timesteps."""


class LowRank(NamedTuple):
    """A low-rank term: `down` (rank, in) and `up` (out, rank), with the adapter's scale in `up`."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """The low-rank terms of an adapter, by the name of the linear layer."""

    layers: dict[str, LowRank]

    @cached_property
    def changes_time(self) -> bool:
        """Whether the adapter applies to the embedding of timesteps."""
        return any(name.startswith(TIME_LAYERS) for name in self.layers)


AdapterRows = Sequence[tuple[slice, LoraAdapter]]
"""Slices of rows, and the adapter that applies to each."""


class LoraLinear(nn.Linear):
    """A linear layer to which segments add low-rank terms.

    `name` is its name in the checkpoint, which adapters refer to. If `weight_scale` (out, 1) is
    set, the weight is float8; checkpoints do not store it.
    """

    name = ""
    weight_scale: Tensor | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("weight_scale", None, persistent=False)

    def forward(
        self,
        x: Rows,
        lora: AdapterRows = (),
        *,
        gelu: bool = False,
        out: Tensor | None = None,
    ) -> Tensor:
        """x (rows, in) -> (rows, out), which are written to `out` if that is given.

        `lora` lists rows and the adapter that applies to them; they must not be in float8. With
        `gelu` the activation is applied to the sum of base and low-rank terms.
        """
        is_fused = gelu and not any(self.name in adapter.layers for _, adapter in lora)
        made = linear(x, self.weight, self.bias, scale=self.weight_scale, gelu=is_fused, out=out)
        self.add_terms_(made, x, lora)
        return F.gelu(made, approximate="tanh") if gelu and not is_fused else made

    def add_terms_(self, out: Tensor, x: Rows, lora: AdapterRows) -> None:
        """Add each segment's low-rank term to its rows of `out`."""
        for rows, adapter in lora:
            if (term := adapter.layers.get(self.name)) is not None:
                assert isinstance(x, Tensor), "an adapter needs rows in full precision"
                out[rows] += F.linear(F.linear(x[rows], term.down), term.up)


class Joined(NamedTuple):
    """The concatenated weights, biases and, for float8, scales of several layers."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None


class Projections:
    """Linear layers with the same input, computed as one matmul after `join`.

    The layers keep their names and parameters, which become views of the concatenated weights, so
    that no memory is added.
    """

    def __init__(self, *layers: LoraLinear) -> None:
        self.layers = layers
        self._joined: Joined | None = None

    def join(self) -> None:
        """Concatenate the weights. Call it after loading: loading or moving weights undoes it."""
        weight = torch.cat([layer.weight for layer in self.layers])
        bias = torch.cat([layer.bias for layer in self.layers])
        scales = [layer.weight_scale for layer in self.layers if layer.weight_scale is not None]
        sizes = [layer.out_features for layer in self.layers]
        for layer, rows, entries in zip(
            self.layers, torch.split(weight, sizes), torch.split(bias, sizes), strict=True
        ):
            layer.weight.data, layer.bias.data = rows, entries
        self._joined = Joined(weight, bias, torch.cat(scales) if scales else None)

    def __call__(self, x: Rows, lora: AdapterRows, *, skip: int = 0) -> Sequence[Tensor]:
        """x (rows, in) -> (rows, out) of each layer except the first `skip`."""
        layers = self.layers[skip:]
        if self._joined is None:
            return [layer(x, lora) for layer in layers]
        weight, bias, scale = self._joined
        assert weight.data_ptr() == self.layers[0].weight.data_ptr(), "weights moved: join again"
        first = sum(layer.out_features for layer in self.layers[:skip])
        scale = None if scale is None else scale[first:]
        out = linear(x, weight[first:], bias[first:], scale=scale)
        parts = torch.split(out, [layer.out_features for layer in layers], dim=-1)
        for layer, part in zip(layers, parts, strict=True):
            layer.add_terms_(part, x, lora)
        return parts


def name_layers(module: nn.Module) -> None:
    """Set the name of each LoraLinear in `module` to its name in the checkpoint."""
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLinear):
            layer.name = name
