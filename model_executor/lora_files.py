"""Loads LoRA adapters in diffusers' format and maps them to the layers of a transformer."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from helios_serve.errors import CheckpointError
from helios_serve.model_executor.models.helios.lora import LoraAdapter, LoraLinear, LowRank

FILE_NAME = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."
DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"


AdapterKey = tuple[str, int, float]
"""The file, its modification time in nanoseconds, and the scale of an adapter."""


def adapter_key(path: str, scale: float) -> AdapterKey:
    """Return the cache key of an adapter. Raises CheckpointError if the file does not exist."""
    file = find_file(path)
    return str(file.resolve()), file.stat().st_mtime_ns, scale


def load_adapter(path: str, transformer: nn.Module, scale: float) -> LoraAdapter:
    """Load the adapter in `path`, a file or folder, for `transformer`.

    Raises CheckpointError for an adapter that applies to no layer or has tensors that cannot be
    applied: if they were ignored, the adapter would appear to be bad. `transformer` may be on the
    meta device, to check an adapter before the weights are loaded.
    """
    file = find_file(path)
    tensors, metadata = read_tensors(file)
    targets = {
        name: layer for name, layer in transformer.named_modules() if isinstance(layer, LoraLinear)
    }
    names = [key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)]
    if not names:
        raise CheckpointError(
            f"{file}: no LoRA layer found, expected keys such as {PREFIX}blocks.0.attn1.to_q{DOWN}"
        )
    used = {f"{name}{part}" for name in names for part in (DOWN, UP, ALPHA)}
    if unused := sorted(tensors.keys() - used):
        raise CheckpointError(
            f"{file}: {unused[0]}: cannot be applied, expected keys that end in {DOWN} and {UP}"
        )
    layers = {}
    for name in names:
        layer = targets.get(name.removeprefix(PREFIX))
        if layer is None:
            raise CheckpointError(f"{file}: {name}{DOWN}: the model has no such linear layer")
        layers[layer.name] = low_rank(file, name, tensors, metadata, layer, scale)
    return LoraAdapter(layers)


def find_file(path: str) -> Path:
    """Return the safetensors file at `path`, which may be its folder."""
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / FILE_NAME
    if not file.is_file():
        raise CheckpointError(
            f"got LoRA {path!r}, expected a safetensors file or a folder with {FILE_NAME}"
        )
    return file


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the adapter metadata of a LoRA file."""
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            header = stored.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or not a safetensors file: {error}") from error
    try:
        metadata = json.loads(header.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise CheckpointError(f"{file}: the adapter metadata is not valid JSON: {error}") from error
    for key in ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora"):
        if metadata.get(PREFIX + key):
            raise CheckpointError(f"{file}: adapters with {key} are not supported")
    return tensors, metadata


def low_rank(
    file: Path,
    name: str,
    tensors: dict[str, Tensor],
    metadata: dict[str, Any],
    layer: LoraLinear,
    scale: float,
) -> LowRank:
    """Return the low-rank term of one layer, with `scale` * alpha / rank folded into `up`."""
    down, up = tensors[name + DOWN], tensors.get(name + UP)
    if up is None:
        raise CheckpointError(f"{file} lacks {name}{UP}")
    rank = len(down)
    expected = ((rank, layer.in_features), (layer.out_features, rank))
    if (tuple(down.shape), tuple(up.shape)) != expected:
        raise CheckpointError(
            f"{file}: {name}: got shapes {list(down.shape)} and {list(up.shape)}, "
            f"expected {list(expected[0])} and {list(expected[1])}"
        )
    alpha = tensors.get(name + ALPHA)
    strength = float(metadata.get(PREFIX + "lora_alpha", rank) if alpha is None else alpha)
    bias = layer.bias  # has the model's dtype even if the weight is quantized
    up = (up.float() * (scale * strength / rank)).to(bias.device, bias.dtype)
    return LowRank(down.to(bias.device, bias.dtype), up)
