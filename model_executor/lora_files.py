"""Loads LoRA adapters and maps them to the layers of a transformer."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from helios_serve.errors import CheckpointError
from helios_serve.model_executor.components import flatten_patch_weight, patch_kernel
from helios_serve.model_executor.lora_names import (
    KOHYA_PREFIX,
    PEFT_PREFIX,
    Part,
    TensorName,
    kind_of,
    known_names,
    parse_key,
)
from helios_serve.model_executor.lora_strength import CONFIG_NAME, Settings, read_settings
from helios_serve.model_executor.models.helios.lora import LoraAdapter, LoraLinear, LowRank

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
PEFT_NAME = "adapter_model.safetensors"
EXPECTED = "keys such as transformer.blocks.0.attn1.to_q.lora_A.weight"

AdapterKey = tuple[str, int, float]
"""The file, its modification time in nanoseconds, and the scale of an adapter."""


class LoraFile(NamedTuple):
    """The content of a LoRA file: tensors by key, and what it and its config state."""

    path: Path
    tensors: Mapping[str, Tensor]
    settings: Sequence[Settings]


def adapter_key(path: str, scale: float) -> AdapterKey:
    """Return the cache key of an adapter. Raises CheckpointError if the file does not exist."""
    file = find_file(path)
    config = file.with_name(CONFIG_NAME)
    parts = (file, config) if config.is_file() else (file,)
    return str(file.resolve()), max(part.stat().st_mtime_ns for part in parts), scale


def load_adapter(path: str, transformer: nn.Module, scale: float) -> LoraAdapter:
    """Load the adapter in `path`, a file or folder, for `transformer`.

    All linear layers and patch embeddings may have terms. Raises CheckpointError for an adapter
    that applies to no layer, has tensors that cannot be applied, or whose strength is not clear: if
    they were ignored, the adapter would appear to be bad. `transformer` may be on the meta device,
    to check an adapter before the weights are loaded.
    """
    file = read_file(find_file(path), is_folder=Path(path).expanduser().is_dir())
    layers = {
        name: layer for name, layer in transformer.named_modules() if isinstance(layer, LoraLinear)
    }
    terms = {}
    for name, parts in group_by_layer(file, known_names(layers)).items():
        terms[name] = low_rank(file, parts, layers[name], scale)
    return LoraAdapter(terms)


def find_file(path: str) -> Path:
    """Return the safetensors file at `path`, which may be its folder."""
    file = Path(path).expanduser()
    if file.is_dir():
        names = [file / DIFFUSERS_NAME, file / PEFT_NAME, *sorted(file.glob("*.safetensors"))]
        found = [name for name in dict.fromkeys(names) if name.is_file()]
        if found and (found[0].name in (DIFFUSERS_NAME, PEFT_NAME) or len(found) == 1):
            return found[0]
    elif file.is_file():
        return file
    raise CheckpointError(
        f"got LoRA {path!r}, expected a safetensors file or a folder with {DIFFUSERS_NAME}, "
        f"{PEFT_NAME} or one other safetensors file"
    )


def read_file(file: Path, *, is_folder: bool) -> LoraFile:
    """Read the tensors of a LoRA file, and what it states about their strength."""
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            header = stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or not a safetensors file: {error}") from error
    is_peft = any(key.startswith(PEFT_PREFIX) for key in tensors)
    with_config = is_folder or is_peft or file.name == PEFT_NAME
    settings = read_settings(file, header, with_config=with_config)
    if is_peft and not settings:
        raise CheckpointError(f"{file}: expected {CONFIG_NAME} next to it, which states lora_alpha")
    return LoraFile(file, tensors, settings)


def group_by_layer(file: LoraFile, known: Mapping[str, str]) -> dict[str, dict[Part, TensorName]]:
    """Return the keys of the tensors by the layer that they belong to."""
    layers: dict[str, dict[Part, TensorName]] = {}
    adapters = set()
    for name in parse_keys(file):
        key = name.key
        layer = known.get(name.layer)
        if layer is None:
            raise CheckpointError(f"{file.path}: {key}: the model has no such linear layer")
        if (other := layers.setdefault(layer, {}).get(name.part)) is not None:
            raise CheckpointError(f"{file.path}: {key} and {other.key} are for the same layer")
        layers[layer][name.part] = name
        adapters |= {name.adapter} - {None}
    if len(adapters) > 1:
        got = ", ".join(sorted(map(str, adapters)))
        raise CheckpointError(f"{file.path}: got several adapters ({got}), expected one")
    return layers


def parse_keys(file: LoraFile) -> list[TensorName]:
    """Split the keys of all tensors. Raises CheckpointError for tensors of other kinds."""
    names = {key: parse_key(key) for key in sorted(file.tensors)}
    for key, name in names.items():
        kind = kind_of(key)
        if name is None and (kind is not None or any(names.values())):
            what = f"{kind} cannot be applied" if kind else "cannot be applied"
            raise CheckpointError(f"{file.path}: {key}: {what}, expected {EXPECTED}")
    found = [name for name in names.values() if name is not None]
    if not found:
        raise CheckpointError(f"{file.path}: no LoRA layer found, expected {EXPECTED}")
    return found


def low_rank(
    file: LoraFile, parts: Mapping[Part, TensorName], layer: LoraLinear, scale: float
) -> LowRank:
    """Return the low-rank term of one layer, with `scale` * strength folded into `up`."""
    down, up = read_part(file, parts, "down"), read_part(file, parts, "up")
    check_shapes(file.path, parts, (tuple(down.shape), tuple(up.shape)), layer)
    down, up = flatten_patch_weight(f"{layer.name}.weight", down), up.flatten(1)
    up = up * (scale * strength_of(file, parts, layer, len(down)))
    bias = layer.bias  # has the model's dtype even if the weight is quantized
    term = LowRank(down.to(bias.device, bias.dtype), up.to(bias.device, bias.dtype))
    if not (bias.is_meta or (term.down.isfinite().all() and term.up.isfinite().all())):
        raise CheckpointError(
            f"{file.path}: {parts['down'].key}: got values times the strength that exceed the "
            f"range of {bias.dtype}"
        )
    return term


def read_part(file: LoraFile, parts: Mapping[Part, TensorName], part: Part) -> Tensor:
    """Return a matrix of a layer in fp32.

    Raises CheckpointError for integers, which are codes of a quantization.
    """
    if part not in parts:
        given = next(iter(parts.values()))
        name = "lora_A" if part == "down" else "lora_B"
        raise CheckpointError(f"{file.path}: {given.key}: the layer lacks its {name}.weight")
    key = parts[part].key
    stored = file.tensors[key]
    if not stored.is_floating_point():
        raise CheckpointError(
            f"{file.path}: {key}: got {stored.dtype}, expected floating point: quantized adapters "
            "are not supported, so use the original file"
        )
    tensor = stored.float()
    if not tensor.isfinite().all():
        raise CheckpointError(f"{file.path}: {key}: contains NaN or infinity")
    return tensor


def check_shapes(
    path: Path,
    parts: Mapping[Part, TensorName],
    got: tuple[tuple[int, ...], tuple[int, ...]],
    layer: LoraLinear,
) -> None:
    """Raise CheckpointError unless the shapes fit: (rank, in) and (out, rank), as convolutions for
    patch embeddings."""
    rank = got[0][0] if got[0] else 0
    if rank == 0:
        raise CheckpointError(f"{path}: {parts['down'].key}: got rank 0, expected 1 or more")
    kernel = patch_kernel(f"{layer.name}.weight")
    expected: tuple[tuple[int, ...], ...] = (rank, layer.in_features), (layer.out_features, rank)
    if kernel is not None:
        channels = layer.in_features // math.prod(kernel)
        expected = (rank, channels, *kernel), (layer.out_features, rank, 1, 1, 1)
    if got != expected:
        raise CheckpointError(
            f"{path}: {parts['down'].key}: got shapes {list(got[0])} and {list(got[1])}, "
            f"expected {list(expected[0])} and {list(expected[1])}"
        )


def strength_of(
    file: LoraFile, parts: Mapping[Part, TensorName], layer: LoraLinear, rank: int
) -> float:
    """Return alpha / rank. Without any statement it is 1, as in diffusers.

    Raises CheckpointError if two places state different strengths.
    """
    stated: dict[str, float] = {}
    if (name := parts.get("alpha")) is not None:
        alpha = file.tensors[name.key]
        if alpha.numel() != 1 or not alpha.isfinite().all():
            raise CheckpointError(f"{file.path}: {name.key}: expected one finite number")
        stated[name.key] = float(alpha) / rank
    elif parts["down"].key.startswith(KOHYA_PREFIX) and not file.settings:
        raise CheckpointError(f"{file.path}: {parts['down'].layer}.alpha is missing")
    names = (parts["down"].layer, layer.name)
    for settings in file.settings:
        if settings.is_summary and name is not None:
            continue
        value = settings.strength(names, rank)
        if value is not None:
            stated[settings.source] = value
    values = list(stated.values())
    if any(not math.isclose(value, values[0], rel_tol=1e-5) for value in values):
        got = " and ".join(f"{value:g} ({source})" for source, value in stated.items())
        raise CheckpointError(f"{file.path}: got strengths {got} for {layer.name}, expected one")
    return values[0] if values else 1.0
