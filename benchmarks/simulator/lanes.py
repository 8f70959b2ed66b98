"""A simulated worker: three lanes, for steps, encoding and decoding, which share its device."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from helios_serve.messages import NewSession, WorkerCommand
from helios_serve.options.workers import ROLES, Role, WorkerConfig


@dataclass
class LaneJob:
    """A command, the seconds that it takes alone, and then on the host, and when it was begun."""

    command: WorkerCommand
    seconds: float
    host_seconds: float = 0.0
    begun: float = 0.0


@dataclass(eq=False)
class OpenSession:
    """What a worker has of a session.

    - `steps`: seconds that a step adds to a plan, by stage.
    - `counts`: steps of each stage of the first chunk, and of the others.
    - `frames`: latent frames of its history.
    """

    opened: NewSession
    steps: tuple[float, ...]
    counts: tuple[tuple[int, ...], tuple[int, ...]]
    frames: int


class SimulatedWorker:
    """Runs one command of each lane at a time, in order, and the lanes at the same time.

    With `sharing` s, each of k busy lanes runs at 1 / (1 + s (k - 1)) of its speed. `version` grows
    whenever the time at which the next command ends may have changed. The host encodes one chunk at
    a time, and slows no lane down; the worker decodes on, however many chunks wait for it.
    """

    def __init__(self, worker_id: str, config: WorkerConfig, sharing: float) -> None:
        self.worker_id = worker_id
        self.config = config
        self.sessions: dict[str, OpenSession] = {}
        self.is_ready = False
        self.version = 0
        self.busy: dict[Role, float] = dict.fromkeys(ROLES, 0.0)
        """Seconds in which each lane was busy."""
        self._sharing = sharing
        self._running: dict[Role, LaneJob] = {}
        self._left: dict[Role, float] = {}
        self._waiting: dict[Role, deque[LaneJob]] = {role: deque() for role in ROLES}
        self._now = self._host_until = 0.0

    def put(self, lane: Role, job: LaneJob, now: float) -> None:
        """Begin a job, or queue it in its lane."""
        if lane in self._running:
            self._waiting[lane].append(job)
        else:
            self._advance(now)
            self._begin(lane, job)

    def next_end(self, now: float) -> float | None:
        """Return when the first of the running jobs ends if no other begins; None if idle."""
        if not self._left:
            return None
        self._advance(now)
        return now + min(self._left.values()) * self._slowdown

    def finish(self, now: float) -> tuple[Role, LaneJob]:
        """End the job that ends first, and begin the next one of its lane."""
        self._advance(now)
        lane = min(self._left, key=lambda role: self._left[role])
        del self._left[lane]
        job = self._running.pop(lane)
        self.busy[lane] += now - job.begun
        if self._waiting[lane]:
            self._begin(lane, self._waiting[lane].popleft())
        self.version += 1
        return lane, job

    def encode(self, seconds: float, now: float) -> float:
        """Return when the host has encoded a chunk that was rendered at `now`."""
        self._host_until = max(self._host_until, now) + seconds
        return self._host_until

    def backlog(self, lane: Role, now: float) -> float:
        """Return the seconds of work in a lane."""
        self._advance(now)
        waiting: Iterable[LaneJob] = self._waiting[lane]
        return self._left.get(lane, 0.0) + sum(job.seconds for job in waiting)

    @property
    def _slowdown(self) -> float:
        return 1.0 + self._sharing * (len(self._left) - 1)

    def _begin(self, lane: Role, job: LaneJob) -> None:
        job.begun = self._now
        self._running[lane], self._left[lane] = job, job.seconds
        self.version += 1

    def _advance(self, now: float) -> None:
        if self._left and now > self._now:
            passed = (now - self._now) / self._slowdown
            for lane in self._left:
                self._left[lane] = max(0.0, self._left[lane] - passed)
        self._now = now
