"""Layers of one shape that live on the host and take turns in two places on the device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from helios_serve.model_executor.weights import named_tensors, place

PLACES = 2
"""One layer is copied while another works."""


class LayerStream:
    """Copies one layer after another to the device, beside the work of the layer before.

    `layers` are the names of their tensors in `module`, in one order for all layers. From here on
    a layer's tensors are its place on the device, which it shares with every other layer; they
    hold its own content from when it is entered until the next but one is.
    """

    def __init__(
        self, module: nn.Module, layers: Sequence[Sequence[str]], device: torch.device
    ) -> None:
        tensors = named_tensors(module)
        self.hosts = [[tensors[name] for name in layer] for layer in layers]
        self.places = [
            [torch.empty_like(host, device=device) for host in self.hosts[0]]
            for _ in range(min(PLACES, len(layers)))
        ]
        for layer, names in enumerate(layers):
            place(module, dict(zip(names, self._place(layer), strict=True)))
        self._lane = CopyStream(device)
        self._held: list[int | None] = [None] * len(self.places)
        self._copied: list[torch.Event | None] = [None] * len(self.places)

    def enter(self, layer: int) -> None:
        """Have `layer` there for whatever is launched from now on, and begin to copy the next.

        Behind the last comes the first again. Call it before each use, in any order: a layer that
        is there already is not copied again.
        """
        self._fetch(layer)
        self._lane.wait(self._copied[layer % PLACES])
        following = (layer + 1) % len(self.hosts)
        if following % PLACES != layer % PLACES:
            self._fetch(following)

    def enter_before(self, module: nn.Module, layer: int) -> None:
        """Enter `layer` whenever `module` is called."""
        module.register_forward_pre_hook(lambda *_: self.enter(layer))

    def _place(self, layer: int) -> list[Tensor]:
        return self.places[layer % PLACES]

    def _fetch(self, layer: int) -> None:
        index = layer % PLACES
        if self._held[index] != layer:
            self._held[index] = layer
            self._copied[index] = self._lane.copy(self._place(layer), self.hosts[layer])


class CopyStream:
    """A stream of copies beside the stream that works; a CPU has none and copies at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = None if device.type == "cpu" else torch.Stream(device)

    def copy(self, places: Sequence[Tensor], hosts: Sequence[Tensor]) -> torch.Event | None:
        """Copy when all that was launched so far is done, as it may use what the places hold."""
        if self.stream is None:
            copy_all(places, hosts)
            return None
        self.stream.wait_stream(torch.accelerator.current_stream(self.device))
        with self.stream:
            copy_all(places, hosts)
        return self.stream.record_event()

    def wait(self, copied: torch.Event | None) -> None:
        """Have the stream that works wait for a copy."""
        if copied is not None:
            torch.accelerator.current_stream(self.device).wait_event(copied)


class OnDevice:
    """A module that lives on the host, and is on the device only within `with`."""

    def __init__(self, module: nn.Module, names: Sequence[str], device: torch.device) -> None:
        tensors = named_tensors(module)
        self.module = module
        self.device = device
        self.hosts: Mapping[str, Tensor] = {name: tensors[name] for name in names}

    def __enter__(self) -> None:
        there = {
            name: torch.empty_like(host, device=self.device) for name, host in self.hosts.items()
        }
        copy_all(list(there.values()), list(self.hosts.values()))
        place(self.module, there)

    def __exit__(self, *_: object) -> None:
        place(self.module, self.hosts)


def copy_all(places: Sequence[Tensor], hosts: Sequence[Tensor]) -> None:
    for there, host in zip(places, hosts, strict=True):
        there.copy_(host, non_blocking=True)
