"""The queue of events received from all workers."""

import queue
import time

from helios_serve.messages import WorkerEvent
from helios_serve.model_executor.executor.abstract import Received


class Inbox:
    """A queue into which threads put events, and from which the engine takes all at once."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Received | None] = queue.SimpleQueue()

    def put(self, worker_id: str, event: WorkerEvent) -> None:
        self._events.put(Received(worker_id, event))

    def wake(self) -> None:
        """Make a waiting `take` return."""
        self._events.put(None)

    def take(self, timeout: float) -> list[Received]:
        """Return all queued events; waits up to `timeout` seconds for the first one."""
        deadline = time.monotonic() + timeout
        taken: list[Received | None] = []
        while True:
            left = 0.0 if taken else max(0.0, deadline - time.monotonic())
            try:
                taken.append(self._events.get(timeout=left) if left else self._events.get_nowait())
            except queue.Empty:
                return [received for received in taken if received is not None]
