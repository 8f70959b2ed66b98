"""Workers as child processes of this one, reached by msgpack over a pipe.

A child ends with its parent: it reads end of file. The parent learns of a child's end the same way.
"""

import itertools
import multiprocessing
import os
import queue
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import msgspec

from helios_serve.errors import HeliosError
from helios_serve.logger import logger, show_logs
from helios_serve.messages import WorkerCommand, WorkerDied, WorkerEvent
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.model_executor.executor.inbox import Inbox
from helios_serve.model_executor.exit_status import how_it_ended
from helios_serve.model_executor.worker.commands import Commands
from helios_serve.options.workers import WorkerConfig

STOP_SECONDS = 10.0


class Places:
    """Which of a machine's devices workers have, counted from 0: the lowest that are free."""

    def __init__(self) -> None:
        self._taken: list[range] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> range:
        """`size` places next to each other."""
        with self._lock:
            first = 0
            for taken in sorted(self._taken, key=lambda taken: taken.start):
                if taken.start >= first + size:
                    break
                first = taken.stop
            self._taken.append(range(first, first + size))
            return self._taken[-1]

    def give_back(self, places: range) -> None:
        with self._lock:
            self._taken.remove(places)


PLACES = Places()
"""One for all models that a server has workers of."""


class Child:
    """One worker process and the two threads that talk to it.

    Commands are written by a thread of their own, since a pipe holds little and a task may carry a
    whole reference video.
    """

    def __init__(self, worker_id: str, config: WorkerConfig, inbox: Inbox) -> None:
        self.worker_id = worker_id
        self.places = PLACES.take(config.ranks)
        self.inbox = inbox
        self.is_stopping = False
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=run_worker, args=(config, self.places, theirs), name=worker_id, daemon=True
        )
        self.process.start()
        theirs.close()
        self._commands: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name=f"{worker_id} {target.__name__}", daemon=True)
            for target in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, command: WorkerCommand) -> None:
        self._commands.put(msgspec.msgpack.encode(command))

    def kill(self) -> None:
        """SIGKILL also ends a process that is stopped or hangs; the reader need not tell of it."""
        self.is_stopping = True
        self.process.kill()

    def stop(self, seconds: float) -> None:
        """Wait for its end when it has done what it was given, and kill it after `seconds`."""
        self.is_stopping = True
        self._commands.put(None)
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        for thread in self._threads:
            thread.join()
        self._pipe.close()
        self.process.close()

    def _write(self) -> None:
        while (data := self._commands.get()) is not None:
            try:
                self._pipe.send_bytes(data)
            except OSError:  # the child is gone: the reader says so
                return
        try:
            self._pipe.send_bytes(b"")
        except OSError:
            return

    def _read(self) -> None:
        decoder = msgspec.msgpack.Decoder(WorkerEvent)
        said_why = False
        while True:
            try:
                event = decoder.decode(self._pipe.recv_bytes())
            except (EOFError, OSError):
                break
            except msgspec.MsgspecError as error:  # what it says cannot be trusted any more
                logger.error("worker %s sent nonsense", self.worker_id, exc_info=error)
                self.process.kill()
                break
            said_why = said_why or isinstance(event, WorkerDied)
            self.inbox.put(self.worker_id, event)
        self._commands.put(None)
        self.process.join()
        if not said_why and not self.is_stopping:
            self.inbox.put(self.worker_id, WorkerDied(how_it_ended(self.process.exitcode)))


class LocalExecutor:
    """Spawned worker processes on this machine, on its devices one after the other."""

    def __init__(self) -> None:
        self._inbox = Inbox()
        self._numbers = itertools.count()
        self._children: dict[str, Child] = {}
        self._reapers: list[threading.Thread] = []

    def start_worker(self, config: WorkerConfig) -> str:
        worker_id = f"local-{next(self._numbers)}"
        self._children[worker_id] = Child(worker_id, config, self._inbox)
        return worker_id

    def submit(self, worker_id: str, command: WorkerCommand) -> None:
        self._children[worker_id].submit(command)

    def poll(self, timeout: float) -> list[Received]:
        received = self._inbox.take(timeout)
        for worker_id, event in received:
            if isinstance(event, WorkerDied) and worker_id in self._children:
                self.stop_worker(worker_id)
        return received

    def wake(self) -> None:
        self._inbox.wake()

    def where(self, worker_id: str) -> str:
        return f"process {self.pid(worker_id)}"

    def kill_worker(self, worker_id: str) -> None:
        """Do not wait for its end: one that is stuck in a driver may not end at all."""
        if worker_id in self._children:
            self._children[worker_id].kill()
            self._inbox.put(worker_id, WorkerDied("it was killed"))

    def stop_worker(self, worker_id: str) -> None:
        child = self._children.pop(worker_id)
        PLACES.give_back(child.places)
        self._reap(child)

    def pid(self, worker_id: str) -> int:
        """The worker's process id."""
        pid = self._children[worker_id].process.pid
        assert pid is not None
        return pid

    def shutdown(self) -> None:
        for worker_id in list(self._children):
            self.stop_worker(worker_id)
        for thread in self._reapers:
            thread.join()

    def _reap(self, child: Child) -> None:
        """Nobody waits for a process that may take a while to end."""
        name = f"reap {child.worker_id}"
        thread = threading.Thread(target=child.stop, args=(STOP_SECONDS,), name=name, daemon=True)
        thread.start()
        self._reapers = [reaper for reaper in self._reapers if reaper.is_alive()] + [thread]


def run_worker(config: WorkerConfig, places: range, pipe: Connection) -> None:
    """The life of a worker process, at those places among the machine's devices."""
    from helios_serve.model_executor.device import spread
    from helios_serve.model_executor.worker.worker import load_worker

    threading.Thread(target=end_with_parent, name="watch parent", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when its workers end
    show_logs()
    lock = threading.Lock()

    def emit(event: WorkerEvent) -> None:
        data = msgspec.msgpack.encode(event)
        with lock:
            pipe.send_bytes(data)

    commands = Commands()
    threading.Thread(target=read_commands, args=(pipe, commands), name="read", daemon=True).start()
    try:
        own = msgspec.structs.replace(config, device=spread(config.device, places))
        load_worker(own, emit).run(commands)
    except BrokenPipeError:  # the parent is gone
        os._exit(1)
    except HeliosError as error:
        emit(WorkerDied(str(error), is_final=True))
    except Exception as error:  # nothing is left to save; waiting threads must not delay the end
        logger.error("worker failed", exc_info=error)
        emit(WorkerDied(f"{type(error).__name__}: {error}"))
        os._exit(1)


def read_commands(pipe: Connection, commands: Commands) -> None:
    """Take commands as they come, also while a step runs, so that tasks begin beside it."""
    decoder = msgspec.msgpack.Decoder(WorkerCommand)
    try:
        while data := pipe.recv_bytes():
            commands.put(decoder.decode(data))
    except (EOFError, OSError):  # the parent is gone
        os._exit(1)
    commands.close()


def end_with_parent() -> None:
    """A child that is busy would notice only later that nobody waits for it any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
