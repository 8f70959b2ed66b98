"""Encode or decode tasks that wait for a worker, in the order of the scheduler's policy."""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, Literal, NamedTuple

from helios_serve.core.device import Device, HostTask
from helios_serve.core.queued_task import QueuedTask, Task
from helios_serve.core.rate import Rate
from helios_serve.core.session import Session
from helios_serve.core.stage_queue import Claim, FlowKey, StageQueue, flow_of
from helios_serve.options.scheduling import SchedulingConfig


@dataclass
class SessionTasks(Generic[Task]):
    """The waiting tasks of one session, the oldest first."""

    session: Session
    waiting: deque[QueuedTask[Task]] = field(default_factory=deque)


class Assignment(NamedTuple, Generic[Task]):
    """A task and the worker that gets it."""

    worker_id: str
    queued: QueuedTask[Task]


class TaskOrder(Generic[Task]):
    """The order of the oldest tasks of sessions; `tasks` are all that wait."""

    def __init__(self, tasks: Mapping[str, SessionTasks[Task]], rate: Rate) -> None:
        self.tasks: Mapping[str, SessionTasks[Task]] = tasks
        self.rate = rate

    def due(self, session: Session) -> float:
        """When the session's oldest task has to begin."""
        queued = self.tasks[session.session_id].waiting[0]
        return queued.due - self.rate.seconds(queued.cost)

    def is_started(self, session: Session) -> bool:
        return self.tasks[session.session_id].waiting[0].is_first

    def lead(self, session: Session) -> float:
        """The cost of the session's oldest task."""
        return self.tasks[session.session_id].waiting[0].cost

    def credit(self, session: Session) -> float:
        """The same: one task."""
        return self.lead(session)


