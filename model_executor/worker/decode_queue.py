"""In which order chunks are decoded: sessions take turns, and a first chunk goes first."""

import threading
from collections import OrderedDict, deque

from helios_serve.messages import DecodeTask


class DecodeQueue:
    """A queue between threads. Chunks of one session come out in the order they went in.

    Where decoding is the slower part, a session that made many chunks ahead does not keep others
    waiting, and a first chunk, for which somebody waits, is next.
    """

    def __init__(self) -> None:
        self._turns: OrderedDict[str, deque[DecodeTask]] = OrderedDict()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, task: DecodeTask) -> None:
        with self._changed:
            if task.session_id not in self._turns:
                self._turns[task.session_id] = deque()
                self._turns.move_to_end(task.session_id, last=task.chunk > 0)
            self._turns[task.session_id].append(task)
            self._changed.notify()

    def close(self) -> None:
        """What is in the queue still comes out, and then None."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def get(self) -> DecodeTask | None:
        """The next task, waiting for one; None when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._turns or self._closed)
            if not self._turns:
                return None
            session_id, tasks = self._turns.popitem(last=False)
            task = tasks.popleft()
            if tasks:
                self._turns[session_id] = tasks
            return task
