"""The queues of a worker's commands."""

import queue

from helios_serve.messages import DecodeTask, EncodeTask, SchedulerOutput, WorkerCommand


class Commands:
    """Queues of plans, encode tasks and decode tasks, each in the order of arrival.

    Any thread may put commands; one thread per queue takes them. None marks the end of a queue.
    """

    def __init__(self) -> None:
        self.plans: queue.SimpleQueue[SchedulerOutput | None] = queue.SimpleQueue()
        self.encode: queue.SimpleQueue[EncodeTask | None] = queue.SimpleQueue()
        self.is_closed = False
        self.decode: queue.SimpleQueue[DecodeTask | None] = queue.SimpleQueue()

    def put(self, command: WorkerCommand) -> None:
        """Add a command to the queue of its kind."""
        match command:
            case SchedulerOutput():
                self.plans.put(command)
            case EncodeTask():
                self.encode.put(command)
            case DecodeTask():
                self.decode.put(command)

    def close(self) -> None:
        """End all queues. Commands that were added before are still executed."""
        self.is_closed = True
        self.plans.put(None)
        self.encode.put(None)
        self.decode.put(None)
