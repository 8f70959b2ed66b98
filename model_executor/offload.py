"""Offload: keeps most weights on the host and copies them to the device when they are used.

docs/memory.md states how many bytes the device holds, and how many each forward copies.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from helios_serve.model_executor.weights import Component, named_tensors, set_tensors

LAYER = re.compile(r"((?:blocks|encoder\.block)\.\d+)\.(.+)")
"""Tensors of a layer: the layer's name and the tensor's name in it."""
TEXT_TENSORS = ("attn2.to_k", "attn2.norm_k", "attn2.to_v")
"""Tensors of a transformer block that are used to read a prompt, and not in a forward."""
TEXT_MODULES = ("attn2.to_k", "attn2.to_v")
"""Modules of a transformer block that are called to read a prompt."""
RESIDENT_TENSORS = ("scale_shift_table",)
"""Tensors of a transformer block that stay on the device: small, and read before the block runs."""
EMBEDDING = "shared."
"""The text encoder's embedding, whose rows are looked up on the host."""

StreamGroup = Literal["forward", "text"]
"""Tensors that are streamed together: those of a forward, or those that read prompts."""
Layers = dict[str, list[str]]
"""The names of each layer's tensors, by the name of the layer."""
NUM_BUFFERS = 2
"""Layers on the device at a time: one is copied while the other is computed."""
PIECE_BYTES = 1 << 30
"""Bytes of a piece. torch rounds allocations of pinned memory up to a power of two."""
ALIGNMENT = 256
"""Alignment of tensors, in bytes."""


class HostMemory:
    """Host memory for tensors of the given `sizes` in bytes, allocated in large pieces.

    The memory is pinned, so that `device` copies from it at full speed, unless `device` is a CPU.
    Pieces waste little memory: the space after the last tensor of each one, and the rounding of the
    last piece.
    """

    def __init__(
        self, sizes: Iterable[int], device: torch.device, *, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self.piece_bytes = piece_bytes
        self._left = sum(map(aligned, sizes))
        self._pinned = device.type != "cpu"
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def store(self, tensor: Tensor) -> Tensor:
        """Copy `tensor` into this memory and return the copy."""
        size = aligned(tensor.nbytes)
        if self._used + size > len(self._piece):
            length = max(size, min(self.piece_bytes, self._left))
            self._piece = torch.empty(length, dtype=torch.uint8, pin_memory=self._pinned)
            self._used = 0
        copy = self._piece[self._used : self._used + tensor.nbytes]
        self._used += size
        self._left -= size
        return copy.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class LayerStream:
    """Copies layers to the device one after another, each while the previous one is computed.

    `layers` lists the names of each layer's tensors in `module`, on the host; all layers have the
    same shapes in the same order. The module's tensors are replaced by buffers on `device`, which
    all layers of the same parity share: they hold a layer's weights from its `load` until the
    second next layer is loaded.
    """

    def __init__(
        self, module: nn.Module, layers: Sequence[Sequence[str]], device: torch.device
    ) -> None:
        tensors = named_tensors(module)
        self.sources = [[tensors[name] for name in layer] for layer in layers]
        self.buffers = [
            [torch.empty_like(host, device=device) for host in self.sources[0]]
            for _ in range(min(NUM_BUFFERS, len(layers)))
        ]
        for layer, names in enumerate(layers):
            set_tensors(module, dict(zip(names, self._buffer(layer), strict=True)))
        self._copies = CopyStream(device)
        self._loaded: list[int | None] = [None] * len(self.buffers)
        self._copied: list[torch.Event | None] = [None] * len(self.buffers)

    def load(self, layer: int) -> None:
        """Make `layer` available to work launched from now on, and start to copy the next layer.

        The first layer follows the last one. Call it before each use of a layer, in any order: a
        layer that is already on the device is not copied again.
        """
        self._start_copy(layer)
        self._copies.wait(self._copied[layer % NUM_BUFFERS])
        following = (layer + 1) % len(self.sources)
        if following % NUM_BUFFERS != layer % NUM_BUFFERS:
            self._start_copy(following)

    def load_before(self, module: nn.Module, layer: int) -> None:
        """Load `layer` whenever `module` is called."""
        module.register_forward_pre_hook(lambda *_: self.load(layer))

    def _buffer(self, layer: int) -> list[Tensor]:
        return self.buffers[layer % NUM_BUFFERS]

    def _start_copy(self, layer: int) -> None:
        index = layer % NUM_BUFFERS
        if self._loaded[index] != layer:
            self._loaded[index] = layer
            self._copied[index] = self._copies.copy(self._buffer(layer), self.sources[layer])


class CopyStream:
    """A stream for copies, concurrent with the compute stream. On a CPU copies are synchronous."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = None if device.type == "cpu" else torch.Stream(device)

    def copy(self, buffers: Sequence[Tensor], sources: Sequence[Tensor]) -> torch.Event | None:
        """Copy once all work launched so far is done, as it may still read the buffers."""
        if self.stream is None:
            copy_all(buffers, sources)
            return None
        self.stream.wait_stream(torch.accelerator.current_stream(self.device))
        with self.stream:
            copy_all(buffers, sources)
        return self.stream.record_event()

    def wait(self, copied: torch.Event | None) -> None:
        """Make the compute stream wait for a copy."""
        if copied is not None:
            torch.accelerator.current_stream(self.device).wait_event(copied)


class OnDevice:
    """A context manager that holds a host module's tensors on the device while it is entered.

    `names` are the tensors to copy.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], device: torch.device) -> None:
        tensors = named_tensors(module)
        self.module = module
        self.device = device
        self.sources: Mapping[str, Tensor] = {name: tensors[name] for name in names}

    def __enter__(self) -> None:
        copies = {
            name: torch.empty_like(host, device=self.device) for name, host in self.sources.items()
        }
        copy_all(list(copies.values()), list(self.sources.values()))
        set_tensors(self.module, copies)

    def __exit__(self, *_: object) -> None:
        set_tensors(self.module, self.sources)


