"""Workers that are groups of processes, which share each forward: real processes over gloo."""

import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from helios_serve.engine.launch import launch
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.errors import DeviceError, HeliosError
from helios_serve.logger import logger
from helios_serve.messages import StepCursor
from helios_serve.model_executor.executor.local import LocalExecutor
from helios_serve.model_executor.executor.ray import RayExecutor
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.options.engine import EngineConfig
from helios_serve.options.workers import WorkerConfig, WorkerGroup
from tests.support.fp8 import needs_fp8
from tests.support.lora_files import write_lora
from tests.support.ray_cluster import RayCluster
from tests.support.service import Service, worker_config
from tests.support.videos import Case, finish, run_sessions

TOLERANCE = 1e-4


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    started = LocalExecutor()
    yield started
    started.shutdown()


def followers_of(pid: int) -> list[int]:
    """The processes that the worker process `pid` started, as the system knows them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:  # it ended meanwhile
            continue
        if b"worker.follower" in command and int(status.rpartition(")")[2].split()[1]) == pid:
            found.append(int(folder.name))
    return found


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, f"process {pid} does not end"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "quantization"),
    [
        ("base", None),
        ("mid", None),
        ("distilled", None),
        pytest.param("distilled", "fp8", marks=needs_fp8),
    ],
)
def test_latents_are_those_of_one_process(
    variant: str,
    quantization: Any,
    executor: LocalExecutor,
    checkpoints: dict[str, Path],
    latent_model: Any,
    tmp_path: Path,
) -> None:
    """Sessions in shared packs: guidance, a size that does not divide evenly, an adapter."""
    folder = checkpoints[variant]
    model = latent_model(folder, quantization=quantization)
    lora = write_lora(tmp_path / "adapter.safetensors", model.transformer)
    small = Case(variant, height=64, width=64, chunks=1).with_defaults()
    requests = [
        Case(variant, height=64, width=192, chunks=2).with_defaults().request("wide"),
        small.request("small"),
        small.request("adapted", lora=str(lora)),
    ]
    expected = run_sessions(model, requests)
    config = worker_config(folder, context_parallel=2, quantization=quantization)
    engine = EngineCore(executor, read_config(folder), EngineConfig(workers=(config,)))
    for request in requests:
        engine.add_request(request)
    got, failures = finish(engine)
    assert not failures
    errors = {name: float((got[name] - latents).abs().max()) for name, latents in expected.items()}
    print(errors)
    assert max(errors.values()) < (0.2 if quantization else TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "victim"), [("local", "leader"), ("local", "follower"), ("ray", "follower")]
)
def test_a_rank_that_is_killed_takes_its_worker_down_and_all_is_recovered(
    kind: str,
    victim: str,
    folder: Path,
    expected: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    executor: LocalExecutor | RayExecutor
    if kind == "local":
        executor = request.getfixturevalue("executor")
    else:
        cluster: RayCluster = request.getfixturevalue("ray_cluster")
        executor = RayExecutor(cluster.address)
        request.addfinalizer(executor.shutdown)
    service = Service(executor, folder, [worker_config(folder, context_parallel=2)])
    service.wait_ready(1)
    (worker_id,) = service.ready
    leader = service.pid(worker_id)
    assert leader is not None
    (follower,) = followers_of(leader)
    service.add("t2v", "i2v")
    service.wait(
        lambda: any(step.cursor == StepCursor(0, 2, 0) for step in service.latest), timeout=0.01
    )
    with caplog.at_level(logging.ERROR, logger.name):
        os.kill(leader if victim == "leader" else follower, signal.SIGKILL)
        noticed, resumed = service.time_to_resume(worker_id)
    print(f"{victim}: noticed after {noticed:.2f} s, resumed after {resumed:.2f} s")
    whose = "" if victim == "leader" else "rank 1 of 2: "
    reasons = [message for message in caplog.messages if "died" in message]
    assert reasons == [f"worker {worker_id} died: {whose}process killed by SIGKILL"]
    wait_gone(leader)
    wait_gone(follower)
    service.run()
    service.check(expected, TOLERANCE)


@pytest.mark.slow
def test_a_worker_that_is_stopped_ends_all_its_processes(
    executor: LocalExecutor, folder: Path
) -> None:
    service = Service(executor, folder, [worker_config(folder, context_parallel=2)])
    service.wait_ready(1)
    leader = service.pid(service.ready[0])
    assert leader is not None
    followers = followers_of(leader)
    assert len(followers) == 1
    executor.shutdown()
    wait_gone(followers[0])


@pytest.mark.slow
def test_weights_that_cannot_be_read_are_told_by_their_reason(
    executor: LocalExecutor, folder: Path, tmp_path: Path
) -> None:
    torn = shutil.copytree(folder, tmp_path / "torn")
    weights = torn / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    service = Service(executor, torn, [worker_config(torn, context_parallel=2)])
    with pytest.raises(HeliosError, match="started to encode: .* is damaged or truncated"):
        service.wait(lambda: False)


def refused(message: str, kind: Any = "local", **options: Any) -> None:
    group = WorkerGroup(WorkerConfig(device="cpu", **options))
    with pytest.raises(DeviceError, match=message):
        launch("nano", (group,), kind)


def test_what_cannot_be_shared_is_refused() -> None:
    for ranks in (3, 8, 0, -2):
        refused(
            f"got context parallel {ranks}, expected a divisor of the model's 4 attention heads",
            context_parallel=ranks,
        )
    refused(
        "got offload with context parallel 2, expected only one of them",
        context_parallel=2,
        offload=True,
    )
    refused(
        "got context parallel 2 with executor inline, expected executor local or ray",
        "inline",
        context_parallel=2,
    )


@pytest.mark.slow
def test_a_worker_without_steps_is_one_process(executor: LocalExecutor, folder: Path) -> None:
    roles = (("encode", "decode"), ("denoise",))
    configs = [worker_config(folder, roles=role, context_parallel=2) for role in roles]
    service = Service(executor, folder, configs)
    service.wait_ready(2)
    counts = [len(followers_of(executor.pid(worker_id))) for worker_id in sorted(service.ready)]
    assert counts == [0, 1]
