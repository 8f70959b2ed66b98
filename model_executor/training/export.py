"""Writes a trained model as a checkpoint folder in bfloat16, in the published layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helios_serve.model_config import LATENT_CHANNELS, Variant
from helios_serve.model_executor.components import Part, build_parts, patch_kernel
from helios_serve.model_executor.models.architectures import TEXT_ENCODER_FILE, trained_files
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.models.nano.checkpoint import VAE_WEIGHTS, write_weights
from helios_serve.model_executor.models.nano.tokenizer import save_tokenizer
from helios_serve.model_executor.models.nano.vocabulary import trained_tokenizer
from helios_serve.model_executor.models.published import write_json
from helios_serve.model_executor.training.codec import Codec
from helios_serve.model_executor.training.optimizer import part
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.weights import weight_files

CODEC_FILE = "codec.safetensors"
"""The codec that the packaged weights were trained with. Only later trainings need it."""
READABLE = 0o644
"""Mode of the package's files: whoever installs it is not the only one to use it."""


def export_checkpoint(
    folder: Path,
    variant: Variant,
    recipe: Recipe,
    model: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
) -> None:
    """Write the weights of a NanoModel and of a VAE to `folder`: equal weights, equal bytes."""
    vocab_size = save_tokenizer(trained_tokenizer(), folder / "tokenizer")
    files = trained_files(variant, recipe.widths)
    files[TEXT_ENCODER_FILE] |= {"vocab_size": vocab_size}
    for name, content in files.items():
        write_json(folder, name, content)
    sources = {
        "transformer": part(dict(model), "transformer"),
        "text_encoder": part(dict(model), "text_encoder"),
        "vae": dict(vae),
    }
    parts = build_parts(folder, read_config(folder), torch.bfloat16)
    for name, built in parts.items():
        write_weights(built.component.folder, stored_tensors(built, sources[name]))


def package_weights(folder: Path, checkpoints: Mapping[str, Path], codec: Codec) -> None:
    """Write the weights of exported `checkpoints`, by built-in model, as the package has them.

    They share a VAE, and the codec that they were trained with. Equal checkpoints give equal bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for model, checkpoint in checkpoints.items():
        write_package_file(
            folder / f"{model}.safetensors",
            joined_weights(checkpoint, ("transformer", "text_encoder")),
        )
        write_package_file(
            folder / f"{VAE_WEIGHTS}.safetensors", joined_weights(checkpoint, (VAE_WEIGHTS,))
        )
    write_package_file(folder / CODEC_FILE, codec._asdict())


def write_package_file(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(READABLE)


def joined_weights(checkpoint: Path, components: Sequence[str]) -> dict[str, Tensor]:
    """Return the weights of components of a checkpoint; names begin with the component's."""
    return {
        f"{component}.{name}": tensor
        for component in components
        for path in weight_files(checkpoint / component)
        for name, tensor in load_file(path).items()
    }


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
