"""Which weights live on the host when a device is too small for them all, and what that costs."""

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from helios_serve.model_executor.host_memory import HostMemory
from helios_serve.model_executor.layer_stream import PLACES, LayerStream, OnDevice
from helios_serve.model_executor.weights import Component

LAYER = re.compile(r"((?:blocks|encoder\.block)\.\d+)\.(.+)")
READS_TEXT = ("attn2.to_k", "attn2.norm_k", "attn2.to_v")
"""Of a transformer block: used when a prompt is read, and not in a forward."""
READ_AHEAD = ("scale_shift_table",)
"""Of a transformer block: small, and read before the blocks are called."""
CALLED_FOR_TEXT = ("attn2.to_k", "attn2.to_v")
EMBEDDING = "shared."
"""Of the text encoder: a prompt's rows are looked up on the host."""

Series = Literal["forward", "text"]
Layers = dict[str, list[str]]
"""Names of the tensors of each layer, by the layer's own name."""


class TensorPlacement(NamedTuple):
    """Where the tensors of one part of the model are, by their names.

    Layers of `streamed` take turns on the device, each series by itself; `guests` are there while
    the part works, `residents` always, and `hosted` never.
    """

    streamed: dict[Series, Layers]
    guests: list[str]
    residents: list[str]
    hosted: list[str]

    def device_bytes(self, sizes: Mapping[str, int]) -> int:
        """The most that the part's weights take of the device, given the bytes of each tensor."""
        there = [*self.residents, *self.guests]
        for layers in self.streamed.values():
            there += [name for names in list(layers.values())[:PLACES] for name in names]
        return sum(sizes[name] for name in there)

    def copied_bytes(self, sizes: Mapping[str, int], series: Series) -> int:
        """What one pass over a series copies to the device."""
        layers = self.streamed.get(series, {})
        return sum(sizes[name] for names in layers.values() for name in names)


def place_part(part: str, names: Iterable[str]) -> TensorPlacement:
    """Where the tensors called `names`, in the order of their layers, of a part go."""
    placement = TensorPlacement({}, [], [], [])
    for name in names:
        if part == "vae":
            placement.guests.append(name)
        elif name.startswith(EMBEDDING):
            placement.hosted.append(name)
        elif (match := LAYER.fullmatch(name)) is not None and match[2] not in READ_AHEAD:
            series: Series = "text" if match[2].startswith(READS_TEXT) else "forward"
            placement.streamed.setdefault(series, {}).setdefault(match[1], []).append(name)
        else:
            placement.residents.append(name)
    return placement


class WeightPlacement:
    """Where one part's weights are while they are loaded and from then on.

    `sizes` are their bytes by their names. Without `offload` all of them are on the device.
    """

    def __init__(
        self, part: str, sizes: Mapping[str, int], device: torch.device, offload: bool
    ) -> None:
        self.device = device
        self.placement = (
            place_part(part, sizes) if offload else TensorPlacement({}, [], [*sizes], [])
        )
        self.device_bytes = self.placement.device_bytes(sizes)
        self._residents = set(self.placement.residents)
        self._hosted = set(self.placement.hosted)
        moving = sizes.keys() - self._residents - self._hosted
        self._memory = HostMemory((sizes[name] for name in moving), device)

    def furnish(self, component: Component) -> Component:
        """`component`, with its tensors kept where they live."""

        def kept(name: str, tensor: Tensor) -> dict[str, Tensor]:
            return {
                part: self._keep(part, item) for part, item in component.kept(name, tensor).items()
            }

        return component._replace(kept=kept)

    def open(self, module: nn.Module) -> AbstractContextManager[object]:
        """Let the loaded weights of `module` come and go; it is to be used within what is returned.

        Layers come when they are called, guests when that context is entered.
        """
        for series, layers in self.placement.streamed.items():
            stream = LayerStream(module, list(layers.values()), self.device)
            for number, layer in enumerate(layers):
                readers = [f"{layer}.{name}" for name in CALLED_FOR_TEXT]
                for user in readers if series == "text" else [layer]:
                    stream.enter_before(module.get_submodule(user), number)
        if not self.placement.guests:
            return nullcontext()
        return OnDevice(module, self.placement.guests, self.device)

    def _keep(self, name: str, tensor: Tensor) -> Tensor:
        if name in self._residents:
            return tensor
        return tensor.cpu() if name in self._hosted else self._memory.keep(tensor)
