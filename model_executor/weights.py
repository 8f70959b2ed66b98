"""Loads the safetensors files of a component, or random weights, into a module.

All headers are checked before any tensor is read. Tensors are then copied one at a time from the
memory-mapped file to their destination, so that the model never exists twice in memory.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from helios_serve.errors import CheckpointError

STEMS = ("diffusion_pytorch_model", "model")
"""File names without extension: of diffusers, and of transformers."""

Rename = Callable[[str], str | None]
"""Maps a checkpoint key to a parameter name, or to None if the key is ignored."""


class Component(NamedTuple):
    """How the files of a component become the parameters of a module.

    - `folder`: the folder of the files.
    - `rename`: maps checkpoint keys to parameter names.
    - `dtype_of`: returns the dtype of a parameter.
    - `convert`: converts a stored tensor to the parameter of that name.
    - `stored_shape`: returns the shape in which a parameter of the given shape is stored.
    - `postprocess`: returns, by name, the tensors that replace a parameter in the module, such as
      float8 values and scales, or a copy on the host.
    - `optional`: parameters that the files may lack.
    """

    folder: Path
    rename: Rename
    dtype_of: Callable[[str], torch.dtype]
    convert: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor
    stored_shape: Callable[[str, tuple[int, ...]], tuple[int, ...]] = lambda _, shape: shape
    postprocess: Callable[[str, Tensor], dict[str, Tensor]] = lambda name, tensor: {name: tensor}
    optional: frozenset[str] = frozenset()


class Source(NamedTuple):
    """The file and key in which a parameter is stored."""

    path: Path
    key: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a component. Raises CheckpointError if one is missing."""
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return indexed_files(index)
        single = folder / f"{stem}.safetensors"
        if single.is_file():
            return [single]
    raise CheckpointError(f"{folder} has no weights: expected {STEMS[0]}.safetensors or an index")


def indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors files: {error!r}") from error
    for name in names:
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index} names {name}, which does not exist")
    return [index.parent / name for name in names]


def stored_tensors(paths: list[Path]) -> Iterator[Source]:
    """Yield all tensors listed in the files' headers. Raises CheckpointError for damaged files."""
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (a handle, not a dict)
                    yield Source(path, key, tuple(file.get_slice(key).get_shape()))
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or truncated: {error}") from error


def find_sources(module: nn.Module, component: Component) -> dict[str, Source]:
    """Find each parameter of `module` in the files of its component.

    Raises CheckpointError for missing or unexpected keys and for wrong shapes.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    paths = weight_files(component.folder)
    sources = {}
    for source in stored_tensors(paths):
        name = component.rename(source.key)
        if name is None:
            continue
        if name not in wanted:
            raise CheckpointError(f"{source.path}: {source.key}: the model has no such parameter")
        expected = component.stored_shape(name, wanted[name])
        if source.shape != expected:
            raise CheckpointError(
                f"{source.path}: {source.key}: got shape {list(source.shape)}, "
                f"expected {list(expected)}"
            )
        sources[name] = source
    missing = sorted(wanted.keys() - sources.keys() - component.optional)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{paths[0].parent} lacks {missing[0]}{more}")
    return sources


def stream_weights(
    module: nn.Module, component: Component, sources: dict[str, Source], device: torch.device
) -> None:
    """Load the parameters of `module`, on the meta device, from `sources` to `device`."""
    by_file: dict[Path, list[str]] = {}
    for name, source in sources.items():
        by_file.setdefault(source.path, []).append(name)
    for path, names in by_file.items():
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in names:
                stored = file.get_tensor(sources[name].key)
                tensor = component.convert(name, stored).to(component.dtype_of(name)).contiguous()
                set_tensors(module, component.postprocess(name, tensor))


def fill_random(module: nn.Module, component: Component, device: torch.device, seed: int) -> None:
    """Fill the parameters of `module`, on the meta device, with random numbers from `seed`."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, meta in module.state_dict().items():
        if name in component.optional:
            continue
        tensor = random_tensor(name, tuple(meta.shape), component.dtype_of(name), generator)
        set_tensors(module, component.postprocess(name, tensor))


def random_tensor(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Return random values at the scale of an initialized parameter of that name and shape."""
    tensor = torch.empty(shape, dtype=dtype, device=generator.device)
    if name.endswith("gamma") or (len(shape) == 1 and name.endswith("weight")):
        return tensor.normal_(1, 0.02, generator=generator)
    std = tensor[0].numel() ** -0.5 if len(shape) > 1 else 0.02
    return tensor.normal_(0, std, generator=generator)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of `module` by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def set_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace the parameters and buffers of `module` that have the names of `tensors`."""
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = tensor
        else:
            owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def weight_bytes(module: nn.Module, component: Component) -> dict[str, int]:
    """Return the bytes of each tensor of `module` (on the meta device) after `postprocess`."""
    sizes: dict[str, int] = {}
    for name, meta in module.state_dict().items():
        if name not in component.optional:
            tensor = torch.empty(meta.shape, dtype=component.dtype_of(name), device="meta")
            stored = component.postprocess(name, tensor)
            sizes |= {part: item.nbytes for part, item in stored.items()}
    return sizes