def copy_all(buffers: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for buffer, source in zip(buffers, sources, strict=True):
        buffer.copy_(source, non_blocking=True)


class TensorPlacement(NamedTuple):
    """The placement of a part's tensors, by name.

    - `streamed`: layers that are streamed to the device, each group through buffers of its own.
    - `on_demand`: tensors that are on the device only while the part runs.
    - `resident`: tensors that are always on the device.
    - `host_only`: tensors that are never on the device.
    """

    streamed: dict[StreamGroup, Layers]
    on_demand: list[str]
    resident: list[str]
    host_only: list[str]

    def device_bytes(self, sizes: Mapping[str, int]) -> int:
        """Return the most bytes of weights on the device at a time, given each tensor's bytes."""
        on_device = [*self.resident, *self.on_demand]
        for layers in self.streamed.values():
            on_device += [name for names in list(layers.values())[:NUM_BUFFERS] for name in names]
        return sum(sizes[name] for name in on_device)

    def copied_bytes(self, sizes: Mapping[str, int], group: StreamGroup) -> int:
        """Return the bytes that one pass over all layers of a group copies to the device."""
        layers = self.streamed.get(group, {})
        return sum(sizes[name] for names in layers.values() for name in names)


def place_part(part: str, names: Iterable[str]) -> TensorPlacement:
    """Place the tensors of `part` (transformer, text_encoder or vae) for offload.

    `names` are its tensors, in the order of the layers.
    """
    placement = TensorPlacement({}, [], [], [])
    for name in names:
        if part == "vae":
            placement.on_demand.append(name)
        elif name.startswith(EMBEDDING):
            placement.host_only.append(name)
        elif (match := LAYER.fullmatch(name)) is not None and match[2] not in RESIDENT_TENSORS:
            group: StreamGroup = "text" if match[2].startswith(TEXT_TENSORS) else "forward"
            placement.streamed.setdefault(group, {}).setdefault(match[1], []).append(name)
        else:
            placement.resident.append(name)
    return placement


class WeightPlacement:
    """Places one part's weights on the device and the host, while they are loaded and after.

    `sizes` holds the bytes of each tensor by name. Without `offload` all tensors are on the device.
    `device_bytes` is the most bytes of weights on the device at a time, `host_bytes` what is kept
    on the host.
    """

    def __init__(
        self, part: str, sizes: Mapping[str, int], device: torch.device, offload: bool
    ) -> None:
        self.device = device
        self.sizes = sizes
        self.placement = (
            place_part(part, sizes) if offload else TensorPlacement({}, [], [*sizes], [])
        )
        self.device_bytes = self.placement.device_bytes(sizes)
        self._resident = set(self.placement.resident)
        self._host_only = set(self.placement.host_only)
        self.host_bytes = sum(size for name, size in sizes.items() if name not in self._resident)
        copied = sizes.keys() - self._resident - self._host_only
        self._memory = HostMemory((sizes[name] for name in copied), device)

    def apply_to(self, component: Component) -> Component:
        """Return `component` with a `postprocess` that also moves tensors to their place."""

        def postprocess(name: str, tensor: Tensor) -> dict[str, Tensor]:
            tensors = component.postprocess(name, tensor)
            return {part: self._move(part, item) for part, item in tensors.items()}

        return component._replace(postprocess=postprocess)

    def activate(self, module: nn.Module) -> AbstractContextManager[object]:
        """Start to stream the loaded `module`, and return the context in which it must be used.

        Streamed layers are copied when they are called, on-demand tensors when the context is
        entered.
        """
        for group, layers in self.placement.streamed.items():
            stream = LayerStream(module, list(layers.values()), self.device)
            for number, layer in enumerate(layers):
                readers = [f"{layer}.{name}" for name in TEXT_MODULES]
                for user in readers if group == "text" else [layer]:
                    stream.load_before(module.get_submodule(user), number)
        if not self.placement.on_demand:
            return nullcontext()
        return OnDevice(module, self.placement.on_demand, self.device)

    def _move(self, name: str, tensor: Tensor) -> Tensor:
        if name in self._resident:
            return tensor
        return tensor.cpu() if name in self._host_only else self._memory.store(tensor)
