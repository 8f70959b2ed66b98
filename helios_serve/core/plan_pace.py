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
"""Plans of which the fastest one tells how long a plan takes at least."""


class PlanPace:
    """Sends a worker its next plan `PLAN_LEAD` seconds before it is done with the last one.

    A plan cannot be taken back. Sent no earlier than that, it has the sessions in it that became
    ready while the last one ran: who goes first waits for one step, not for two. The end is
    predicted by the highest rate of the last plans, so that a plan is early rather than late.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._rates: deque[float] = deque(maxlen=MEMORY)
        self._fastest = 0.0

    def measure(self, cost: float, seconds: float) -> None:
        """A plan of `cost` FLOPs took `seconds` of the whole device, 0 if that was not measured."""
        if cost and seconds > 0:
            self._rates.append(cost / seconds)
            self._fastest = max(self._rates)

    def next_at(self, costs: Sequence[float], now: float) -> float:
        """When the next plan is to be sent, if plans of `costs` FLOPs are in flight, the oldest
        first: in the past if it is time, infinity if there are enough.

        It can turn out to be later, if other stages share the device: ask again at that time.
        """
        if not costs:
            return -math.inf
        if len(costs) >= QUEUE_DEPTH:
            return math.inf
        least = costs[0] / self._fastest if self._fastest else 0.0
        return now + least - self.device.busy("denoise", now) - PLAN_LEAD
