"""When each worker is to be looked at, to see whether it needs a plan."""

import heapq
import math
from itertools import count


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
        """Whether a worker is to be looked at."""
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
