"""Workers as threads of this process: for one video, and for tests."""

import itertools
import queue
import threading
from collections.abc import Callable

from helios_serve.errors import HeliosError
from helios_serve.logger import logger
from helios_serve.messages import SchedulerOutput, WorkerDied
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.model_executor.executor.inbox import Inbox
from helios_serve.model_executor.worker.worker import Emit, Worker

MakeWorker = Callable[[Emit], Worker]


class InlineExecutor:
    """Each worker is a thread; `make_worker` is called in it."""

    def __init__(self, make_worker: MakeWorker) -> None:
        self.make_worker = make_worker
        self._inbox = Inbox()
        self._numbers = itertools.count()
        self._plans: dict[str, queue.SimpleQueue[SchedulerOutput | None]] = {}
        self._threads: dict[str, threading.Thread] = {}

    def start_worker(self) -> str:
        worker_id = f"inline-{next(self._numbers)}"
        self._plans[worker_id] = queue.SimpleQueue()
        thread = threading.Thread(target=self._run, args=(worker_id,), name=worker_id, daemon=True)
        self._threads[worker_id] = thread
        thread.start()
        return worker_id

    def submit(self, worker_id: str, plan: SchedulerOutput) -> None:
        self._plans[worker_id].put(plan)

    def poll(self, timeout: float) -> list[Received]:
        return self._inbox.take(timeout)

    def kill_worker(self, worker_id: str) -> None:
        """A thread cannot be killed: it is left to end by itself, and nobody hears it any more."""
        self._plans[worker_id].put(None)
        self._inbox.put(worker_id, WorkerDied("it was given up"))

    def shutdown(self) -> None:
        for plans in self._plans.values():
            plans.put(None)
        for thread in self._threads.values():
            thread.join()

    def _run(self, worker_id: str) -> None:
        try:
            worker = self.make_worker(lambda event: self._inbox.put(worker_id, event))
            while (plan := self._plans[worker_id].get()) is not None:
                worker.execute(plan)
            worker.close()
        except Exception as error:  # told to the engine, which decides what follows
            logger.error("worker %s died", worker_id, exc_info=error)
            reason = f"{type(error).__name__}: {error}"
            self._inbox.put(worker_id, WorkerDied(reason, isinstance(error, HeliosError)))
