"""An encode or decode task that waits for a worker, or that one has."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from helios_serve.core.session import Session
from helios_serve.messages import DecodeTask, EncodeTask

Task = TypeVar("Task", EncodeTask, DecodeTask)

SUSPECT_AFTER = 2
"""Workers that die with a task before it is suspect: a worker that has it gets no plans."""
MAX_LONE_LOSSES = 3
"""Workers that die while the task is all they have before the task is taken to be the cause."""
MAX_LOSSES = 20
"""Workers that die with a task, whatever else they had, before it is given up."""


@dataclass(eq=False)
class QueuedTask(Generic[Task]):
    """A task, the worker that should do it if it is free, and the workers that died with it.

    `cost` is in pixels. A priority session needs the result of the task by `due`. Tasks that are
    `first` go before the others of their flow, and those that are `owed` are for the first chunk of
    a flow that was idle. `assigned_at` is the time of the last assignment, in seconds.
    """

    task: Task
    session: Session
    cost: float
    due: float
    preferred: str | None = None
    is_first: bool = False
    is_owed: bool = False
    losses: int = 0
    lone_losses: int = 0
    assigned_at: float = 0.0

    @property
    def is_suspect(self) -> bool:
        return self.losses >= SUSPECT_AFTER

    @property
    def is_guilty(self) -> bool:
        return self.lone_losses >= MAX_LONE_LOSSES or self.losses >= MAX_LOSSES
