"""Workers as Ray actors, on any number of machines.

Workers hold state, so Ray neither restarts them nor repeats their calls: the engine does both. A
dead actor is noticed at once, since one call always waits in it.
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
from helios_serve.messages import WorkerCommand, WorkerDied, WorkerEvent
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.model_executor.executor.inbox import Inbox
from helios_serve.model_executor.executor.ray_connection import CONNECTION
from helios_serve.model_executor.executor.ray_worker import RayWorker
from helios_serve.options.workers import Resources, WorkerConfig

KINDS = ("CPU", "GPU")
COMMANDS, EVENTS = "commands", "events"
ACTOR = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={COMMANDS: 1, EVENTS: 1})(
    RayWorker
)
PLACEMENT_SECONDS = 60.0
"""How long to wait for a node with room, and for a process there: Ray itself waits for ever."""
LOOK_SECONDS = 1
"""How long to wait for one of them before looking whether anybody still wants the worker: whole
seconds, since a placement group's `wait` cuts off what is behind the point."""
REASON_LENGTH = 200


class RayPlacement(NamedTuple):
    """Where an actor runs."""

    node_id: str
    pid: int


class Handle:
    """One actor, its reserved place in the cluster, and the thread that listens to it."""

    def __init__(
        self, worker_id: str, config: WorkerConfig, group: PlacementGroup, inbox: Inbox
    ) -> None:
        self.worker_id = worker_id
        self.config = config
        self.group = group
        self.inbox = inbox
        self.place: RayPlacement | None = None
        self.is_cut_off = False
        """Whether the connection to it broke while Ray knows of no death: its node is gone."""
        self._actor: Any = None
        self._is_killed = self._is_unwanted = False
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
        """End it at once, whatever it is doing; nothing more is heard of it."""
        with self._lock:
            self._is_killed = True
            if self._actor is not None:
                ray.kill(self._actor, no_restart=True)

    def give_back(self) -> None:
        """End it, and free its place.

        A place that is still being made is freed when it is there: Ray 2.60 may lose for ever what
        it has taken for one that is removed earlier.
        """
        self.kill()
        with self._lock:
            self._is_unwanted = True
            is_there = not self._is_placing
        if is_there:
            remove_placement_group(self.group)

    def join(self) -> None:
        self._thread.join()

    def _listen(self) -> None:
        """Everything that the actor tells, until it dies; then why."""
        decoder = msgspec.msgpack.Decoder(WorkerEvent)
        try:
            self._start()
            take = self._actor.take.options(concurrency_group=EVENTS)
            while True:
                for data in ray.get(take.remote()):
                    event = decoder.decode(data)
                    self._tell(event)
                    if isinstance(event, WorkerDied):
                        return
        except Exception as error:  # Ray has many; whatever it is, nobody hears the actor any more
            self.is_cut_off = isinstance(error, ActorUnavailableError)
            self._tell(WorkerDied(reason_of(error)))
        finally:
            self.kill()

    def _tell(self, event: WorkerEvent) -> None:
        if not self._is_killed:
            self.inbox.put(self.worker_id, event)

    def _start(self) -> None:
        """Wait for room, then for the actor's process there."""
        deadline = time.monotonic() + PLACEMENT_SECONDS
        try:
            has_room = self._wait(lambda: self.group.wait(LOOK_SECONDS), deadline)
        finally:
            self._end_placing()
        if not has_room:
            raise HeliosError(f"no node has room for it: {describe(self.config)}")
        need = self.config.resources
        actor = ACTOR.options(
            num_cpus=need.num_cpus,
            num_gpus=gpus_of(self.config),
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, 0),
        )
        with self._lock:
            if self._is_killed:
                raise HeliosError("it was killed")
            self._actor = actor.remote(msgspec.msgpack.encode(self.config))
        where = self._actor.where.remote()
        if not self._wait(lambda: ray.wait([where], timeout=LOOK_SECONDS)[0], deadline):
            raise HeliosError(f"its process did not start within {PLACEMENT_SECONDS:g} s")
        self.place = RayPlacement(*ray.get(where))

    def _end_placing(self) -> None:
        with self._lock:
            self._is_placing = False
            is_unwanted = self._is_unwanted
        if is_unwanted:
            remove_placement_group(self.group)

    def _wait(self, is_there: Callable[[], Any], deadline: float) -> bool:
        """Whether it is there in time; Ray would wait for ever, also for a place that is gone."""
        while not (found := is_there()):
            if self._is_killed or time.monotonic() > deadline:
                break
        return bool(found)


