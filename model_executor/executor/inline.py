"""Workers as threads of this process: for one video, and for tests."""

import itertools
import threading
from collections.abc import Callable

from helios_serve.errors import HeliosError
from helios_serve.logger import logger
from helios_serve.messages import WorkerCommand, WorkerDied
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.model_executor.executor.inbox import Inbox
from helios_serve.model_executor.worker.commands import Commands
from helios_serve.model_executor.worker.group import check_thread
from helios_serve.model_executor.worker.worker import Emit, Worker, load_worker
from helios_serve.options.workers import WorkerConfig

MakeWorker = Callable[[WorkerConfig, Emit], Worker]


class InlineExecutor:
    """Each worker is a thread; `make_worker` is called in it."""

    def __init__(self, make_worker: MakeWorker = load_worker) -> None:
        self.make_worker = make_worker
        self._inbox = Inbox()
        self._numbers = itertools.count()
        self._commands: dict[str, Commands] = {}
        self._threads: dict[str, threading.Thread] = {}

    def start_worker(self, config: WorkerConfig) -> str:
        worker_id = f"inline-{next(self._numbers)}"
        self._commands[worker_id] = Commands()
        thread = threading.Thread(
            target=self._run, args=(worker_id, config), name=worker_id, daemon=True
        )
        self._threads[worker_id] = thread
        thread.start()
        return worker_id

    def submit(self, worker_id: str, command: WorkerCommand) -> None:
        self._commands[worker_id].put(command)

    def poll(self, timeout: float) -> list[Received]:
        return self._inbox.take(timeout)

    def wake(self) -> None:
        self._inbox.wake()

    def where(self, worker_id: str) -> str:
        return f"thread {self._threads[worker_id].name}"

    def kill_worker(self, worker_id: str) -> None:
        """A thread cannot be killed: it is left to end by itself, and nobody hears it any more."""
        self._commands[worker_id].close()
        self._inbox.put(worker_id, WorkerDied("it was given up"))

    def stop_worker(self, worker_id: str) -> None:
        self._commands[worker_id].close()

    def shutdown(self) -> None:
        for commands in self._commands.values():
            commands.close()
        for thread in self._threads.values():
            thread.join()

    def _run(self, worker_id: str, config: WorkerConfig) -> None:
        try:
            check_thread(config)
            worker = self.make_worker(config, lambda event: self._inbox.put(worker_id, event))
            worker.run(self._commands[worker_id])
        except Exception as error:  # told to the engine, which decides what follows
            logger.error("worker %s died", worker_id, exc_info=error)
            is_ours = isinstance(error, HeliosError)
            reason = str(error) if is_ours else f"{type(error).__name__}: {error}"
            self._inbox.put(worker_id, WorkerDied(reason, is_final=is_ours))
