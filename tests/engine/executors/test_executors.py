"""Faults of workers in child processes and on Ray: none changes a video."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helios_serve.engine.loop.worker_handle import WorkerHandle
from helios_serve.messages import StepCursor
from helios_serve.model_executor.executor.local import LocalExecutor
from helios_serve.model_executor.executor.ray import RayExecutor
from helios_serve.model_executor.worker.tensors import as_tensor
from tests.support.models import load_model
from tests.support.ray_cluster import RayCluster, half_a_gpu
from tests.support.service import CASES, PATIENCE, Service, shutting_down, worker_config
from tests.support.tries import tries
from tests.support.videos import Case, run_sessions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["local", "ray"])
def address(request: pytest.FixtureRequest) -> str | None:
    """The address of the Ray cluster; None for child processes."""
    if request.param == "local":
        return None
    cluster: RayCluster = request.getfixturevalue("ray_cluster")
    return cluster.address


def start_executor(address: str | None) -> LocalExecutor | RayExecutor:
    return LocalExecutor() if address is None else RayExecutor(address)


@pytest.fixture(scope="module")
def running(address: str | None, folder: Path) -> Iterator[Service]:
    with shutting_down(start_executor(address)) as executor:
        yield Service(executor, folder, [worker_config(folder, resources=half_a_gpu())] * 2)


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    """Yield two ready workers, and assert at the end that all blocks are free."""
    running.wait_ready(2)
    running.forget()
    yield running
    running.engine.scheduler.check_integrity()
    assert running.engine.scheduler.stats().used_blocks == 0


def until_step(service: Service, cursor: StepCursor) -> str:
    """Run until some session has taken the step; returns its worker."""
    service.wait(lambda: any(step.cursor == cursor for step in service.latest), timeout=0.01)
    taken = next(step for step in service.latest if step.cursor == cursor)
    worker_id = service.engine.scheduler.sessions[taken.request_id].worker_id
    assert worker_id is not None
    return worker_id


def first_step(service: Service) -> str:
    service.wait(lambda: bool(service.busy), timeout=0)
    return service.busy[0]


def mid_stage(service: Service) -> str:
    return until_step(service, StepCursor(0, 1, 0))


def chunk_end(service: Service) -> str:
    return until_step(service, StepCursor(0, 2, 1))


def encoding(service: Service) -> str:
    return until_assigned(service, lambda worker: "encode" in worker.device.tasks)


def decoding(service: Service) -> str:
    return until_assigned(service, lambda worker: "decode" in worker.device.tasks)


def until_assigned(service: Service, has_task: Callable[[WorkerHandle], bool]) -> str:
    """Run until some worker has a task; returns the worker."""
    workers = service.engine.worker_pool.workers
    service.wait(lambda: any(map(has_task, workers.values())), timeout=0)
    return next(name for name, worker in workers.items() if has_task(worker))


@pytest.mark.parametrize("moment", [first_step, mid_stage, chunk_end, encoding, decoding])
def test_a_kill_loses_and_repeats_nothing(
    service: Service, moment: Callable[[Service], str], expected: dict[str, Tensor]
) -> None:
    service.add("t2v", "i2v", "v2v")
    worker_id = moment(service)
    service.kill(worker_id)
    noticed, resumed = service.time_to_resume(worker_id)
    print(f"{moment.__name__}: noticed after {noticed:.3f} s, resumed after {resumed:.3f} s")
    service.run()
    service.check(expected)


def test_replacements_that_die_before_they_are_ready(
    service: Service, expected: dict[str, Tensor]
) -> None:
    """All workers die, and the first replacement of each as well."""
    service.add("t2v", "i2v", "v2v")
    mid_stage(service)
    for _ in range(2):
        old = service.workers
        for worker_id in old:
            service.kill(worker_id)
        started = time.monotonic()
        service.wait(lambda: not service.workers & old)  # noqa: B023
        noticed = time.monotonic() - started
        service.wait(lambda: all(map(service.pid, service.workers)))
        assert not service.ready
    steps = service.steps
    service.wait(lambda: service.steps > steps)
    resumed = time.monotonic() - started
    print(f"replacements: noticed after {noticed:.3f} s, resumed after {resumed:.3f} s")
    service.run()
    service.check(expected)


def test_a_reference_of_20_megabytes_gets_through(service: Service, folder: Path) -> None:
    case = Case("distilled", "v2v", height=128, width=128, chunks=1, video_frames=420)
    request = case.with_defaults().request("large")
    assert request.video is not None
    assert len(request.video.data) > 20e6
    service.engine.add_request(request)
    service.run()
    latents = run_sessions(load_model(str(folder)), [request], batch_invariant=True)
    (chunk,) = service.chunks["large"]
    assert torch.equal(as_tensor(chunk.latents), latents["large"])


def test_random_kills_lose_and_repeat_nothing(
    service: Service, expected: dict[str, Tensor]
) -> None:
    """Seeded kills of busy workers while eight sessions run on two of them.

    A chunk is finished between any two kills, because a session that runs at every death would
    fail.
    """
    rng = random.Random(0)
    noticed = []

    def flood(until: Callable[[], bool]) -> bool:
        service.add(*rng.choices(tuple(CASES), k=8 - len(service.unfinished)))
        return until()

    for _ in range(tries(5, 10)):
        chunks = service.num_chunks
        service.wait(lambda: flood(lambda: service.num_chunks > chunks))  # noqa: B023
        goal = service.steps + rng.randint(1, 6)
        service.wait(lambda: flood(lambda: service.steps >= goal and bool(service.busy)))  # noqa: B023
        victim = rng.choice(service.busy)
        service.kill(victim)
        started = time.monotonic()
        service.wait(lambda: victim not in service.workers)  # noqa: B023
        noticed.append(time.monotonic() - started)
    service.run()
    service.check(expected)
    print(f"{len(noticed)} kills, noticed after at most {max(noticed):.3f} s")


def test_a_worker_that_hangs_is_replaced_after_its_deadline(
    address: str | None, folder: Path, expected: dict[str, Tensor]
) -> None:
    with shutting_down(start_executor(address)) as executor:
        config = worker_config(folder, resources=half_a_gpu())
        service = Service(executor, folder, [config], step_deadline=3.0)
        service.add("t2v")
        service.wait(lambda: service.steps >= 8 and bool(service.busy))
        (worker_id,) = service.busy
        worker = service.engine.worker_pool.workers[worker_id]
        busy_since = min([worker.busy_since, *(task.assigned_at for task in worker.tasks)])
        service.kill(worker_id, signal.SIGSTOP)
        busy_for = time.monotonic() - busy_since
        noticed, resumed = service.time_to_resume(worker_id)
        assert 3.0 < busy_for + noticed < 30
        print(f"hung: noticed after {noticed:.3f} s, resumed after {resumed:.3f} s")
        service.run()
        service.check(expected)


def test_workers_end_with_the_process_that_started_them(
    address: str | None, tmp_path: Path
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), address or ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert is_alive(pid)
        finally:
            parent.kill()
    deadline = time.monotonic() + PATIENCE
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


PARENT = """
import re
import sys
import time

from helios_serve.options.workers import WorkerConfig
from helios_serve.model_executor.executor.local import LocalExecutor
from helios_serve.model_executor.executor.ray import RayExecutor

if __name__ == "__main__":
    address = sys.argv[1]
    executor = RayExecutor(address) if address else LocalExecutor()
    worker_id = executor.start_worker(WorkerConfig(device="cpu"))
    print(executor.poll(60), file=sys.stderr)
    print(re.search("process ([0-9]+)", executor.where(worker_id))[1], flush=True)
    time.sleep(1000)
"""
