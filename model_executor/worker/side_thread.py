"""Threads of a worker that execute tasks from a queue."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Item_co = TypeVar("Item_co", covariant=True)


class TaskSource(Protocol[Item_co]):
    """A queue, of either kind of the standard library."""

    def get(self) -> Item_co:
        """Remove and return the oldest item; waits for one."""
        ...


@contextlib.contextmanager
def side_thread(
    work: Callable[[Task], None],
    tasks: TaskSource[Task | None],
    name: str,
    stream: contextlib.AbstractContextManager[object] | None = None,
) -> Iterator[None]:
    """Run `work` on the tasks of a queue, in a thread, until it takes None. A context manager.

    Leaving the context waits for the thread. The thread launches its work on `stream`, if any.
    """

    def run() -> None:
        with stream or contextlib.nullcontext():
            while (task := tasks.get()) is not None:
                work(task)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    yield
    thread.join()
