"""The interface through which the engine starts and reaches its workers."""

from typing import NamedTuple, Protocol

from helios_serve.messages import WorkerCommand, WorkerEvent
from helios_serve.options.workers import WorkerConfig


class Received(NamedTuple):
    """An event and the id of the worker that sent it."""

    worker_id: str
    event: WorkerEvent


class Executor(Protocol):
    """Starts workers and exchanges messages with them.

    Workers are addressed by id. Ids are never reused, so a late event cannot be attributed to
    another worker. A worker's first event is WorkerReady or WorkerDied. It answers each plan with
    StepsDone, each EncodeTask with InputsEncoded, and each DecodeTask with ChunkRendered and then
    ChunkDecoded, or with LatentsMissing, in order within each kind. Its last event is WorkerDied,
    unless it was stopped.
    """

    def start_worker(self, config: WorkerConfig) -> str:
        """Start a worker and return its id without waiting until it is ready."""
        ...

    def submit(self, worker_id: str, command: WorkerCommand) -> None:
        """Queue a plan or a task for the worker. Never blocks."""
        ...

    def poll(self, timeout: float) -> list[Received]:
        """Return the events received; waits up to `timeout` seconds for the first one."""
        ...

    def wake(self) -> None:
        """Make a waiting `poll` return. May be called from any thread."""
        ...

    def where(self, worker_id: str) -> str:
        """Return where the worker runs, such as its process and node, for display."""
        ...

    def kill_worker(self, worker_id: str) -> None:
        """Kill a worker at once, whatever it is doing. WorkerDied follows."""
        ...

    def stop_worker(self, worker_id: str) -> None:
        """Stop an idle worker. It sends no more events."""
        ...

    def shutdown(self) -> None:
        """Stop all workers."""
        ...
