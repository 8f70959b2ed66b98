"""FP8 quantization of linear layers at load time."""

import torch
from torch import Tensor, nn

from helios_serve.kernels.reference import quantize_rows
from helios_serve.model_executor.models.helios.lora import LoraLinear

MULTIPLE = 16
"""Both dimensions of a weight must be multiples of this for the FP8 matmul of accelerators."""
SCALE = "_scale"
"""Suffix of the name of a weight's scales."""


def quantize_layers(module: nn.Module, prefix: str) -> frozenset[str]:
    """Prepare the LoraLinear layers of `module`, on the meta device, for float8 weights.

    Returns the names of the weights, prefixed with `prefix`.
    """
    names = set()
    for path, layer in module.named_modules():
        if not isinstance(layer, LoraLinear):
            continue
        if layer.in_features % MULTIPLE == layer.out_features % MULTIPLE == 0:
            layer.weight_scale = torch.empty(layer.out_features, 1, device="meta")
            names.add(f"{prefix}.{path}.weight")
    return frozenset(names)


def quantize_weight(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Quantize a weight to float8 values and one fp32 scale per row, by the names of both."""
    values, scale = quantize_rows(weight)
    return {name: values, name + SCALE: scale}
