"""Workers as Ray actors, on any number of machines.

Workers hold state, so Ray neither restarts them nor repeats their calls: the engine does both. A
dead actor is noticed at once, since one call always waits in it.
"""

import itertools
import os
import sys
import tempfile
import threading
import time
from typing import Any, NamedTuple

import msgspec
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from helios_serve.config import Resources, WorkerConfig
from helios_serve.errors import HeliosError
from helios_serve.messages import WorkerCommand, WorkerDied, WorkerEvent
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.model_executor.executor.inbox import Inbox
from helios_serve.model_executor.executor.ray_worker import END, RayWorker

KINDS = ("CPU", "GPU")
ALONE: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.2"}
"""A cluster of our own is for this machine only. Ray takes 127.0.0.1 for its outer address."""
COMMANDS, EVENTS = "commands", "events"
ACTOR = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={COMMANDS: 1, EVENTS: 1})(
    RayWorker
)
PLACEMENT_SECONDS = 60.0
"""How long to wait for a node with room: Ray itself waits for ever."""


class Place(NamedTuple):
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
        self.place: Place | None = None
        self.is_stopping = False
        self._killed = threading.Event()
        self._actor: Any = None
        self._thread = threading.Thread(target=self._listen, name=worker_id, daemon=True)
        self._thread.start()

    def submit(self, data: bytes) -> None:
        self._actor.put.options(concurrency_group=COMMANDS).remote(data)

    def stop(self) -> None:
        """It ends when it has done what it was given; nothing more is heard of it."""
        self.is_stopping = True
        self.submit(END)

    def kill(self) -> None:
        self._killed.set()
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)

    def join(self) -> None:
        self._thread.join()

    def _listen(self) -> None:
        """Everything that the actor tells, until it dies; then why."""
        decoder = msgspec.msgpack.Decoder(WorkerEvent)
        try:
            self._start()
            take = self._actor.take.options(concurrency_group=EVENTS)
            while not self._killed.is_set():
                for data in ray.get(take.remote()):
                    if data == END:
                        return
                    self._tell(decoder.decode(data))
            self._tell(WorkerDied("it was killed"))
        except HeliosError as error:
            self._tell(WorkerDied(str(error)))
        except Exception as error:  # Ray has many; whatever it is, nobody hears the actor any more
            self._tell(WorkerDied(f"{type(error).__name__}: {error}".splitlines()[0]))
        finally:
            self.kill()

    def _tell(self, event: WorkerEvent) -> None:
        if not self.is_stopping:
            self.inbox.put(self.worker_id, event)

    def _start(self) -> None:
        deadline = time.monotonic() + PLACEMENT_SECONDS
        while not self.group.wait(1):
            if self._killed.is_set() or time.monotonic() > deadline:
                raise HeliosError(f"no node has room for it: {describe(self.config)}")
        need = self.config.resources
        actor = ACTOR.options(
            num_cpus=need.num_cpus,
            num_gpus=gpus_of(self.config),
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, 0),
        )
        self._actor = actor.remote(msgspec.msgpack.encode(self.config))
        self.place = Place(*ray.get(self._actor.where.remote()))


class RayExecutor:
    """Workers in a Ray cluster: the one at `address`, or a new one on this machine.

    Each worker has a placement group of its own. When it dies its place is kept for the one that
    is started next with the same resources, so that nobody else takes the GPU in between.
    """

    def __init__(self, address: str | None = None) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="helios-ray-")
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # Without a working directory of its own Ray puts ours first on sys.path.
            ray.init(
                address=address or "local",
                runtime_env={"working_dir": self._scratch.name},
                log_to_driver=False,
                **(ALONE if address is None and sys.platform == "linux" else {}),
            )
        self._inbox = Inbox()
        self._numbers = itertools.count()
        self._handles: dict[str, Handle] = {}
        self._free: list[tuple[Resources, float, PlacementGroup]] = []

    def start_worker(self, config: WorkerConfig) -> str:
        worker_id = f"ray-{next(self._numbers)}"
        self._handles[worker_id] = Handle(worker_id, config, self._reserve(config), self._inbox)
        return worker_id

    def submit(self, worker_id: str, command: WorkerCommand) -> None:
        self._handles[worker_id].submit(msgspec.msgpack.encode(command))

    def poll(self, timeout: float) -> list[Received]:
        received = self._inbox.take(timeout)
        for worker_id, event in received:
            if isinstance(event, WorkerDied) and worker_id in self._handles:
                self._release(self._handles.pop(worker_id))
        return received

    def wake(self) -> None:
        self._inbox.wake()

    def where(self, worker_id: str) -> str:
        place = self._handles[worker_id].place
        return "no node yet" if place is None else f"node {place.node_id[:8]} process {place.pid}"

    def kill_worker(self, worker_id: str) -> None:
        if worker_id in self._handles:
            handle = self._handles[worker_id]
            handle.kill()
            # A process that is stopped, or a node out of reach, never says that it has ended.
            handle.is_stopping = True
            self._inbox.put(worker_id, WorkerDied("it was killed"))

    def stop_worker(self, worker_id: str) -> None:
        handle = self._handles.pop(worker_id)
        handle.stop()
        threading.Thread(target=self._reap, args=(handle,), name=f"stop {worker_id}").start()

    def shutdown(self) -> None:
        for handle in self._handles.values():
            handle.is_stopping = True
            handle.kill()
            remove_placement_group(handle.group)
        for handle in self._handles.values():
            handle.join()
        self._handles.clear()
        for _, _, group in self._free:
            remove_placement_group(group)
        if self._owns_ray:
            ray.shutdown()
        self._scratch.cleanup()

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
        """Keep a dead worker's place, unless it went with its node."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if handle.place is not None and handle.place.node_id in alive:
            config = handle.config
            self._free.append((config.resources, gpus_of(config), handle.group))
        else:
            remove_placement_group(handle.group)

    def _reap(self, handle: Handle) -> None:
        handle.join()
        remove_placement_group(handle.group)


def gpus_of(config: WorkerConfig) -> float:
    """GPUs, or the part of one, that a worker takes of its node."""
    if config.resources.num_gpus is not None:
        return config.resources.num_gpus
    return 0.0 if config.device == "cpu" else 1.0


def describe(config: WorkerConfig) -> str:
    """What a worker asks for, beside what the cluster has."""
    need = config.resources
    asked = f"got {need.num_cpus:g} CPUs, {gpus_of(config):g} GPUs, labels {need.labels}"
    have = {kind: amount for kind, amount in ray.cluster_resources().items() if kind in KINDS}
    return f"{asked}; expected at most what one node has free, of {have} in the cluster"
