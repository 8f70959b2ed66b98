"""A stand-in for a device that works while the host continues, as late as it may."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from helios_serve.model_executor.streams import DeviceStreams


class Copy(NamedTuple):
    """A copy that the device has still to make."""

    host: Tensor
    source: Tensor


class LateEvent:
    """An event that passes, with all copies before it, when a thread waits for it.

    `gate` holds up the device until it is set.
    """

    def __init__(self, device: "LateDevice") -> None:
        self.device = device
        self.copies = list(device.copies)

    def synchronize(self) -> None:
        self.device.waited.append(threading.current_thread().name)
        self.device.gate.wait()
        for copy in self.copies:
            copy.host.copy_(copy.source)


class LateDevice(DeviceStreams):
    """Streams over CPU tensors. A copy to the host holds garbage until an event after it passes.

    `waited` has the names of threads that waited for an event, and `log` what crossed streams.
    """

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.gate = threading.Event()
        self.gate.set()
        self.copies: deque[Copy] = deque()
        self.waited: list[str] = []
        self.log: list[tuple[str, object]] = []

    @property
    def is_concurrent(self) -> bool:
        return True

    @contextmanager
    def own(self, *, is_urgent: bool = False) -> Iterator[None]:
        self.log.append(("urgent" if is_urgent else "own", threading.current_thread().name))
        yield

    def record(self) -> LateEvent:
        return LateEvent(self)

    def wait_for(self, event: object) -> None:
        self.log.append(("wait for", event))

    def share(self, tensor: Tensor) -> None:
        self.log.append(("share", tensor))

    def to_host(self, tensor: Tensor) -> Tensor:
        host = torch.zeros(tensor.shape, dtype=tensor.dtype)
        host.view(torch.uint8).fill_(255)  # NaN, or true
        self.copies.append(Copy(host, tensor.clone()))
        return host
