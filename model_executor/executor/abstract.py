"""How the engine reaches its workers, wherever they run."""

from typing import NamedTuple, Protocol

from helios_serve.messages import WorkerCommand, WorkerEvent
from helios_serve.options.workers import WorkerConfig


class Received(NamedTuple):
    """An event and the worker that it came from."""

    worker_id: str
    event: WorkerEvent


class Executor(Protocol):
    """Workers by id. An id is never used again, so nothing late is taken for something new.

    A worker starts with WorkerReady or WorkerDied; it answers every plan with one StepsDone, in
    order, and every encode and decode task likewise; and it ends with WorkerDied, unless it was
    stopped.
    """

    def start_worker(self, config: WorkerConfig) -> str:
        """Begin to start one more worker; returns its id at once."""
        ...

    def submit(self, worker_id: str, command: WorkerCommand) -> None:
        """Give the worker a plan or a task behind those it has; never waits for it."""
        ...

    def poll(self, timeout: float) -> list[Received]:
        """What came from the workers; waits up to `timeout` seconds for something to come."""
        ...

    def wake(self) -> None:
        """Let a `poll` that waits return; may be called from any thread."""
        ...

    def where(self, worker_id: str) -> str:
        """Where the worker runs, for people: a process, a node."""
        ...

    def kill_worker(self, worker_id: str) -> None:
        """End a worker at once, whatever it is doing; WorkerDied follows."""
        ...

    def stop_worker(self, worker_id: str) -> None:
        """Let a worker end that has nothing to do; nothing more is heard of it."""
        ...

    def shutdown(self) -> None:
        """End all workers."""
        ...
