"""A worker as a Ray actor: commands are put in, events taken out, the work is done beside both."""

import os
import queue
import threading

import msgspec
import ray

from helios_serve.errors import HeliosError
from helios_serve.logger import logger, show_logs
from helios_serve.messages import WorkerCommand, WorkerDied, WorkerEvent
from helios_serve.model_executor.worker.commands import Commands
from helios_serve.options.workers import WorkerConfig

POLL_SECONDS = 10.0


class RayWorker:
    """The actor. `put` and `take` are called in a thread each, beside that of the work.

    Everything travels as msgpack, in the order in which it was sent.
    """

    def __init__(self, config: bytes) -> None:
        show_logs()
        self._commands = Commands()
        self._decoder = msgspec.msgpack.Decoder(WorkerCommand)
        self._events: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        worker = msgspec.msgpack.decode(config, type=WorkerConfig)
        threading.Thread(target=self._work, args=(worker,), name="work", daemon=True).start()

    def put(self, command: bytes) -> None:
        """Take a command."""
        self._commands.put(self._decoder.decode(command))

    def take(self) -> list[bytes]:
        """What happened since the last call; waits a while for something to happen."""
        try:
            events = [self._events.get(timeout=POLL_SECONDS)]
        except queue.Empty:
            return []
        while not self._events.empty():
            events.append(self._events.get())
        return events

    def where(self) -> tuple[str, int]:
        """The id of the node that it runs on, and its process id there."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def _work(self, config: WorkerConfig) -> None:
        from helios_serve.model_executor.worker.worker import load_worker

        try:
            load_worker(config, self._emit).run(self._commands)
        except Exception as error:  # told to the engine, which decides what follows
            logger.error("worker failed", exc_info=error)
            is_ours = isinstance(error, HeliosError)
            reason = str(error) if is_ours else f"{type(error).__name__}: {error}"
            self._emit(WorkerDied(reason, is_final=is_ours))

    def _emit(self, event: WorkerEvent) -> None:
        self._events.put(msgspec.msgpack.encode(event))
