"""Where the events of all workers arrive."""

import queue
import time

from helios_serve.messages import WorkerEvent
from helios_serve.model_executor.executor.abstract import Received


class Inbox:
    """A queue that threads put events into and the engine empties."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Received] = queue.SimpleQueue()

    def put(self, worker_id: str, event: WorkerEvent) -> None:
        self._events.put(Received(worker_id, event))

    def take(self, timeout: float) -> list[Received]:
        """All events that are there; waits up to `timeout` seconds for the first."""
        deadline = time.monotonic() + timeout
        taken: list[Received] = []
        while True:
            left = 0.0 if taken else max(0.0, deadline - time.monotonic())
            try:
                taken.append(self._events.get(timeout=left) if left else self._events.get_nowait())
            except queue.Empty:
                return taken
