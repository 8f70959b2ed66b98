"""How the engine reaches its workers, wherever they run."""

from typing import NamedTuple, Protocol

from helios_serve.messages import SchedulerOutput, WorkerEvent


class Received(NamedTuple):
    """An event and the worker that it came from."""

    worker_id: str
    event: WorkerEvent


class Executor(Protocol):
    """Workers by id. An id is never used again, so nothing late is taken for something new.

    A worker starts with WorkerReady or WorkerDied; it answers every plan with one StepsDone, in
    order; and it ends with WorkerDied, unless it was stopped.
    """

    def start_worker(self) -> str:
        """Begin to start one more worker; returns its id at once."""
        ...

    def submit(self, worker_id: str, plan: SchedulerOutput) -> None:
        """Give the worker a plan behind those it has; never waits for it."""
        ...

    def poll(self, timeout: float) -> list[Received]:
        """What came from the workers; waits up to `timeout` seconds for something to come."""
        ...

    def kill_worker(self, worker_id: str) -> None:
        """End a worker at once, whatever it is doing; WorkerDied follows."""
        ...

    def shutdown(self) -> None:
        """End all workers."""
        ...
