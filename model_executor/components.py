"""Builds the modules of a checkpoint on the meta device and describes how their files fill them."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from helios_serve.errors import CheckpointError
from helios_serve.kernels.reference import quantize_rows
from helios_serve.model_config import LATENT_CHANNELS, HeliosConfig
from helios_serve.model_executor.models.helios.config import read_json
from helios_serve.model_executor.models.helios.lora import LoraLinear
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae
from helios_serve.model_executor.weights import Component
from helios_serve.options.workers import Quantization, Role

PATCH_KERNELS = {
    "patch_embedding": (1, 2, 2),
    "patch_short": (1, 2, 2),
    "patch_mid": (2, 4, 4),
    "patch_long": (4, 8, 8),
}
"""Kernel size (frames, rows, columns), in latent pixels, of each patch embedding."""
FP32_PARTS = ("time_embedder", "scale_shift_table", "norm2", "history_key_scale")
"""Parameters that stay in fp32 whatever the model's dtype, as in diffusers 0.42.1."""

PARTS_OF_ROLE: dict[Role, tuple[str, ...]] = {
    "encode": ("text_encoder", "vae"),
    "denoise": ("transformer",),
    "decode": ("vae",),
}
"""The parts of a checkpoint that each role needs."""
PARTS = ("transformer", "text_encoder", "vae")
"""All parts, in the order in which they are loaded."""

DECODER_PARTS = ("decoder.", "post_quant_conv.")
"""Prefixes of the parameters that the VAE needs for decoding."""
MULTIPLE = 16
"""Both dimensions of a weight must be multiples of this for the FP8 matmul of accelerators."""
SCALE = "_scale"
"""Suffix of the name of a weight's scales."""


class Part(NamedTuple):
    """A module on the meta device, and the description of its files."""

    module: nn.Module
    component: Component


def build_parts(
    folder: Path,
    config: HeliosConfig,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    *,
    decode_dtype: torch.dtype = torch.float32,
    needed: Collection[str] = PARTS,
) -> dict[str, Part]:
    """Build the transformer, text encoder and VAE of the checkpoint in `folder`.

    Returns the parts by the names of their subfolders, those that are `needed`. Raises
    CheckpointError for a configuration that is not supported.
    """
    parts: dict[str, Part] = {}
    if "transformer" in needed:
        parts["transformer"] = build_transformer(folder, config, dtype, quantization)
    if "text_encoder" in needed:
        parts["text_encoder"] = build_text_encoder(folder, config, dtype)
    if "vae" in needed:
        parts["vae"] = build_vae(folder, decode_dtype)
    return parts


def parts_of(roles: Iterable[Role]) -> frozenset[str]:
    """Return the names of the parts that a worker with `roles` needs."""
    return frozenset(name for role in roles for name in PARTS_OF_ROLE[role])


def build_transformer(
    folder: Path,
    config: HeliosConfig,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
) -> Part:
    quantized: frozenset[str] = frozenset()
    with torch.device("meta"):
        module = HeliosTransformer(config.transformer)
        if quantization == "fp8":
            quantized = quantize_layers(module.blocks, "blocks")
    component = Component(
        folder / "transformer",
        rename_transformer_key,
        dtype_of=lambda name: torch.float32 if any(part in name for part in FP32_PARTS) else dtype,
        convert=flatten_patch_weight,
        stored_shape=stored_patch_shape,
        postprocess=lambda name, tensor: (
            quantize_weight(name, tensor) if name in quantized else {name: tensor}
        ),
    )
    return Part(module, component)


def build_text_encoder(folder: Path, config: HeliosConfig, dtype: torch.dtype) -> Part:
    # Imported here because it takes a second or two, which workers without the role save.
    from transformers import UMT5Config, UMT5EncoderModel

    settings = read_json(folder, "text_encoder/config.json")
    if settings.get("d_model") != config.transformer.text_dim:
        raise CheckpointError(
            f"text_encoder/config.json: d_model: got {settings.get('d_model')}, "
            f"expected the transformer's text_dim {config.transformer.text_dim}"
        )
    with torch.device("meta"):
        module = UMT5EncoderModel(UMT5Config(**(settings | {"tie_word_embeddings": True})))
    tied = "encoder.embed_tokens.weight"
    component = Component(
        folder / "text_encoder",
        rename=lambda key: "shared.weight" if key == tied else key,
        dtype_of=lambda _: dtype,
        optional=frozenset({tied}),
    )
    return Part(module, component)


def build_vae(folder: Path, decode_dtype: torch.dtype) -> Part:
    """Build the VAE in fp32, as its checkpoints document, with a decoder in `decode_dtype`.

    Raises CheckpointError for a configuration that is not supported.
    """
    settings = read_json(folder, "vae/config.json")
    with torch.device("meta"):
        module = WanVae(settings)
    component = Component(
        folder / "vae",
        rename=lambda key: key,
        dtype_of=lambda name: decode_dtype if name.startswith(DECODER_PARTS) else torch.float32,
    )
    return Part(module, component)


def rename_transformer_key(key: str) -> str | None:
    """Return the parameter for a checkpoint key; None for a key to ignore.

    Official checkpoints store the final scale-shift table at the top level, and an unused norm.
    """
    if "norm_added_q" in key:
        return None
    return "norm_out.scale_shift_table" if key == "scale_shift_table" else key


def stored_patch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which a parameter of `shape` is stored.

    Patch embeddings are stored as convolution weights: (dim, 16, frames, height, width).
    """
    kernel = patch_kernel(name)
    return shape if kernel is None else (shape[0], LATENT_CHANNELS, *kernel)


def flatten_patch_weight(name: str, weight: Tensor) -> Tensor:
    """Convert a patch embedding's convolution weight to a matmul over rows of base patches.

    (dim, 16, t, 2y, 2x) -> (dim, t * y * x * 64). Base patches are in order t, y, x, and the values
    of each in order (row, column, channel). Other weights are returned unchanged.
    """
    if patch_kernel(name) is None:
        return weight
    dim, channels, t, height, width = weight.shape
    patches = weight.reshape(dim, channels, t, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 3, 5, 4, 6, 1).flatten(1)


def patch_kernel(name: str) -> tuple[int, int, int] | None:
    """Return the kernel size of a patch embedding's weight; None for other parameters."""
    layer, _, leaf = name.partition(".")
    return PATCH_KERNELS.get(layer) if leaf == "weight" else None


def tie_embeddings(text_encoder: nn.Module) -> None:
    """Tie the encoder's embedding to `shared.weight`: checkpoints store only the latter."""
    shared = text_encoder.get_submodule("shared")
    text_encoder.get_submodule("encoder.embed_tokens").weight = shared.weight


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