class RayExecutor:
    """Workers in a Ray cluster: the one at `address`, or a new one on this machine.

    Each worker has a placement group of its own. When it dies its place is kept until the next
    `poll`, for one that is started instead of it, so that nobody else takes the GPU in between.
    """

    def __init__(self, address: str | None = None) -> None:
        CONNECTION.open(self, address)
        self._inbox = Inbox()
        self._numbers = itertools.count()
        self._handles: dict[str, Handle] = {}
        self._ended: list[Handle] = []
        """Handles whose threads may still listen."""
        self._free: list[tuple[Resources, float, PlacementGroup]] = []

    def start_worker(self, config: WorkerConfig) -> str:
        worker_id = f"ray-{next(self._numbers)}"
        self._handles[worker_id] = Handle(worker_id, config, self._reserve(config), self._inbox)
        return worker_id

    def submit(self, worker_id: str, command: WorkerCommand) -> None:
        self._handles[worker_id].submit(msgspec.msgpack.encode(command))

    def poll(self, timeout: float) -> list[Received]:
        self._give_back()
        received = self._inbox.take(timeout)
        for worker_id, event in received:
            if isinstance(event, WorkerDied) and worker_id in self._handles:
                self._release(self._end(worker_id))
        return received

    def wake(self) -> None:
        self._inbox.wake()

    def where(self, worker_id: str) -> str:
        place = self.place(worker_id)
        return "no node yet" if place is None else f"node {place.node_id[:8]} process {place.pid}"

    def place(self, worker_id: str) -> RayPlacement | None:
        """Where the worker runs, once it has a process."""
        return self._handles[worker_id].place

    def kill_worker(self, worker_id: str) -> None:
        """Do not wait for its end: a node out of reach never says that a process has ended."""
        if worker_id in self._handles:
            self._handles[worker_id].kill()
            self._inbox.put(worker_id, WorkerDied("it was killed"))

    def stop_worker(self, worker_id: str) -> None:
        """It has nothing to do, so it may as well be killed."""
        self._end(worker_id).give_back()

    def shutdown(self) -> None:
        for worker_id in list(self._handles):
            self.stop_worker(worker_id)
        self._give_back()
        for handle in self._ended:
            handle.join()
        CONNECTION.close(self)

    def _give_back(self) -> None:
        for _, _, group in self._free:
            remove_placement_group(group)
        self._free.clear()

    def _end(self, worker_id: str) -> Handle:
        """Forget the worker, and see to it that it ends."""
        handle = self._handles.pop(worker_id)
        handle.kill()
        self._ended = [ended for ended in self._ended if ended.is_listening] + [handle]
        return handle

    def _reserve(self, config: WorkerConfig) -> PlacementGroup:
        for index, (resources, gpus, kept) in enumerate(self._free):
            if resources == config.resources and gpus == gpus_of(config):
                del self._free[index]
                return kept
        need = config.resources
        bundle = {"CPU": need.num_cpus, "GPU": gpus_of(config)}
        labels = [need.labels] if need.labels else None
        group: PlacementGroup = placement_group(
            [{kind: amount for kind, amount in bundle.items() if amount}],
            bundle_label_selector=labels,
        )
        return group

    def _release(self, handle: Handle) -> None:
        """Keep a dead worker's place, unless it went with its node.

        Ray may take a quarter of a minute to declare a node dead, and would have a place there
        wait for as long.
        """
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if handle.place is not None and handle.place.node_id in alive and not handle.is_cut_off:
            config = handle.config
            self._free.append((config.resources, gpus_of(config), handle.group))
        else:
            handle.give_back()


def reason_of(error: Exception) -> str:
    """Why a worker died, in a line: Ray's errors end with the cause, or are one line long."""
    if isinstance(error, HeliosError):
        return str(error)
    lines = str(error).strip().splitlines() or ["no reason given"]
    cause = f"{type(error).__name__}: {lines[-1].strip()}"
    return textwrap.shorten(cause, REASON_LENGTH, placeholder=" ...")


def gpus_of(config: WorkerConfig) -> float:
    """GPUs, or the part of one, that a worker takes of its node: one a rank if nothing is said."""
    if config.resources.num_gpus is not None:
        return config.resources.num_gpus
    if config.device == "auto":
        return float(config.ranks) if ray.cluster_resources().get("GPU") else 0.0
    return 0.0 if config.device == "cpu" else float(config.ranks)


def describe(config: WorkerConfig) -> str:
    """What a worker asks for, beside what the cluster has."""
    need = config.resources
    asked = f"got {need.num_cpus:g} CPUs, {gpus_of(config):g} GPUs, labels {need.labels}"
    have = {kind: amount for kind, amount in ray.cluster_resources().items() if kind in KINDS}
    return f"{asked}; expected at most what one node has free, of {have} in the cluster"
