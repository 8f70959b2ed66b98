"""Workers as Ray actors on two nodes."""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import (
    placement_group_table,
)
from ray_cluster import ZONES, RayCluster, half_a_gpu
from service import Service, worker_config
from torch import Tensor

from helios_serve.config import Resources
from helios_serve.errors import HeliosError
from helios_serve.model_executor.executor import ray as ray_executor
from helios_serve.model_executor.executor.ray import RayExecutor

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def service(ray_cluster: RayCluster, folder: Path) -> Iterator[Service]:
    """One worker in each zone, of a driver that stands in the repository."""
    with chdir(ROOT):
        executor = RayExecutor(ray_cluster.address)
    workers = [worker_config(folder, resources=half_a_gpu(zone=zone)) for zone in ZONES]
    running = Service(executor, folder, workers)
    running.wait_ready(2)
    yield running
    executor.shutdown()
    assert not ray.is_initialized()


@pytest.fixture
def beside(service: Service) -> Iterator[RayExecutor]:
    """A second executor on the same connection; whatever it took is given back at its end."""
    executor = RayExecutor()
    yield executor
    executor.shutdown()
    wait_for_only(service)


def wait_for_only(service: Service) -> None:
    """Nothing of the cluster is taken but by this service's workers."""
    own = len(service.workers)
    service.wait(lambda: taken() == (2 * own, 0.5 * own))
    assert list(groups().values()) == ["CREATED"] * own


def groups() -> dict[str, str]:
    """States of the placement groups that hold something, or wait to."""
    states = {name: group["state"] for name, group in placement_group_table().items()}
    return {name: state for name, state in states.items() if state != "REMOVED"}


def taken() -> tuple[float, float]:
    """CPUs and GPUs of the cluster that somebody holds."""
    have, free = ray.cluster_resources(), ray.available_resources()
    cpus, gpus = (round(have[kind] - free.get(kind, 0), 3) for kind in ("CPU", "GPU"))
    return cpus, gpus


def zones(service: Service, cluster: RayCluster) -> dict[str, str]:
    """Workers by the zone of the node that they are on, which `where` names."""
    by_zone = {}
    for worker_id in service.ready:
        (node,) = re.findall(r"node (\w{8}) process \d+", service.executor.where(worker_id))
        by_zone[cluster.zone_of(node)] = worker_id
    return by_zone


def test_actors_on_two_nodes_give_the_latents_of_this_process(
    service: Service, ray_cluster: RayCluster, expected: dict[str, Tensor]
) -> None:
    labels = {
        watch.config.resources.labels["zone"]: name
        for name, watch in service.engine.crew.workers.items()
    }
    assert zones(service, ray_cluster) == labels
    assert labels.keys() == set(ZONES)
    service.add("t2v", "i2v", "v2v")
    service.run()
    service.check(expected)


def test_top_level_folders_of_the_repository_are_no_packages_in_an_actor(service: Service) -> None:
    assert service.ready

    @ray.remote
    def found() -> dict[str, str]:
        names = ("helios_serve", "kernels", "model_executor")
        specs = {name: importlib.util.find_spec(name) for name in names}
        return {name: str(spec.origin) for name, spec in specs.items() if spec is not None}

    origins = ray.get(found.remote())
    assert origins.pop("helios_serve")
    assert not any(origin.startswith(str(ROOT)) for origin in origins.values())


def test_resources_that_no_node_has_are_told(
    beside: RayExecutor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "PLACEMENT_SECONDS", 0.2)
    need = Resources(num_cpus=2, num_gpus=0.5, labels={"zone": "c"})
    service = Service(beside, folder, [worker_config(folder, resources=need)])
    (worker_id,) = service.workers
    assert beside.where(worker_id) == "no node yet"
    message = (
        "no worker can be started to encode: no node has room for it: got 2 CPUs, 0.5 GPUs, "
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
    worker_id = service.engine.add_worker(
        worker_config(service.folder, resources=half_a_gpu(zone="a"))
    )
    service.wait_ready(3)
    pid = service.pid(worker_id)
    service.add("t2v", "t2v", "t2v", "v2v")
    service.wait(lambda: worker_id in service.busy)
    service.engine.drain_worker(worker_id)
    service.run()
    service.wait(lambda: worker_id not in service.workers)
    service.wait(lambda: not os.path.exists(f"/proc/{pid}"))
    wait_for_only(service)
    service.check(expected)


def test_a_worker_that_never_started_can_be_drained(
    service: Service, expected: dict[str, Tensor]
) -> None:
    resources = Resources(num_cpus=2, labels={"zone": "c"})
    worker_id = service.engine.add_worker(worker_config(service.folder, resources=resources))
    service.engine.drain_worker(worker_id)
    service.wait(lambda: worker_id not in service.workers)
    wait_for_only(service)
    service.add("t2v")
    service.run()
    service.check(expected)
