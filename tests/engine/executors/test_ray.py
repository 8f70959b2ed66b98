"""Workers as Ray actors on two nodes."""

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from torch import Tensor

from helios_serve.errors import HeliosError
from helios_serve.model_executor.executor import ray as ray_executor
from helios_serve.model_executor.executor.ray import RayExecutor
from helios_serve.options.workers import ROLES, Resources
from tests.support.ray_cluster import ZONES, RayCluster, half_a_gpu
from tests.support.service import Service, shutting_down, worker_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def service(ray_cluster: RayCluster, folder: Path) -> Iterator[Service]:
    """One worker in each zone, with a driver whose working directory is the repository."""
    with chdir(ROOT):
        executor = RayExecutor(ray_cluster.address)
    workers = [worker_config(folder, resources=half_a_gpu(zone=zone)) for zone in ZONES]
    with shutting_down(executor):
        running = Service(executor, folder, workers)
        running.wait_ready(2)
        yield running
    assert not ray.is_initialized()


@pytest.fixture
def beside(service: Service) -> Iterator[RayExecutor]:
    """A second executor on the same connection. At its end, its resources are free again."""
    with shutting_down(RayExecutor()) as executor:
        yield executor
    wait_for_only(service)


def wait_for_only(service: Service) -> None:
    """Wait until only this service's workers hold resources of the cluster."""
    own = len(service.workers)
    service.wait(
        lambda: taken() == (2 * own, 0.5 * own) and [*groups().values()] == ["CREATED"] * own
    )


def groups() -> dict[str, str]:
    """Return the states of the placement groups that hold or await resources."""
    states = {name: group["state"] for name, group in placement_group_table().items()}
    return {name: state for name, state in states.items() if state != "REMOVED"}


def taken() -> tuple[float, float]:
    """Return the CPUs and GPUs of the cluster that are in use."""
    have, free = ray.cluster_resources(), ray.available_resources()
    cpus, gpus = (round(have[kind] - free.get(kind, 0), 3) for kind in ("CPU", "GPU"))
    return cpus, gpus


def zones(service: Service, cluster: RayCluster) -> dict[str, str]:
    """Return the workers by the zone of their node, which `where` names."""
    by_zone = {}
    for worker_id in service.ready:
        (node,) = re.findall(r"node (\w{8}) process \d+", service.executor.where(worker_id))
        by_zone[cluster.zone_of(node)] = worker_id
    return by_zone


def test_actors_on_two_nodes_give_the_latents_of_this_process(
    service: Service, ray_cluster: RayCluster, expected: dict[str, Tensor]
) -> None:
    labels = {
        handle.config.resources.labels["zone"]: name
        for name, handle in service.engine.worker_pool.workers.items()
    }
    assert zones(service, ray_cluster) == labels
    assert labels.keys() == set(ZONES)
    service.add("t2v", "i2v", "v2v")
    service.run()
    service.check(expected)


def test_top_level_folders_of_the_repository_are_no_packages_in_an_actor(service: Service) -> None:
    assert service.ready

    def found() -> dict[str, str]:
        names = ("helios_serve", "kernels", "model_executor")
        specs = {name: importlib.util.find_spec(name) for name in names}
        return {name: str(spec.origin) for name, spec in specs.items() if spec is not None}

    origins = ray.get(ray.remote(found).remote())
    assert origins.pop("helios_serve")
    assert not any(origin.startswith(str(ROOT)) for origin in origins.values())


def test_each_role_in_an_actor_of_its_own(
    beside: RayExecutor, folder: Path, expected: dict[str, Tensor]
) -> None:
    workers = [
        worker_config(folder, roles=(role,), resources=Resources(num_cpus=2)) for role in ROLES
    ]
    service = Service(beside, folder, workers)
    service.add("t2v", "i2v", "v2v")
    service.run()
    service.check(expected)


def test_resources_that_no_node_has_are_told(
    beside: RayExecutor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "PLACEMENT_SECONDS", 0.2)
    need = Resources(num_cpus=2, num_gpus=0.5, labels={"zone": "c"})
    service = Service(beside, folder, [worker_config(folder, resources=need)])
    (worker_id,) = service.workers
    assert beside.where(worker_id) == "no node yet"
    message = (
        "no worker can be started to encode: no node has the resources: got 2 CPUs, 0.5 GPUs, "
        "labels {'zone': 'c'}; expected at most what one node has free, of {"
    )
    with pytest.raises(HeliosError, match=re.escape(message)):
        service.wait(lambda: False)


def test_a_checkpoint_that_cannot_be_loaded_is_told_by_its_reason(
    beside: RayExecutor, folder: Path
) -> None:
    service = Service(beside, folder, [worker_config(Path("nano-max"))])
    with pytest.raises(HeliosError, match="no worker can be started to encode: got model 'nano-m"):
        service.wait(lambda: False)


