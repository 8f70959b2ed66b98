"""When a worker is given its next plan."""

import math
from collections import deque
from collections.abc import Sequence

from helios_serve.core.device import Device

QUEUE_DEPTH = 2
"""Plans that a worker has at a time, so that it never waits for the next."""
PLAN_LEAD = 0.05
"""Seconds before the end of a plan at which the next one is sent: enough to send it, and to launch
its first kernels."""
MEMORY = 32
"""Plans whose times tell by how much a plan may be faster than expected."""


class PlanPace:
    """Sends a worker its next plan `PLAN_LEAD` seconds before it is done with the last one.

    A plan cannot be taken back. Sent no earlier than that, it has the sessions in it that became
    ready while the last one ran: who goes first waits for one step, not for two. The end is
    predicted as if the plan were as much faster than expected as any of the last ones, so that the
    next one is early rather than late.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._ratios: deque[float] = deque(maxlen=MEMORY)
        """Seconds that plans took, by those that were expected."""
        self._least = 1.0

    def measure(self, cost: float, seconds: float) -> None:
        """A plan of `cost` FLOPs took `seconds` of the whole device, 0 if that was not measured.

        The device's `plan_time` has been given it already.
        """
        if cost and seconds > 0:
            self._ratios.append(seconds / self.device.plan_time.seconds(cost))
            self._least = min(self._ratios)

    def next_at(self, costs: Sequence[float], now: float) -> float:
        """When the next plan is to be sent, if plans of `costs` FLOPs are in flight, the oldest
        first: in the past if it is time, infinity if there are enough.

        It can turn out to be later, if other stages share the device: ask again at that time.
        """
        if not costs:
            return -math.inf
        if len(costs) >= QUEUE_DEPTH:
            return math.inf
        least = self._least * self.device.plan_time.seconds(costs[0])
        return now + least - self.device.busy("denoise", now) - PLAN_LEAD
