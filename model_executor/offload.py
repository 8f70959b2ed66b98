"""Offload: keeps most weights on the host and copies them to the device when they are used.

docs/memory.md states how many bytes the device holds, and how many each forward copies.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from helios_serve.model_executor.host_memory import HostMemory
from helios_serve.model_executor.layer_stream import NUM_BUFFERS, LayerStream, OnDevice
from helios_serve.model_executor.weights import Component

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
    `device_bytes` is the most bytes of weights on the device at a time.
    """

    def __init__(
        self, part: str, sizes: Mapping[str, int], device: torch.device, offload: bool
    ) -> None:
        self.device = device
        self.placement = (
            place_part(part, sizes) if offload else TensorPlacement({}, [], [*sizes], [])
        )
        self.device_bytes = self.placement.device_bytes(sizes)
        self._resident = set(self.placement.resident)
        self._host_only = set(self.placement.host_only)
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
