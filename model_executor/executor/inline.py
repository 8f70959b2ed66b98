"""Runs workers as threads of this process, for generating single videos and for tests."""

import itertools
import threading
from collections.abc import Callable

from helios_serve.errors import HeliosError, describe_error
from helios_serve.logger import logger
from helios_serve.messages import WorkerCommand, WorkerDied
from helios_serve.model_executor.checks import check_thread
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.model_executor.executor.inbox import Inbox
from helios_serve.model_executor.worker.commands import Commands
from helios_serve.model_executor.worker.worker import Emit, Worker, load_worker
from helios_serve.options.workers import WorkerConfig

MakeWorker = Callable[[WorkerConfig, Emit], Worker]


class InlineExecutor:
    """An executor whose workers are threads. `make_worker` is called in the worker's thread."""

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
        """Abandon the worker: a thread cannot be killed, so it ends after its current commands."""
        self._commands[worker_id].close()
        self._inbox.put(worker_id, WorkerDied("abandoned by the engine"))

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
        except Exception as error:  # reported to the engine, which handles it
            logger.error("worker %s died", worker_id, exc_info=error)
            death = WorkerDied(describe_error(error), is_final=isinstance(error, HeliosError))
            self._inbox.put(worker_id, death)
