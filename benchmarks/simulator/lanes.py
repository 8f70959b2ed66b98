"""A simulated worker: lanes for steps, encoding, decoding and segments, which slow each other."""

from collections import deque
from dataclasses import dataclass
from itertools import combinations

from helios_serve.benchmarks.simulator.costs import LANES, DeviceCosts, Lane
from helios_serve.benchmarks.simulator.host import Host
from helios_serve.messages import NewSession, WorkerCommand
from helios_serve.options.workers import CHUNKS_WAITING, WorkerConfig


@dataclass(eq=False)
class LaneJob:
    """A command, the seconds that it takes alone, and when it was begun.

    A decode task goes on in the lane of segments, where it takes `segment_seconds`; `rendered` is
    then what its frames took.
    """

    command: WorkerCommand
    seconds: float
    segment_seconds: float = 0.0
    begun: float = 0.0
    rendered: float = 0.0


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


class Contention:
    """How many times as long the lanes of a worker take, for each set of busy lanes.

    - `slowdowns`: by set, the factor of each of its lanes.
    - `cores`: by set, the cores of the host that it keeps busy.
    - `hosted`: the lanes that need the host.
    """

    def __init__(self, costs: DeviceCosts) -> None:
        self.slowdowns: dict[frozenset[Lane], dict[Lane, float]] = {}
        self.cores: dict[frozenset[Lane], float] = {}
        self.hosted = frozenset(lane for lane in LANES if costs.cores.get(lane, 0.0) > 0)
        for count in range(len(LANES) + 1):
            for chosen in combinations(LANES, count):
                busy = frozenset(chosen)
                found = {
                    lane: costs.slowdown(lane, (other for other in chosen if other != lane))
                    for lane in chosen
                }
                self.slowdowns[busy] = found
                self.cores[busy] = sum(costs.cores.get(lane, 0.0) / found[lane] for lane in chosen)


class SimulatedWorker:
    """Runs one command of each lane at a time, in order, and the lanes at the same time.

    While several lanes are busy, each takes longer, as `contention` says. Those that need the host
    take longer also while it has too few cores. Segments are encoded behind the decoder, which
    stops while CHUNKS_WAITING of them wait and it holds one more. `version` grows whenever the time
    at which the next command ends may have changed.
    """

    def __init__(
        self, worker_id: str, config: WorkerConfig, contention: Contention, host: Host | None = None
    ) -> None:
        self.worker_id = worker_id
        self.config = config
        self.sessions: dict[str, OpenSession] = {}
        self.is_ready = False
        self.version = 0
        self.busy: dict[Lane, float] = dict.fromkeys(LANES, 0.0)
        """Seconds in which each lane was busy."""
        self.host = host
        self.cores = 0.0
        """Cores of the host that its lanes would keep busy."""
        self.cpu_seconds = 0.0
        """CPU time of the host that it has used."""
        self._contention = contention
        self._slowdowns = contention.slowdowns[frozenset()]
        self._running: dict[Lane, LaneJob] = {}
        self._left: dict[Lane, float] = {}
        self._waiting: dict[Lane, deque[LaneJob]] = {lane: deque() for lane in LANES}
        self._now = 0.0
        self._host_speed = 1.0
        if host is not None:
            host.enter(worker_id, self)

    def put(self, lane: Lane, job: LaneJob, now: float) -> None:
        """Begin a job, or queue it in its lane."""
        if lane in self._running or (lane == "decode" and self._is_blocked):
            self._waiting[lane].append(job)
        else:
            self.advance(now)
            self._begin(lane, job)
            self._share()

    def next_end(self, now: float) -> float | None:
        """Return when the first of the running jobs ends if no other begins; None if idle."""
        if not self._left:
            return None
        self.advance(now)
        return now + min(map(self._time_left, self._left))

    def finish(self, now: float) -> tuple[Lane, LaneJob]:
        """End the job that ends first, and begin the next one of its lane."""
        self.advance(now)
        lane = min(self._left, key=self._time_left)
        del self._left[lane]
        job = self._running.pop(lane)
        self.busy[lane] += now - job.begun
        if lane == "decode" and job.segment_seconds > 0:
            job.rendered = now - job.begun
            self._waiting["segment"].append(
                LaneJob(job.command, job.segment_seconds, rendered=job.rendered)
            )
            if "segment" not in self._running:
                self._begin_next("segment")
        self._begin_next(lane)
        if lane == "segment" and "decode" not in self._running:
            self._begin_next("decode")
        self._share()
        return lane, job

    def advance(self, now: float) -> None:
        """Let the running jobs go on up to `now`, as fast as they have been since the last call."""
        if self._left and now > self._now:
            passed = now - self._now
            self.cpu_seconds += passed * self.cores * self._host_speed
            for lane, left in self._left.items():
                self._left[lane] = max(0.0, left - passed / self._factor(lane))
        self._now = now

    def at_speed(self, host_speed: float) -> None:
        """The host gives its lanes another share of what they need, from the last `advance` on."""
        self._host_speed = host_speed
        self.version += 1

    @property
    def _is_blocked(self) -> bool:
        """Whether the decoder holds frames that no place is free for."""
        return len(self._waiting["segment"]) > CHUNKS_WAITING

    def _factor(self, lane: Lane) -> float:
        """How many times as long the lane takes as alone."""
        if self._host_speed < 1 and lane in self._contention.hosted:
            return self._slowdowns[lane] / self._host_speed
        return self._slowdowns[lane]

    def _time_left(self, lane: Lane) -> float:
        return self._left[lane] * self._factor(lane)

    def _begin_next(self, lane: Lane) -> None:
        if self._waiting[lane] and not (lane == "decode" and self._is_blocked):
            self._begin(lane, self._waiting[lane].popleft())

    def _begin(self, lane: Lane, job: LaneJob) -> None:
        job.begun = self._now
        self._running[lane], self._left[lane] = job, job.seconds

    def _share(self) -> None:
        """Other lanes are busy now: they, and the workers of the host, have other speeds."""
        busy = frozenset(self._left)
        self._slowdowns = self._contention.slowdowns[busy]
        self.version += 1
        self.cores, before = self._contention.cores[busy], self.cores
        if self.host is not None:
            self.host.change(self.cores - before, self._now)
