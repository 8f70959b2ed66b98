"""Which linear layers are kept in float8, and how their weights become that at load."""

import torch
from torch import Tensor, nn

from helios_serve.kernels.reference import quantize_rows
from helios_serve.model_executor.models.helios.lora import LoraLinear

MULTIPLE = 16
"""Both sizes of a weight must divide by this, or accelerators refuse it."""
SCALE = "_scale"


def quantize_layers(module: nn.Module, prefix: str) -> frozenset[str]:
    """Prepare every LoraLinear below `module`, on the meta device, for float8.

    Returns the names of their weights, as seen from where `module` is called `prefix`.
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
    """What a layer keeps of its weight, by the names of its tensors."""
    values, scale = quantize_rows(weight)
    return {name: values, name + SCALE: scale}
