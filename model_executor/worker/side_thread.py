"""Work that runs beside the denoising."""

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
    """A thread that does one task after another until it takes None; leaving waits for that.

    Where the device has streams it works in one of its own.
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
    """A stream beside the default one where the device has streams."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.Stream(device)