class TaskQueue(Generic[Task]):
    """Tasks of one kind for all workers with the role.

    Tasks of a session are first in, first out; between sessions the policy decides that orders
    their steps as well. A worker's device has one task of a kind at a time, and finishes it; those
    that it is done with may still be on the worker's host. A session stays with a device that keeps
    decoded sessions, and waits for it while it is busy. `rate` is in pixels per second of one
    worker's device.
    """

    def __init__(self, stage: Literal["encode", "decode"], config: SchedulingConfig) -> None:
        self.stage = stage
        self.rate = Rate()
        self.waiting_by_flow: Counter[FlowKey] = Counter()
        self._tasks: dict[str, SessionTasks[Task]] = {}
        self.queue = StageQueue(config, TaskOrder(self._tasks, self.rate))
        self._running: dict[str, deque[QueuedTask[Task]]] = {}
        """By worker, the oldest first."""
        self._keepers: dict[str, str] = {}
        """The worker that keeps a session, by session: the last one that decoded for it."""

    def __contains__(self, session_id: str) -> bool:
        """Whether a task of the session waits."""
        return session_id in self._tasks

    @property
    def num_waiting(self) -> int:
        return self.waiting_by_flow.total()

    def running(self, session_id: str) -> bool:
        """Whether a worker has a task of the session."""
        running = chain.from_iterable(self._running.values())
        return any(item.session.session_id == session_id for item in running)

    def claim(self, device: Device) -> Claim:
        """The claim of the tasks that run on `device` or wait for it, to which steps give way."""
        waiting = Claim(False, False)
        if self.stage in device.roles and not device.is_draining:
            waiting = self.queue.claim
        running = device.tasks.get(self.stage)
        if running is None:
            return waiting
        return Claim(
            waiting.is_priority or running.session.is_priority,
            waiting.is_owed or running.is_owed,
        )

    def put(self, queued: QueuedTask[Task]) -> None:
        """Queue a task after the others of its session."""
        self._tasks_of(queued.session).waiting.append(queued)
        self._line_up(queued.session)

    def assign(self, devices: Iterable[Device], now: float) -> Iterator[Assignment[Task]]:
        """One task for each device without one, for the preferred device if it is among them.

        No device whose steps have a claim begins to decode for another session, unless that is owed
        a share: it could not be interrupted. Encoding is short, and not put off.
        """
        if not self._tasks:
            return
        known = {item.worker_id: item for item in devices}
        free = {name: item for name, item in known.items() if self.stage not in item.tasks}
        kept_back: list[Session] = []
        while free and (session := self._next(free.values())) is not None:
            keeper = self._keepers.get(session.session_id)
            if keeper in known and keeper not in free:
                kept_back.append(session)
                continue
            queued = self._take(session)
            device = self._choose(queued, free)
            del free[device.worker_id]
            queued.assigned_at = now
            device.tasks[self.stage] = queued
            self._running.setdefault(device.worker_id, deque()).append(queued)
            device.begin(self.stage, now)
            if self.stage == "decode" and device.keeps_sessions:
                self._keepers[session.session_id] = device.worker_id
            yield Assignment(device.worker_id, queued)
        for session in reversed(kept_back):
            self.queue.push(session, front=True)

    def hand_over(self, device: Device, now: float) -> None:
        """Record that the device is done with its task, which the host finishes.

        The device can begin another one.
        """
        queued = device.tasks.pop(self.stage)
        device.on_host.append(HostTask(queued, device.end(self.stage, now, queued.cost)))

    def finish(self, device: Device, now: float, seconds: float = 0.0) -> QueuedTask[Task]:
        """The worker has done its oldest task in `seconds`, 0 if that was not measured.

        The task is charged with the time that it took here, and to the steps on the same device.
        """
        queued = self._running[device.worker_id][0]
        if device.tasks.get(self.stage) is queued:
            self.hand_over(device, now)
        seconds *= self._end(device).share
        if seconds > 0:
            if self.rate.value:
                more = self.rate.value * seconds - queued.cost
                self.queue.bill(queued.session, more, queued.cost)
            self.rate.measure(queued.cost, seconds)
            if (steps := device.step_queue) is not None:
                cost, credit = device.step_rate.value * seconds, steps.order.credit(queued.session)
                steps.bill(queued.session, cost, credit)
        return queued

    def lose(self, device: Device, now: float) -> list[QueuedTask[Task]]:
        """The device's worker died; returns the tasks that it had, the oldest first."""
        if self.stage in device.tasks:
            self.hand_over(device, now)
        for session_id in [name for name, own in self._keepers.items() if own == device.worker_id]:
            del self._keepers[session_id]
        return [self._end(device).queued for _ in range(self._number(device))]

    def requeue(self, lost: QueuedTask[Task], *, was_alone: bool) -> str | None:
        """Queue a dead worker's task again, before all others of its session.

        What it was charged is given back. Returns the task's session instead if the task is given
        up: it is the likely cause where it `was_alone` on the workers that died.
        """
        lost.losses += 1
        lost.lone_losses += was_alone
        self.queue.bill(lost.session, -lost.cost, lost.cost)
        if lost.is_guilty:
            return lost.session.session_id
        lost.is_first = True
        self._tasks_of(lost.session).waiting.appendleft(lost)
        self._line_up(lost.session, front=True)
        return None

    def forget(self, session_id: str) -> None:
        """Drop the waiting tasks of a session that has ended."""
        self._keepers.pop(session_id, None)
        if (tasks := self._tasks.pop(session_id, None)) is not None:
            self._count(tasks.session, -len(tasks.waiting))
            self.queue.leave(tasks.session)

    def check_integrity(self, devices: Iterable[Device]) -> None:
        """Raise AssertionError unless each waiting task will be served, and each other one runs."""
        self.queue.check_integrity()
        known = list(devices)
        assert self.queue.sessions.keys() == self._tasks.keys()
        assert len(self.queue) == len(self._tasks), "a session's tasks are in no line"
        counts: Counter[FlowKey] = Counter()
        for tasks in self._tasks.values():
            assert tasks.waiting, f"{tasks.session.session_id} waits for nothing"
            counts[flow_of(tasks.session)] += len(tasks.waiting)
        assert counts == self.waiting_by_flow
        for device in known:
            own: list[QueuedTask[Task]] = list(self._running.get(device.worker_id, ()))
            assert own == [item for item in device.all_tasks if item in own]
            assert device.tasks.get(self.stage) in (*own[-1:], None)
        assert self._running.keys() <= {device.worker_id for device in known}

    def _tasks_of(self, session: Session) -> SessionTasks[Task]:
        return self._tasks.setdefault(session.session_id, SessionTasks(session))

    def _line_up(self, session: Session, *, front: bool = False) -> None:
        """Queue a session that has got one more task."""
        self._count(session, 1)
        if session.session_id not in self.queue.sessions:
            self.queue.join(session)
        elif front:
            self.queue.withdraw(session)
        if session not in self.queue:
            self.queue.push(session, front=front)

    def _next(self, free: Collection[Device]) -> Session | None:
        """Remove and return the next session that has a task for one of the `free` devices."""
        return self.queue.pop(
            with_priority=all(self._step_claim(device).is_priority for device in free),
            only_owed=all(any(self._step_claim(device)) for device in free),
        )

    def _choose(self, queued: QueuedTask[Task], free: Mapping[str, Device]) -> Device:
        """Return the device that keeps its session, or its preferred one, if that is free and no
        step has a claim on it; else the first one without a claim."""
        keeper = self._keepers.get(queued.session.session_id)
        names = [name for name in (keeper, queued.preferred) if name is not None]
        wished: list[Device] = [free[name] for name in names if name in free]
        first = next(iter(free.values()))
        if queued.session.is_priority or queued.is_owed:
            return next(iter(wished), first)
        for device in (*wished, *free.values()):
            if not any(self._step_claim(device)):
                return device
        return next(iter(wished), first)

    def _step_claim(self, device: Device) -> Claim:
        """The claim of a device's steps to which tasks of this kind give way."""
        return device.step_claim if self.stage == "decode" else Claim(False, False)

    def _take(self, session: Session) -> QueuedTask[Task]:
        """Charge a session that was popped for its oldest task, and remove that."""
        waiting = self._tasks[session.session_id].waiting
        queued = waiting.popleft()
        queued.is_owed = self.queue.is_owed(session)
        self.queue.charge(session, queued.cost)
        self._count(session, -1)
        if waiting:
            self.queue.push(session)
        else:
            del self._tasks[session.session_id]
            self.queue.leave(session)
        return queued

    def _number(self, device: Device) -> int:
        return len(self._running.get(device.worker_id, ()))

    def _end(self, device: Device) -> HostTask:
        """Forget the oldest task of a worker, which is on its host."""
        running = self._running[device.worker_id]
        queued = running.popleft()
        if not running:
            del self._running[device.worker_id]
        ended = next(item for item in device.on_host if item.queued is queued)
        device.on_host.remove(ended)
        return ended

    def _count(self, session: Session, change: int) -> None:
        flow = flow_of(session)
        self.waiting_by_flow[flow] += change
        if not self.waiting_by_flow[flow]:
            del self.waiting_by_flow[flow]
