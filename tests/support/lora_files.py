"""Random LoRA adapters in diffusers' format."""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from helios_serve.model_executor.components import PATCH_KERNELS
from helios_serve.model_executor.models.helios.lora import LoraLinear
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer

LAYERS = ("attn1.to_q", "attn1.to_out.0", "attn2.to_k", "ffn.net.0.proj")


def write_full_lora(path: Path, transformer: HeliosTransformer, *, seed: int = 6) -> Path:
    """Write an adapter for all layers: blocks, patch, time and text embedders, and projection."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in transformer.named_modules():
        if not isinstance(layer, LoraLinear):
            continue
        inputs: tuple[int, ...] = (layer.in_features,)
        if name in PATCH_KERNELS:
            kernel = PATCH_KERNELS[name]
            inputs = (layer.in_features // math.prod(kernel), *kernel)
        outputs = (1,) * (len(inputs) - 1)
        down = torch.randn(4, *inputs, generator=generator) * layer.in_features**-0.5
        up = torch.randn(layer.out_features, 4, *outputs, generator=generator) * 0.1
        tensors[f"transformer.{name}.lora_A.weight"] = down
        tensors[f"transformer.{name}.lora_B.weight"] = up
    save_file(tensors, path)
    return path


def write_lora(
    path: Path, transformer: HeliosTransformer, *, rank: int = 4, prefix: str = "transformer."
) -> Path:
    """Write an adapter for some layers of every block, strong enough to be visible."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for block in range(transformer.config.num_layers):
        for layer in LAYERS:
            name = f"blocks.{block}.{layer}"
            out_features, in_features = transformer.get_parameter(f"{name}.weight").shape
            down = torch.randn(rank, in_features, generator=generator) * in_features**-0.5
            up = torch.randn(out_features, rank, generator=generator) * 0.3
            tensors[f"{prefix}{name}.lora_A.weight"] = down
            tensors[f"{prefix}{name}.lora_B.weight"] = up
    save_file(tensors, path)
    return path