def test_workers_come_and_go_at_run_time(service: Service, expected: dict[str, Tensor]) -> None:
    worker_id = service.engine.worker_pool.start(
        worker_config(service.folder, resources=half_a_gpu(zone="a"))
    )
    service.wait_ready(3)
    pid = service.pid(worker_id)
    service.add("t2v", "t2v", "t2v", "v2v")
    service.wait(lambda: worker_id in service.busy)
    service.engine.worker_pool.drain(worker_id)
    service.run()
    service.wait(lambda: worker_id not in service.workers)
    service.wait(lambda: not os.path.exists(f"/proc/{pid}"))
    wait_for_only(service)
    service.check(expected)


def test_a_worker_that_never_started_can_be_drained(
    service: Service, expected: dict[str, Tensor]
) -> None:
    resources = Resources(num_cpus=2, labels={"zone": "c"})
    worker_id = service.engine.worker_pool.start(worker_config(service.folder, resources=resources))
    service.engine.worker_pool.drain(worker_id)
    service.wait(lambda: worker_id not in service.workers)
    wait_for_only(service)
    service.add("t2v")
    service.run()
    service.check(expected)


def test_a_replacement_takes_the_place_of_the_dead(service: Service) -> None:
    before = groups()
    (worker_id, _) = service.workers
    service.kill(worker_id)
    service.wait(lambda: worker_id not in service.workers)
    service.wait_ready(2)
    assert groups() == before
    wait_for_only(service)


def test_a_killed_node_gives_its_sessions_to_the_other(
    service: Service, beside: RayExecutor, ray_cluster: RayCluster, expected: dict[str, Tensor]
) -> None:
    """A worker without a zone is replaced on the other node; one of the zone when it is back."""
    filler = placement_group([{"GPU": 0.5}], bundle_label_selector=[{"zone": "a"}])
    assert filler.wait(10)
    other = Service(beside, service.folder, [worker_config(service.folder, resources=half_a_gpu())])
    other.wait_ready(1)
    remove_placement_group(filler)
    assert zones(other, ray_cluster).keys() == {"b"}
    (worker_id,) = other.workers
    other.add("t2v", "i2v", "v2v")
    other.wait(lambda: bool(other.chunks))
    ray_cluster.kill_node("b")
    killed = time.monotonic()
    other.wait(lambda: worker_id not in other.workers, timeout=0.01)
    noticed = time.monotonic() - killed
    assert {node["Alive"] for node in ray.nodes()} == {True}, "Ray knew, and need not have"
    steps = other.steps
    other.wait(lambda: other.steps > steps)
    resumed = time.monotonic() - killed
    print(f"node: noticed after {noticed:.3f} s, resumed after {resumed:.3f} s")
    assert zones(other, ray_cluster).keys() == {"a"}
    other.run()
    other.check(expected)
    service.wait(lambda: len(service.ready) == 1)
    ray_cluster.add_node("b")
    service.wait_ready(2)
    assert zones(service, ray_cluster).keys() == set(ZONES)


def test_a_cluster_of_its_own_is_on_the_loopback(tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


ALONE = """
import importlib.util

import ray

from helios_serve.options.workers import WorkerConfig
from helios_serve.messages import WorkerReady
from helios_serve.model_executor.executor.ray import RayExecutor

first = RayExecutor()
executor = RayExecutor()
first.shutdown()
worker_id = executor.start_worker(WorkerConfig(device="cpu"))
(received,) = executor.poll(60)
assert received.worker_id == worker_id
assert isinstance(received.event, WorkerReady), received
assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.2"]
found = ray.remote(lambda: importlib.util.find_spec("model_executor"))
assert ray.get(found.remote()) is None
executor.shutdown()
assert not ray.is_initialized()
"""


@pytest.mark.parametrize("moment", ["placed", "busy"])
def test_shutdown_leaves_nothing_behind(service: Service, moment: str) -> None:
    workers = [worker_config(service.folder, resources=Resources(num_cpus=2))] * 2
    with shutting_down(RayExecutor()) as executor:
        other = Service(executor, service.folder, workers)
        if moment == "busy":
            other.wait_ready(1)
            other.add("t2v", "t2v")
            other.wait(lambda: bool(other.busy), timeout=0)
    wait_for_only(service)


def test_a_place_that_is_being_made_is_freed_when_it_is_there(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray may leak the resources of a group that is removed while it is being placed."""
    told: list[str] = []
    wait = PlacementGroup.wait

    def wait_longer(group: PlacementGroup, seconds: int) -> bool:
        time.sleep(0.2)
        told.append("there")
        is_there: bool = wait(group, seconds)
        return is_there

    def remove(group: PlacementGroup) -> None:
        told.append("freed")
        remove_placement_group(group)

    monkeypatch.setattr(PlacementGroup, "wait", wait_longer)
    monkeypatch.setattr(ray_executor, "remove_placement_group", remove)
    with shutting_down(RayExecutor()) as executor:
        executor.start_worker(worker_config(service.folder, resources=Resources(num_cpus=2)))
    assert told == ["there", "freed"]
    wait_for_only(service)
