"""Random LoRA adapters in diffusers' format."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from helios_serve.model_executor.models.helios.transformer import HeliosTransformer

LAYERS = ("attn1.to_q", "attn1.to_out.0", "attn2.to_k", "ffn.net.0.proj")


def write_lora(
    path: Path, transformer: HeliosTransformer, *, rank: int = 4, prefix: str = "transformer."
) -> Path:
    """An adapter for some layers of every block, strong enough to see."""
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
