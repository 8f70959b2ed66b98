"""When a worker gets its next plan, and which workers may need one now."""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from itertools import count

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


class Timetable:
    """Workers by id, each to be looked at when it has changed, or at a time that was set.

    A worker is known from `add` to `remove`. Every operation is O(log n), so that workers with
    nothing to plan cost nothing.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        """Workers that are known, in the order in which they were added."""
        self._count = count()
        self._changed: set[str] = set()
        self._times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        """All of `_times`, and entries that do not count any more."""

    def __contains__(self, worker_id: str) -> bool:
        """Whether a worker is due, or has a time at which it will be."""
        return worker_id in self._changed or worker_id in self._times

    @property
    def next_at(self) -> float:
        """The first time that is set, infinity if none is. It may have passed."""
        while self._heap and self._is_stale(*self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def add(self, worker_id: str) -> None:
        self._numbers[worker_id] = next(self._count)

    def remove(self, worker_id: str) -> None:
        del self._numbers[worker_id]
        self._changed.discard(worker_id)
        self._times.pop(worker_id, None)

    def touch(self, worker_id: str) -> None:
        """Look at a worker next time, since it has changed."""
        self._changed.add(worker_id)

    def due(self, now: float) -> list[str]:
        """Return the workers to be looked at, in the order in which they were added.

        They stay due until `set` says otherwise.
        """
        while self.next_at <= now:
            _, worker_id = heapq.heappop(self._heap)
            del self._times[worker_id]
            self._changed.add(worker_id)
        if len(self._changed) < 2:
            return list(self._changed)
        return sorted(self._changed, key=self._numbers.__getitem__)

    def set(self, worker_id: str, at: float, now: float) -> None:
        """Look at a worker at time `at`, at once if that is not after `now`, or earlier if it
        changes; with infinity, only if it changes.
        """
        if now < at < math.inf:
            self._changed.discard(worker_id)
            if self._times.get(worker_id) != at:
                self._times[worker_id] = at
                heapq.heappush(self._heap, (at, worker_id))
            return
        self._times.pop(worker_id, None)
        if at <= now:
            self._changed.add(worker_id)
        else:
            self._changed.discard(worker_id)

    def _is_stale(self, at: float, worker_id: str) -> bool:
        return self._times.get(worker_id) != at
