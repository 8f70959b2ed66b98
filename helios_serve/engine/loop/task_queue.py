"""Encode or decode tasks that wait for a worker."""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from helios_serve.messages import DecodeTask, EncodeTask

Task = TypeVar("Task", EncodeTask, DecodeTask)

SUSPECT_AFTER = 2
"""Workers that die with a task before it is suspect: a worker that has it gets no plans."""
MAX_LONE_LOSSES = 3
"""Workers that die while the task is all they have before the task is taken to be the cause."""
MAX_LOSSES = 20
"""Workers that die with a task, whatever else they had, before it is given up."""


@dataclass
class QueuedTask(Generic[Task]):
    """A task, the worker that should do it if it is free, and the workers that died with it.

    `assigned_at` is the time of its last assignment, in seconds.
    """

    task: Task
    preferred: str | None
    losses: int = 0
    lone_losses: int = 0
    assigned_at: float = 0.0

    @property
    def is_suspect(self) -> bool:
        return self.losses >= SUSPECT_AFTER

    @property
    def is_guilty(self) -> bool:
        return self.lone_losses >= MAX_LONE_LOSSES or self.losses >= MAX_LOSSES


Turns = OrderedDict[str, deque[QueuedTask[Task]]]
"""The waiting tasks of each session, in the order of the sessions' turns."""


class Assignment(NamedTuple, Generic[Task]):
    """A task and the worker that gets it."""

    worker_id: str
    queued: QueuedTask[Task]


class TaskQueue(Generic[Task]):
    """Tasks of one kind, first in, first out within a session; sessions take turns.

    A worker has one task of a kind at a time, so an urgent task waits for at most one other and for
    the urgent tasks before it.
    """

    def __init__(self) -> None:
        self._turns: Turns[Task] = OrderedDict()
        self._urgent: Turns[Task] = OrderedDict()
        """Sessions whose first task goes before all of `_turns`. A session is in one of the two."""

    def __contains__(self, session_id: str) -> bool:
        """Whether a task of the session waits."""
        return session_id in self._urgent or session_id in self._turns

    @property
    def num_waiting(self) -> int:
        return sum(map(len, (*self._urgent.values(), *self._turns.values())))

    def put(self, task: Task, *, preferred: str | None = None, is_urgent: bool = False) -> None:
        """Queue a task. `is_urgent` counts only if no other task of its session waits."""
        session_id = task.session_id
        is_next = session_id in self._urgent if session_id in self else is_urgent
        turns = self._urgent if is_next else self._turns
        turns.setdefault(session_id, deque()).append(QueuedTask(task, preferred))

    def assign(self, free: Iterable[str], now: float) -> Iterator[Assignment[Task]]:
        """One task for each of the `free` workers, for its preferred one if that is among them."""
        workers = list(free)
        while workers and (turns := self._urgent or self._turns):
            session_id, tasks = turns.popitem(last=False)
            queued = tasks.popleft()
            if tasks:
                self._turns[session_id] = tasks
            worker_id = queued.preferred if queued.preferred in workers else workers[0]
            workers.remove(worker_id)
            queued.assigned_at = now
            yield Assignment(worker_id, queued)

    def requeue(self, lost: QueuedTask[Task], *, was_alone: bool) -> str | None:
        """Queue a dead worker's task again, before all others.

        Returns the task's session instead if the task is given up: it is the likely cause where it
        `was_alone` on the workers that died.
        """
        lost.losses += 1
        lost.lone_losses += was_alone
        session_id = lost.task.session_id
        if lost.is_guilty:
            return session_id
        waiting = self._urgent.pop(session_id, None) or self._turns.pop(session_id, deque())
        waiting.appendleft(lost)
        self._urgent[session_id] = waiting
        self._urgent.move_to_end(session_id, last=False)
        return None

    def forget(self, session_id: str) -> None:
        """Drop the waiting tasks of a session that has ended."""
        for turns in (self._urgent, self._turns):
            turns.pop(session_id, None)
