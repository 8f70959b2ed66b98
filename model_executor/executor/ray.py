"""Runs workers as Ray actors, on any number of nodes.

Workers hold state, so Ray must not restart them or retry their calls: the engine does both. The
death of an actor is noticed at once, because a call to it is always pending.
"""

import itertools
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import ray
from ray.exceptions import ActorUnavailableError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from helios_serve.errors import HeliosError
from helios_serve.logger import logger
from helios_serve.messages import WorkerCommand, WorkerDied, WorkerEvent
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.model_executor.executor.inbox import Inbox
from helios_serve.model_executor.executor.ray_connection import REASON_LENGTH, RayConnection
from helios_serve.model_executor.executor.ray_worker import RayWorker
from helios_serve.options.workers import Resources, WorkerConfig

KINDS = ("CPU", "GPU")
COMMANDS, EVENTS = "commands", "events"
ACTOR = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={COMMANDS: 1, EVENTS: 1})(
    RayWorker
)
PLACEMENT_SECONDS = 60.0
"""Timeout for reserving resources and starting the actor's process. Ray itself has none."""
PLACEMENT_POLL_SECONDS = 1
"""Interval at which a pending placement checks whether the worker was killed. An integer, because
`PlacementGroup.wait` truncates its timeout to whole seconds."""


CONNECTION = RayConnection()


class RayPlacement(NamedTuple):
    """The node and process in which an actor runs."""

    node_id: str
    pid: int


class Handle:
    """An actor, its placement group, and the thread that starts it and receives its events."""

    def __init__(
        self, worker_id: str, config: WorkerConfig, group: PlacementGroup, inbox: Inbox
    ) -> None:
        self.worker_id = worker_id
        self.config = config
        self.group = group
        self.inbox = inbox
        self.placement: RayPlacement | None = None
        self.is_unreachable = False
        """Whether the connection broke although Ray has not declared the actor dead: its node is
        lost."""
        self._actor: Any = None
        self._is_killed = self._is_released = False
        self._is_placing = True
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._listen, name=worker_id, daemon=True)
        self._thread.start()

    @property
    def is_listening(self) -> bool:
        return self._thread.is_alive()

    def submit(self, data: bytes) -> None:
        self._actor.put.options(concurrency_group=COMMANDS).remote(data)

    def kill(self) -> None:
        """Kill the actor at once, whatever it is doing. It sends no more events."""
        with self._lock:
            self._is_killed = True
            if self._actor is not None:
                ray.kill(self._actor, no_restart=True)

    def release(self) -> None:
        """Kill the actor and remove its placement group.

        A group that is still being placed is removed once it is: when a pending group is removed,
        Ray 2.60 may leak the resources that it has reserved already.
        """
        self.kill()
        with self._lock:
            self._is_released = True
            is_placed = not self._is_placing
        if is_placed:
            remove_placement_group(self.group)

    def join(self) -> None:
        self._thread.join()

    def _listen(self) -> None:
        """Start the actor and pass on its events until it dies, and then the reason."""
        decoder = msgspec.msgpack.Decoder(WorkerEvent)
        try:
            self._start()
            take = self._actor.take.options(concurrency_group=EVENTS)
            while True:
                for data in ray.get(take.remote()):
                    event = decoder.decode(data)
                    self._emit(event)
                    if isinstance(event, WorkerDied):
                        return
        except Exception as error:  # Ray raises many kinds; after any of them the actor is lost
            self.is_unreachable = isinstance(error, ActorUnavailableError)
            self._emit(WorkerDied(reason_of(error)))
        finally:
            self.kill()

    def _emit(self, event: WorkerEvent) -> None:
        if not self._is_killed:
            self.inbox.put(self.worker_id, event)

    def _start(self) -> None:
        """Wait for the placement group, then start the actor and wait for its process."""
        deadline = time.monotonic() + PLACEMENT_SECONDS
        try:
            is_placed = self._wait(lambda: self.group.wait(PLACEMENT_POLL_SECONDS), deadline)
        finally:
            self._end_placing()
        if not is_placed:
            raise HeliosError(f"no node has the resources: {describe_resources(self.config)}")
        need = self.config.resources
        actor = ACTOR.options(
            num_cpus=need.num_cpus,
            num_gpus=gpus_of(self.config),
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, 0),
        )
        with self._lock:
            if self._is_killed:
                raise HeliosError("killed by the engine")
            self._actor = actor.remote(msgspec.msgpack.encode(self.config), logger.level)
        where = self._actor.where.remote()
        if not self._wait(lambda: ray.wait([where], timeout=PLACEMENT_POLL_SECONDS)[0], deadline):
            raise HeliosError(f"process did not start within {PLACEMENT_SECONDS:g} s")
        self.placement = RayPlacement(*ray.get(where))

    def _end_placing(self) -> None:
        with self._lock:
            self._is_placing = False
            is_released = self._is_released
        if is_released:
            remove_placement_group(self.group)

    def _wait(self, poll: Callable[[], Any], deadline: float) -> bool:
        """Poll until true, the deadline or a kill. Ray would wait forever, even for a lost node."""
        while not (found := poll()):
            if self._is_killed or time.monotonic() > deadline:
                break
        return bool(found)


