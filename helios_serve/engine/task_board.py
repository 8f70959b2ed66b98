"""Work beside the denoising: which tasks wait, and which worker has which of the others."""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from helios_serve.messages import DecodeTask, EncodeTask

Task = TypeVar("Task", EncodeTask, DecodeTask)

DEPTH = 2
"""Tasks that a worker has at a time, so that it never waits for the next."""
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


class Given(NamedTuple, Generic[Task]):
    """A task for a worker."""

    worker_id: str
    task: Task


class TaskBoard(Generic[Task]):
    """Tasks of one kind. Sessions take turns, so that none waits for all that another has made.

    A worker does its tasks in the order in which it was given them.
    """

    def __init__(self) -> None:
        self._turns: OrderedDict[str, deque[Item[Task]]] = OrderedDict()
        self._given: dict[str, deque[Item[Task]]] = {}
        self._busy_since: dict[str, float] = {}

    def put(self, task: Task, *, preferred: str | None = None, is_urgent: bool = False) -> None:
        """Queue a task; an urgent one of a session without others is next."""
        is_next = is_urgent and task.session_id not in self._turns
        self._queue(Item(task, preferred), front=is_next)

    def give_out(self, workers: Collection[str], now: float) -> Iterator[Given[Task]]:
        """Tasks for those of `workers` that can take more, the least busy first."""
        while self._turns:
            session_id, items = next(iter(self._turns.items()))
            depth = 1 if items[0].is_suspect else DEPTH
            open_to = [
                name for name in workers if self.count(name) < depth and not self.has_suspect(name)
            ]
            if not open_to:
                return
            del self._turns[session_id]
            item = items.popleft()
            if items:
                self._turns[session_id] = items
            worker_id = min(
                open_to,
                key=lambda name: (len(self._given.get(name, ())), name != item.preferred),
            )
            given = self._given.setdefault(worker_id, deque())
            if not given:
                self._busy_since[worker_id] = now
            given.append(item)
            yield Given(worker_id, item.task)

    def finish(self, worker_id: str, now: float) -> Task:
        """The worker has done its oldest task."""
        self._busy_since[worker_id] = now
        return self._given[worker_id].popleft().task

    def lose(self, worker_id: str, *, was_idle: bool = False) -> list[str]:
        """The worker is gone: others do what it had. Returns sessions whose task is given up.

        Only the oldest task had been begun, so only that one may have been the cause; it is the
        likelier one if the worker `was_idle` apart from its tasks.
        """
        lost = self._given.pop(worker_id, deque())
        if lost:
            lost[0].losses += 1
            lost[0].lone_losses += was_idle and len(lost) == 1
        wanted = [item for item in lost if item.is_wanted]
        for item in reversed(wanted):
            if not item.is_guilty:
                self._queue(item, front=True)
        return [item.task.session_id for item in wanted if item.is_guilty]

    def has_suspect(self, worker_id: str) -> bool:
        """Whether the worker has a task that should be all it has."""
        return any(item.is_suspect for item in self._given.get(worker_id, ()))

    def forget(self, session_id: str) -> None:
        """Drop what waits of a session that is over; what is lost of it is not done again."""
        self._turns.pop(session_id, None)
        for item in (item for given in self._given.values() for item in given):
            item.is_wanted &= item.task.session_id != session_id

    def count(self, worker_id: str) -> int:
        """Tasks that the worker has."""
        return len(self._given.get(worker_id, ()))

    def __contains__(self, session_id: str) -> bool:
        """Whether a task of the session waits, or a worker has one."""
        given = (item for items in self._given.values() for item in items)
        return session_id in self._turns or any(
            item.task.session_id == session_id for item in given
        )

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._turns.values()))

    def is_late(self, worker_id: str, now: float, deadline: float) -> bool:
        """Whether the worker is at one task for longer than it may."""
        return bool(self.count(worker_id)) and now - self._busy_since[worker_id] > deadline

    def _queue(self, item: Item[Task], *, front: bool) -> None:
        session_id = item.task.session_id
        items = self._turns.setdefault(session_id, deque())
        if front:
            items.appendleft(item)
            self._turns.move_to_end(session_id, last=False)
        else:
            items.append(item)
