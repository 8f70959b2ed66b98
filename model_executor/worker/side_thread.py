"""Threads that execute tasks concurrently with denoising."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

Task = TypeVar("Task")


@contextlib.contextmanager
def side_thread(
    work: Callable[[Task], None],
    tasks: "queue.SimpleQueue[Task | None]",
    device: torch.device,
    name: str,
) -> Iterator[None]:
    """Run `work` on the tasks of a queue, in a thread, until it takes None. A context manager.

    Leaving the context waits for the thread. On devices with streams the thread uses its own one.
    """

    def run() -> None:
        with own_stream(device):
            while (task := tasks.get()) is not None:
                work(task)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    yield
    thread.join()


def own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context of a new stream, or a null context on a CPU."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.Stream(device)
