"""How the threads of a worker share a device: streams, events and copies to the host.

Each thread launches its work on a stream of its own, and a stream does its work in order. Four
rules keep what crosses streams, or leaves the device, correct:

1. Who reads a tensor of another stream first has its own stream wait for an event that was recorded
   after the tensor was written (`wait_for`).
2. The allocator takes freed memory to be free for the stream that it was allocated on. So who reads
   a tensor of another stream also tells the allocator (`share`).
3. A copy to the host is complete once an event that was recorded after it has passed: nothing reads
   it before (`HostCopy.wait`).
4. The thread that denoises waits for no copy and no other thread.

On a CPU work is done when it is launched, and there is nothing to wait for.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

URGENT = -1
"""Priority of a stream whose kernels go before those that wait on other streams."""


class Passing(Protocol):
    """An event: a point in a stream's work."""

    def synchronize(self) -> None:
        """Wait until the stream has come to it."""


class DeviceStreams:
    """The streams of a device, as the current thread uses them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_concurrent(self) -> bool:
        """Whether the device works while the host continues."""
        return self.device.type != "cpu"

    def own(self, *, is_urgent: bool = False) -> AbstractContextManager[object]:
        """Return the context of a new stream for the current thread.

        Kernels that are launched on an urgent one start as soon as running kernels leave room for
        them. Otherwise small kernels would each wait for large ones of other streams.
        """
        if not self.is_concurrent:
            return nullcontext()
        return torch.Stream(self.device, priority=URGENT if is_urgent else 0)

    def record(self) -> Passing:
        """Record an event after what the current stream was given. Waiting threads sleep."""
        if not self.is_concurrent:
            return Passed()
        event = torch.Event(self.device, blocking=True)
        self._current.record_event(event)
        return event

    def wait_for(self, event: Passing) -> None:
        """Have the current stream wait for an event, without waiting for it here."""
        if isinstance(event, torch.Event):
            self._current.wait_event(event)

    def share(self, tensor: Tensor) -> None:
        """Keep the tensor's memory, once it is freed, until the current stream has read it."""
        if self.is_concurrent:
            tensor.record_stream(self._current)

    def to_host(self, tensor: Tensor) -> Tensor:
        """Start to copy a tensor to pinned memory; on a CPU it is the tensor itself."""
        if not self.is_concurrent:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    @property
    def _current(self) -> torch.Stream:
        return torch.accelerator.current_stream(self.device)


class Passed:
    """The event of a device that has done all that it was given."""

    def synchronize(self) -> None:
        """Return at once."""


class HostCopy:
    """Tensors on their way to the host, after what the current stream was given."""

    def __init__(self, streams: DeviceStreams, tensors: Sequence[Tensor]) -> None:
        self._copies = [streams.to_host(tensor) for tensor in tensors]
        self._done = streams.record()

    def wait(self) -> list[Tensor]:
        """Wait for the copies and return them. Any thread may."""
        self._done.synchronize()
        return self._copies
