"""Streams the layers of an offloaded module from the host to buffers on the device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from helios_serve.model_executor.weights import named_tensors, set_tensors

NUM_BUFFERS = 2
"""Layers on the device at a time: one is copied while the other is computed."""


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
