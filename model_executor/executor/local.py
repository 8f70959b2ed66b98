"""Runs workers as child processes, which exchange msgpack messages over a pipe.

A child whose parent ends reads end-of-file from the pipe and exits. The parent detects the end of a
child in the same way.
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

from helios_serve.errors import HeliosError, describe_error
from helios_serve.logger import logger, show_logs
from helios_serve.messages import WorkerCommand, WorkerDied, WorkerEvent, WorkerReady
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.model_executor.executor.inbox import Inbox
from helios_serve.model_executor.exit_status import describe_exit
from helios_serve.model_executor.worker.commands import Commands
from helios_serve.options.workers import WorkerConfig

STOP_SECONDS = 10.0
"""Time that a stopped worker has to exit before it is killed."""


class DeviceSlots:
    """Assigns numbered device slots of this machine to workers, the lowest free ones first.

    `assign_device` maps slots to devices.
    """

    def __init__(self) -> None:
        self._taken: list[range] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> range:
        """Take `size` consecutive slots."""
        with self._lock:
            first = 0
            for taken in sorted(self._taken, key=lambda taken: taken.start):
                if taken.start >= first + size:
                    break
                first = taken.stop
            self._taken.append(range(first, first + size))
            return self._taken[-1]

    def release(self, slots: range) -> None:
        with self._lock:
            self._taken.remove(slots)


DEVICE_SLOTS = DeviceSlots()
"""Shared by the workers of all models in this process."""


class Child:
    """A worker process and the two threads that write to and read from its pipe.

    Writing needs a thread because a write blocks when the pipe is full, and a task may carry a
    whole reference video.
    """

    def __init__(self, worker_id: str, config: WorkerConfig, inbox: Inbox) -> None:
        self.worker_id = worker_id
        self.slots = DEVICE_SLOTS.take(config.ranks)
        self.inbox = inbox
        self.is_ready = False
        self.is_stopping = False
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=run_worker,
            args=(config, self.slots, theirs, logger.level),
            name=worker_id,
            daemon=True,
        )
        self.process.start()
        theirs.close()
        self.commands: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name=f"{worker_id} {target.__name__}", daemon=True)
            for target in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def kill(self) -> None:
        """Kill the process without an event from the reader. SIGKILL also ends a hung process."""
        self.is_stopping = True
        self.process.kill()

    def stop(self, seconds: float) -> None:
        """Let the process finish its commands and exit; kill it after `seconds`.

        One that is still loading is killed at once: it has no commands, and would not notice.
        """
        self.is_stopping = True
        self.commands.put(None)
        self.process.join(seconds if self.is_ready else 0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        for thread in self._threads:
            thread.join()
        self._pipe.close()
        self.process.close()

    def _write(self) -> None:
        while (data := self.commands.get()) is not None:
            try:
                self._pipe.send_bytes(data)
            except OSError:  # the child ended; the reader reports it
                return
        try:
            self._pipe.send_bytes(b"")
        except OSError:
            return

    def _read(self) -> None:
        decoder = msgspec.msgpack.Decoder(WorkerEvent)
        has_reason = False
        while True:
            try:
                event = decoder.decode(self._pipe.recv_bytes())
            except (EOFError, OSError):
                break
            except msgspec.MsgspecError as error:  # its later messages cannot be trusted either
                logger.error("worker %s sent an invalid message", self.worker_id, exc_info=error)
                self.process.kill()
                break
            has_reason = has_reason or isinstance(event, WorkerDied)
            self.is_ready = self.is_ready or isinstance(event, WorkerReady)
            self.inbox.put(self.worker_id, event)
        self.commands.put(None)
        self.process.join()
        if not has_reason and not self.is_stopping:
            self.inbox.put(self.worker_id, WorkerDied(describe_exit(self.process.exitcode)))


class LocalExecutor:
    """An executor whose workers are spawned processes, on this machine's devices in turn."""

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
        self._children[worker_id].commands.put(msgspec.msgpack.encode(command))

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
        """Kill a worker without waiting for it: a process stuck in a driver may never exit."""
        if worker_id in self._children:
            self._children[worker_id].kill()
            self._inbox.put(worker_id, WorkerDied("killed by the engine"))

    def stop_worker(self, worker_id: str) -> None:
        child = self._children.pop(worker_id)
        DEVICE_SLOTS.release(child.slots)
        self._reap(child)

    def pid(self, worker_id: str) -> int:
        """Return the worker's process id."""
        pid = self._children[worker_id].process.pid
        assert pid is not None
        return pid

    def shutdown(self) -> None:
        for worker_id in list(self._children):
            self.stop_worker(worker_id)
        for thread in self._reapers:
            thread.join()

    def _reap(self, child: Child) -> None:
        """Stop a child in a thread of its own, as it may take a while to exit."""
        name = f"reap {child.worker_id}"
        thread = threading.Thread(target=child.stop, args=(STOP_SECONDS,), name=name, daemon=True)
        thread.start()
        self._reapers = [reaper for reaper in self._reapers if reaper.is_alive()] + [thread]


def run_worker(config: WorkerConfig, slots: range, pipe: Connection, log_level: int) -> None:
    """Run a worker with its device slots in this process until the parent closes its commands."""
    from helios_serve.model_executor.device import assign_device
    from helios_serve.model_executor.worker.worker import load_worker

    threading.Thread(target=end_with_parent, name="watch parent", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    show_logs(log_level)
    lock = threading.Lock()

    def emit(event: WorkerEvent) -> None:
        data = msgspec.msgpack.encode(event)
        with lock:
            pipe.send_bytes(data)

    commands = Commands()
    threading.Thread(target=read_commands, args=(pipe, commands), name="read", daemon=True).start()
    try:
        own = msgspec.structs.replace(config, device=assign_device(config.device, slots))
        load_worker(own, emit).run(commands)
    except BrokenPipeError:  # the parent ended
        os._exit(1)
    except HeliosError as error:
        emit(WorkerDied(str(error), is_final=True))
    except Exception as error:  # exit at once: waiting threads must not delay it
        logger.error("worker failed", exc_info=error)
        emit(WorkerDied(describe_error(error)))
        os._exit(1)


def read_commands(pipe: Connection, commands: Commands) -> None:
    """Queue commands as they arrive, so that tasks can start while a step runs."""
    decoder = msgspec.msgpack.Decoder(WorkerCommand)
    try:
        while data := pipe.recv_bytes():
            commands.put(decoder.decode(data))
    except (EOFError, OSError):  # the parent ended
        os._exit(1)
    commands.close()


def end_with_parent() -> None:
    """Exit as soon as the parent ends. A busy worker would notice a closed pipe only later."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
