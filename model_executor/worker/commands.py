"""What a worker was told to do and has not begun."""

import queue

from helios_serve.messages import DecodeTask, EncodeTask, SchedulerOutput, WorkerCommand


class Commands:
    """Plans, and the tasks that run beside them; each kind in the order in which it came.

    Any thread may put; each kind has one thread that takes. None is the end.
    """

    def __init__(self) -> None:
        self.plans: queue.SimpleQueue[SchedulerOutput | None] = queue.SimpleQueue()
        self.encode: queue.SimpleQueue[EncodeTask | None] = queue.SimpleQueue()
        self.decode: queue.SimpleQueue[DecodeTask | None] = queue.SimpleQueue()

    def put(self, command: WorkerCommand) -> None:
        match command:
            case SchedulerOutput():
                self.plans.put(command)
            case EncodeTask():
                self.encode.put(command)
            case DecodeTask():
                self.decode.put(command)

    def close(self) -> None:
        """What is there already is still done."""
        self.plans.put(None)
        self.encode.put(None)
        self.decode.put(None)
