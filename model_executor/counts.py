"""What a forward and a decode run on a GPU, counted: FLOPs, bytes and launches.

The real modules run on the meta device, where nothing is computed and nothing takes memory. Each
operation of torch that is not a view, and each of our kernels, is taken to be one launch that reads
its inputs and writes its results once.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from helios_serve.model_config import (
    CHUNK_LATENTS,
    LATENT_CHANNELS,
    PATCH_DIM,
    Geometry,
    HeliosConfig,
)
from helios_serve.model_executor.components import build_transformer, build_vae
from helios_serve.model_executor.models.helios.embeddings import make_rope
from helios_serve.model_executor.models.helios.inputs import (
    HistoryPatches,
    PackSegment,
    TextContext,
)
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae
from helios_serve.model_executor.weights import Component, set_tensors
from helios_serve.options.workers import Quantization

META = torch.device("meta")
TEXT_ROWS = 64
"""Keys of a prompt, its padding merged."""
Kind = Literal["matmul", "attention", "convolution", "elementwise"]
KINDS: dict[str, Kind] = {
    "aten::mm": "matmul",
    "aten::addmm": "matmul",
    "aten::bmm": "matmul",
    "aten::_scaled_mm": "matmul",
    "aten::convolution": "convolution",
    "attention": "attention",
}
"""Kinds of operations and kernels; all others are elementwise, bound by memory."""
NO_WORK = (
    "aten::empty",
    "aten::detach",
    "aten::new_empty",
    "aten::_local_scalar_dense",
    "aten::lift_fresh",
)
"""Beginnings of the names of operations that launch nothing."""


class Work(NamedTuple):
    """The work of some operations: launches, FLOPs (a multiply-add is two), and bytes."""

    launches: int = 0
    flops: float = 0.0
    bytes: int = 0

    def __add__(self, other: "Work") -> "Work":  # type: ignore[override]
        return Work(
            self.launches + other.launches, self.flops + other.flops, self.bytes + other.bytes
        )


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """Counts the work on the meta device while it is entered, by the name of the operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_name: defaultdict[str, Work] = defaultdict(Work)

    def __torch_dispatch__(
        self, function: Any, _: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # of what consists of other operations, count those
            parts = function.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        out = function(*args, **kwargs)
        if function.name() == "helios_serve::launch":
            kernel, flops, read, written = args
            self._add(kernel, flops, [*read, *written])
        elif not function.is_view and not function.name().startswith(NO_WORK):
            flops_of = flop_registry.get(function.overloadpacket)
            flops = 0 if flops_of is None else flops_of(*args, **kwargs, out_val=out)
            name = function.name().partition(".")[0]
            given = {key: value for key, value in kwargs.items() if key != "out"}
            self._add(name, flops, tree_leaves((args, given, out)))
        return out

    def total(self, *kinds: Kind) -> Work:
        """The work of some kinds, or of all."""
        found = Work()
        for name, work in self.by_name.items():
            if not kinds or KINDS.get(name, "elementwise") in kinds:
                found += work
        return found

    def _add(self, name: str, flops: float, values: list[Any]) -> None:
        tensors = [item for item in values if isinstance(item, Tensor) and item.device == META]
        if tensors:  # not what the host prepares
            self.by_name[name] += Work(1, float(flops), sum(item.nbytes for item in tensors))


def count_forward(
    config: HeliosConfig,
    geometry: Geometry,
    stage: int,
    quantization: Quantization | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Count:
    """Count a forward of one session, with one prompt, on a GPU."""
    module, component = build_transformer(Path(), config, dtype, quantization)
    assert isinstance(module, HeliosTransformer)
    set_dtypes(module, component)
    module.join_weights()
    segment = meta_segment(config, geometry, stage, dtype)
    count = Count()
    with torch.inference_mode(), count:
        module([segment])
    return count


def count_decode(folder: Path, geometry: Geometry, dtype: torch.dtype = torch.bfloat16) -> Count:
    """Count the decoding of a chunk by the VAE of the checkpoint in `folder`."""
    module, component = build_vae(folder, dtype)
    set_dtypes(module, component)
    assert isinstance(module, WanVae)
    shape = LATENT_CHANNELS, CHUNK_LATENTS, *geometry.latent_size
    latents = torch.empty(shape, dtype=dtype, device=META)
    count = Count()
    with torch.inference_mode(), count:
        module.decode(latents)
    return count


def set_dtypes(module: nn.Module, component: Component) -> None:
    """Give the parameters of a module on the meta device what loading would give them."""
    for name, parameter in list(module.named_parameters()):
        tensor = torch.empty(parameter.shape, dtype=component.dtype_of(name), device=META)
        set_tensors(module, component.postprocess(name, tensor))


def meta_segment(
    config: HeliosConfig, geometry: Geometry, stage: int, dtype: torch.dtype
) -> PackSegment:
    """A session at a stage, on the meta device."""
    model = config.transformer

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    keys = tuple(
        empty(TEXT_ROWS, model.num_attention_heads, model.attention_head_dim)
        for _ in range(model.num_layers)
    )
    return PackSegment(
        history=HistoryPatches(
            empty(geometry.long_tokens, 64 * PATCH_DIM),
            empty(geometry.mid_tokens, 8 * PATCH_DIM),
            empty(geometry.short_tokens, PATCH_DIM),
        ),
        noise=empty(geometry.noise_tokens(stage, config.stages), PATCH_DIM),
        rope=make_rope(model, geometry, stage, config.stages, META),
        timestep=500.0,
        text=TextContext(keys, keys, empty(TEXT_ROWS)),
    )
