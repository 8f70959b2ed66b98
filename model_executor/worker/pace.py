"""Limits how far a worker runs ahead of its device."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MAX_PENDING = 1
"""Plans that may be unfinished on the device when the kernels of another one are launched."""


class Pace:
    """Lets a worker launch the kernels of one plan while the device executes the previous plan.

    Launching kernels takes a fraction of their run time. Without a limit a worker would report
    steps long before they are executed: urgent sessions would wait for all steps that were launched
    before, aborted sessions would still be computed, and measured times would not be the device's.
    On a CPU there is nothing to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pending: deque[torch.Event] = deque()

    @contextmanager
    def plan(self) -> Iterator[None]:
        """Launch the kernels of one plan in this context. Entering it waits for the device."""
        while len(self._pending) > MAX_PENDING:
            self._pending.popleft().synchronize()
        yield
        if self.device.type != "cpu":
            self._pending.append(torch.accelerator.current_stream(self.device).record_event())
