"""The Ray actor that runs a worker."""

import os
import queue
import threading

import msgspec
import ray

from helios_serve.errors import HeliosError, describe_error
from helios_serve.logger import logger, show_logs
from helios_serve.messages import WorkerCommand, WorkerDied, WorkerEvent
from helios_serve.model_executor.worker.commands import Commands
from helios_serve.options.workers import WorkerConfig

POLL_SECONDS = 10.0
"""Time that `take` waits for an event."""


class RayWorker:
    """The actor. `put`, `take` and the worker run concurrently, each in its own thread.

    `config`, commands and events are encoded as msgpack. Commands and events keep their order.
    """

    def __init__(self, config: bytes, log_level: int) -> None:
        show_logs(log_level)
        self._commands = Commands()
        self._decoder = msgspec.msgpack.Decoder(WorkerCommand)
        self._events: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        worker = msgspec.msgpack.decode(config, type=WorkerConfig)
        threading.Thread(target=self._work, args=(worker,), name="work", daemon=True).start()

    def put(self, command: bytes) -> None:
        """Queue a command for the worker."""
        self._commands.put(self._decoder.decode(command))

    def take(self) -> list[bytes]:
        """Return the events since the last call; waits up to `POLL_SECONDS` for the first one."""
        try:
            events = [self._events.get(timeout=POLL_SECONDS)]
        except queue.Empty:
            return []
        while not self._events.empty():
            events.append(self._events.get())
        return events

    def where(self) -> tuple[str, int]:
        """Return the id of the actor's node and its process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def _work(self, config: WorkerConfig) -> None:
        from helios_serve.model_executor.worker.worker import load_worker

        try:
            load_worker(config, self._emit).run(self._commands)
        except Exception as error:  # reported to the engine, which handles it
            logger.error("worker failed", exc_info=error)
            self._emit(WorkerDied(describe_error(error), isinstance(error, HeliosError)))

    def _emit(self, event: WorkerEvent) -> None:
        self._events.put(msgspec.msgpack.encode(event))
