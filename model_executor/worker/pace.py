"""How far a worker runs ahead of its device."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MAX_BEHIND = 1
"""Plans that the device may still have to do when the work of another one is queued."""


class Pace:
    """Has the work of one plan queued while the device is at the one before, and no more.

    Launching kernels takes a fraction of their time. A worker that ran on would tell of steps long
    before they are taken: a session in a hurry would wait behind all of them, aborted ones would
    be made all the same, and times would not be the device's. A CPU is never behind.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._behind: deque[torch.Event] = deque()

    @contextmanager
    def plan(self) -> Iterator[None]:
        """Around what queues the work of a plan."""
        while len(self._behind) > MAX_BEHIND:
            self._behind.popleft().synchronize()
        yield
        if self.device.type != "cpu":
            self._behind.append(torch.accelerator.current_stream(self.device).record_event())
