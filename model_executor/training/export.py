"""Writes a trained model as a checkpoint folder in bfloat16, in the published layout."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from helios_serve.model_config import LATENT_CHANNELS, Variant
from helios_serve.model_executor.components import Part, build_parts, patch_kernel
from helios_serve.model_executor.models.architectures import (
    TRANSFORMER,
    UMT5_XXL,
    WAN_VAE,
    model_index,
    scheduler_config,
)
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.models.nano.tokenizer import save_tokenizer
from helios_serve.model_executor.models.published import write_json
from helios_serve.model_executor.training.optimizer import part
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.text_rows import vocabulary
from helios_serve.model_executor.weights import STEMS


def export_checkpoint(
    folder: Path,
    variant: Variant,
    recipe: Recipe,
    model: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
) -> None:
    """Write the weights of a NanoModel and of a VAE to `folder`: equal weights, equal bytes."""
    vocab_size = save_tokenizer(folder / "tokenizer", vocabulary())
    text = UMT5_XXL | recipe.text | {"vocab_size": vocab_size}
    channels = {"latents_mean": [0.0] * LATENT_CHANNELS, "latents_std": [1.0] * LATENT_CHANNELS}
    write_json(folder, "model_index.json", model_index(variant))
    write_json(folder, "scheduler/scheduler_config.json", scheduler_config(variant))
    write_json(folder, "transformer/config.json", TRANSFORMER | recipe.transformer)
    write_json(folder, "text_encoder/config.json", text)
    write_json(folder, "vae/config.json", WAN_VAE | recipe.vae | channels)
    sources = {
        "transformer": part(dict(model), "transformer"),
        "text_encoder": part(dict(model), "text_encoder"),
        "vae": dict(vae),
    }
    parts = build_parts(folder, read_config(folder), torch.bfloat16)
    for name, built in parts.items():
        stem = STEMS[name == "text_encoder"]
        tensors = stored_tensors(built, sources[name])
        save_file(tensors, folder / name / f"{stem}.safetensors", metadata={"format": "pt"})


def stored_tensors(built: Part, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a component's weights as they are stored: bfloat16, patches as convolutions."""
    module, component = built
    return {
        name: stored_patch_weight(name, weights[name]).to(torch.bfloat16).contiguous()
        for name in module.state_dict()
        if name not in component.optional
    }


def stored_patch_weight(name: str, weight: Tensor) -> Tensor:
    """The reverse of `flatten_patch_weight`: (dim, t * y * x * 64) -> (dim, 16, t, 2y, 2x)."""
    kernel = patch_kernel(name)
    if kernel is None:
        return weight
    frames, height, width = kernel
    grid = (frames, height // 2, width // 2, 2, 2, LATENT_CHANNELS)
    patches = weight.reshape(len(weight), *grid).permute(0, 6, 1, 2, 4, 3, 5)
    return patches.reshape(len(weight), LATENT_CHANNELS, *kernel)
