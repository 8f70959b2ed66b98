"""Work beside the denoising: which tasks wait, and which worker has which of the others."""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from helios_serve.messages import DecodeTask, EncodeTask

Task = TypeVar("Task", EncodeTask, DecodeTask)

SUSPECT_AFTER = 2
"""Workers that may die with a task before it is given to one that does nothing else meanwhile."""
MAX_LONE_LOSSES = 3
"""Workers that may die while a task is all they have before it is taken to be the cause."""
MAX_LOSSES = 20
"""Workers that may die with a task, whatever else they had."""


@dataclass
class Item(Generic[Task]):
    """A task, the worker that had best do it, how many died with it, and if anybody wants it."""

    task: Task
    preferred: str | None
    losses: int = 0
    lone_losses: int = 0
    is_wanted: bool = True

    @property
    def is_suspect(self) -> bool:
        return self.losses >= SUSPECT_AFTER

    @property
    def is_guilty(self) -> bool:
        return self.lone_losses >= MAX_LONE_LOSSES or self.losses >= MAX_LOSSES


Turns = OrderedDict[str, deque[Item[Task]]]
"""What waits of each session, in the order of their turns."""


class Assignment(NamedTuple, Generic[Task]):
    """A task for a worker."""

    worker_id: str
    task: Task


class TaskQueue(Generic[Task]):
    """Tasks of one kind. Sessions take turns, so that none waits for all that another has made.

    A worker has one task at a time: what is urgent waits for no more than that, and for what was
    urgent before it.
    """

    def __init__(self) -> None:
        self._turns: Turns[Task] = OrderedDict()
        self._urgent: Turns[Task] = OrderedDict()
        """Sessions whose first task goes before all of the others; they are in one of the two."""
        self._assigned: dict[str, Item[Task]] = {}
        self._busy_since: dict[str, float] = {}

    def put(self, task: Task, *, preferred: str | None = None, is_urgent: bool = False) -> None:
        """Queue a task; an urgent one of a session without others goes before what is not."""
        session_id = task.session_id
        waits = session_id in self._urgent or session_id in self._turns
        is_next = session_id in self._urgent if waits else is_urgent
        turns = self._urgent if is_next else self._turns
        turns.setdefault(session_id, deque()).append(Item(task, preferred))

    def assign(self, workers: Collection[str], now: float) -> Iterator[Assignment[Task]]:
        """Tasks for those of `workers` that have none, for the preferred one if it is free."""
        free = [name for name in workers if name not in self._assigned]
        while free and (turns := self._urgent or self._turns):
            session_id, items = turns.popitem(last=False)
            item = items.popleft()
            if items:
                self._turns[session_id] = items
            worker_id = item.preferred if item.preferred in free else free[0]
            free.remove(worker_id)
            self._assigned[worker_id] = item
            self._busy_since[worker_id] = now
            yield Assignment(worker_id, item.task)

    def finish(self, worker_id: str) -> Task:
        """The worker has done its task."""
        return self._assigned.pop(worker_id).task

    def lose(self, worker_id: str, *, was_idle: bool = False) -> str | None:
        """The worker is gone: another one does what it had. Returns the session if its task is
        given up.

        The task is the likelier cause if the worker `was_idle` apart from it.
        """
        lost = self._assigned.pop(worker_id, None)
        if lost is None or not lost.is_wanted:
            return None
        lost.losses += 1
        lost.lone_losses += was_idle
        if lost.is_guilty:
            return lost.task.session_id
        self._put_back(lost)
        return None

    def has_suspect(self, worker_id: str) -> bool:
        """Whether the worker has a task that should be all it has."""
        item = self._assigned.get(worker_id)
        return item is not None and item.is_suspect

    def forget(self, session_id: str) -> None:
        """Drop what waits of a session that is over; what is lost of it is not done again."""
        for turns in (self._urgent, self._turns):
            turns.pop(session_id, None)
        for item in self._assigned.values():
            item.is_wanted &= item.task.session_id != session_id

    def count(self, worker_id: str) -> int:
        """Tasks that the worker has."""
        return int(worker_id in self._assigned)

    def __contains__(self, session_id: str) -> bool:
        """Whether a task of the session waits, or a worker has one."""
        given = (item.task.session_id for item in self._assigned.values())
        return session_id in self._urgent or session_id in self._turns or session_id in given

    @property
    def num_assigned(self) -> int:
        """Tasks that workers have."""
        return len(self._assigned)

    @property
    def num_waiting(self) -> int:
        return sum(map(len, (*self._urgent.values(), *self._turns.values())))

    def is_late(self, worker_id: str, now: float, deadline: float) -> bool:
        """Whether the worker is at one task for longer than it may."""
        return worker_id in self._assigned and now - self._busy_since[worker_id] > deadline

    def _put_back(self, item: Item[Task]) -> None:
        """It has waited its turn already, and comes before all else."""
        session_id = item.task.session_id
        waiting = self._urgent.pop(session_id, None) or self._turns.pop(session_id, deque())
        waiting.appendleft(item)
        self._urgent[session_id] = waiting
        self._urgent.move_to_end(session_id, last=False)