class RayExecutor:
    """An executor whose workers are Ray actors.

    It connects to the cluster at `address`, or starts a new one on this machine. Each worker has
    its own placement group. When a worker dies, its group is kept until the next `poll` and reused
    if a replacement with the same resources is started, so that no other job takes the GPU.
    """

    def __init__(self, address: str | None = None) -> None:
        """Connect. Raises DeviceError if no cluster answers at `address`."""
        CONNECTION.open(self, address)
        self._inbox = Inbox()
        self._numbers = itertools.count()
        self._handles: dict[str, Handle] = {}
        self._ended: list[Handle] = []
        """Handles whose threads may still be running."""
        self._kept_groups: list[tuple[Resources, float, PlacementGroup]] = []

    def start_worker(self, config: WorkerConfig) -> str:
        worker_id = f"ray-{next(self._numbers)}"
        self._handles[worker_id] = Handle(worker_id, config, self._reserve(config), self._inbox)
        return worker_id

    def submit(self, worker_id: str, command: WorkerCommand) -> None:
        self._handles[worker_id].submit(msgspec.msgpack.encode(command))

    def poll(self, timeout: float) -> list[Received]:
        self._remove_kept_groups()
        received = self._inbox.take(timeout)
        for worker_id, event in received:
            if isinstance(event, WorkerDied) and worker_id in self._handles:
                self._keep_or_release(self._end(worker_id))
        return received

    def wake(self) -> None:
        self._inbox.wake()

    def where(self, worker_id: str) -> str:
        placement = self.placement(worker_id)
        if placement is None:
            return "no node yet"
        return f"node {placement.node_id[:8]} process {placement.pid}"

    def placement(self, worker_id: str) -> RayPlacement | None:
        """Return the node and process of a worker; None until its process has started."""
        return self._handles[worker_id].placement

    def kill_worker(self, worker_id: str) -> None:
        """Kill a worker without waiting for it: a lost node never confirms the end of a process."""
        if worker_id in self._handles:
            self._handles[worker_id].kill()
            self._inbox.put(worker_id, WorkerDied("killed by the engine"))

    def stop_worker(self, worker_id: str) -> None:
        """Kill the worker, which is safe because it is idle."""
        self._end(worker_id).release()

    def shutdown(self) -> None:
        for worker_id in list(self._handles):
            self.stop_worker(worker_id)
        self._remove_kept_groups()
        for handle in self._ended:
            handle.join()
        CONNECTION.close(self)

    def _remove_kept_groups(self) -> None:
        for _, _, group in self._kept_groups:
            remove_placement_group(group)
        self._kept_groups.clear()

    def _end(self, worker_id: str) -> Handle:
        """Remove the worker and kill its actor."""
        handle = self._handles.pop(worker_id)
        handle.kill()
        self._ended = [ended for ended in self._ended if ended.is_listening] + [handle]
        return handle

    def _reserve(self, config: WorkerConfig) -> PlacementGroup:
        for index, (resources, gpus, kept) in enumerate(self._kept_groups):
            if resources == config.resources and gpus == gpus_of(config):
                del self._kept_groups[index]
                return kept
        need = config.resources
        bundle = {"CPU": need.num_cpus, "GPU": gpus_of(config)}
        labels = [need.labels] if need.labels else None
        group: PlacementGroup = placement_group(
            [{kind: amount for kind, amount in bundle.items() if amount}],
            bundle_label_selector=labels,
        )
        return group

    def _keep_or_release(self, handle: Handle) -> None:
        """Keep a dead worker's placement group for its replacement, unless its node is lost.

        Ray may take 15 seconds to declare a node dead, and a replacement would wait for that long.
        """
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        placement = handle.placement
        if placement is not None and placement.node_id in alive and not handle.is_unreachable:
            config = handle.config
            self._kept_groups.append((config.resources, gpus_of(config), handle.group))
        else:
            handle.release()


def reason_of(error: Exception) -> str:
    """Describe an error in one line. Ray's multi-line messages have the cause in the last line."""
    if isinstance(error, HeliosError):
        return str(error)
    lines = str(error).strip().splitlines() or ["no reason given"]
    cause = f"{type(error).__name__}: {lines[-1].strip()}"
    return textwrap.shorten(cause, REASON_LENGTH, placeholder=" ...")


def gpus_of(config: WorkerConfig) -> float:
    """Return the GPUs that a worker reserves, possibly a fraction; one per rank by default."""
    if config.resources.num_gpus is not None:
        return config.resources.num_gpus
    if config.device == "auto":
        return float(config.ranks) if ray.cluster_resources().get("GPU") else 0.0
    return 0.0 if config.device == "cpu" else float(config.ranks)


def describe_resources(config: WorkerConfig) -> str:
    """Describe the resources that a worker requests and those of the cluster."""
    need = config.resources
    asked = f"got {need.num_cpus:g} CPUs, {gpus_of(config):g} GPUs, labels {need.labels}"
    have = {kind: amount for kind, amount in ray.cluster_resources().items() if kind in KINDS}
    return f"{asked}; expected at most what one node has free, of {have} in the cluster"
