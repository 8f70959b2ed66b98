"""Worker processes that are killed, stopped and refused, with work in flight."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from models import load_model
from torch import Tensor
from videos import Case, run_sessions

from helios_serve.config import EngineConfig, SchedulingConfig, WorkerConfig
from helios_serve.engine.core import EngineCore
from helios_serve.engine.events import ChunkReady, EngineEvent, RequestFailed, StepTaken
from helios_serve.errors import HeliosError
from helios_serve.model_executor.executor.local import LocalExecutor
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.worker.tensors import as_tensor

CASES = {
    "t2v": Case("distilled", height=64, width=64, chunks=6, seed=1).with_defaults(),
    "i2v": Case("distilled", "i2v", height=64, width=128, chunks=2, seed=2).with_defaults(),
    "v2v": Case("distilled", "v2v", height=64, width=64, chunks=2, seed=3).with_defaults(),
}


class Service:
    """An engine with local workers, and what came of its requests."""

    def __init__(self, folder: Path, *, num_workers: int, **config: float) -> None:
        worker = WorkerConfig(
            model=str(folder), device="cpu", history_blocks=2000, batch_invariant=True
        )
        self.executor = LocalExecutor()
        # Small batches, so that work is spread over workers and steps.
        scheduling = SchedulingConfig(max_num_seqs=2)
        self.engine = EngineCore(
            self.executor,
            read_config(folder),
            EngineConfig(workers=(worker,) * num_workers, scheduling=scheduling, **config),
        )
        self.chunks: dict[str, list[ChunkReady]] = {}
        self.failures: dict[str, str] = {}
        self.steps = 0

    def step(self) -> list[EngineEvent]:
        events = self.engine.step()
        for event in events:
            if isinstance(event, ChunkReady):
                self.chunks.setdefault(event.request_id, []).append(event)
            elif isinstance(event, RequestFailed):
                self.failures[event.request_id] = event.message
            elif isinstance(event, StepTaken):
                self.steps += 1
        self.engine.scheduler.check_integrity()
        return events

    def run(self, until: Callable[[], bool] = lambda: False, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while self.engine.has_unfinished and not until():
            assert time.monotonic() < deadline, "the engine does not come to an end"
            self.step()

    def wait_ready(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while sum(watch.is_ready for watch in self.engine.crew.workers.values()) < count:
            assert time.monotonic() < deadline, "workers do not start"
            self.step()

    def busy_workers(self) -> list[str]:
        return [name for name, watch in self.engine.crew.workers.items() if watch.plans]

    def kill_one(self, rng: random.Random, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.executor.pid(rng.choice(self.busy_workers())), number)

    def check(self, expected: dict[str, Tensor], names: dict[str, str]) -> None:
        """Every request has each of its chunks once, in order, with the undisturbed latents."""
        assert not self.failures
        for request_id, case in names.items():
            own = self.chunks[request_id]
            assert [chunk.chunk for chunk in own] == list(range(CASES[case].chunks))
            assert all(chunk.frames and chunk.frames.count == 33 for chunk in own)
            got = torch.cat([as_tensor(chunk.latents) for chunk in own], dim=2)
            assert torch.equal(got, expected[case]), request_id


@pytest.fixture(scope="module")
def folder(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["distilled"]


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Tensor]:
    """The undisturbed latents of every case."""
    model = load_model(str(folder))
    requests = [case.request(name) for name, case in CASES.items()]
    return run_sessions(model, requests, batch_invariant=True)


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    running = Service(folder, num_workers=2)
    yield running
    running.executor.shutdown()


def test_worker_processes_give_the_latents_of_this_one(
    service: Service, expected: dict[str, Tensor]
) -> None:
    for name, case in CASES.items():
        service.engine.add_request(case.request(name))
    service.run()
    service.check(expected, {name: name for name in CASES})
    service.step()
    assert service.engine.scheduler.stats().used_blocks == 0


@pytest.mark.slow
def test_random_kills_lose_and_repeat_nothing(
    service: Service, expected: dict[str, Tensor]
) -> None:
    """Ten seeded kills of busy workers while eight sessions run on two of them."""
    rng = random.Random(0)
    names = {f"{case}-{index}": case for index in range(3) for case in CASES}
    names.pop("t2v-2")
    service.wait_ready(2)
    for request_id, case in names.items():
        service.engine.add_request(CASES[case].request(request_id))
    resumed = []
    for _ in range(10):
        goal = service.steps + rng.randint(1, 15)
        service.run(until=lambda: service.steps >= goal and bool(service.busy_workers()))  # noqa: B023
        before = set(service.engine.crew.workers)
        service.kill_one(rng)
        started = time.monotonic()
        service.run(until=lambda: set(service.engine.crew.workers) != before)  # noqa: B023
        resumed.append(time.monotonic() - started)
    service.run()
    service.check(expected, names)
    print(f"{len(resumed)} kills, noticed after at most {max(resumed):.3f} s")
    assert len(resumed) == 10


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced_after_its_deadline(
    folder: Path, expected: dict[str, Tensor]
) -> None:
    service = Service(folder, num_workers=1, step_deadline=3.0)
    service.wait_ready(1)
    service.engine.add_request(CASES["t2v"].request("t2v"))
    service.run(until=lambda: service.steps >= 8 and bool(service.busy_workers()))
    service.kill_one(random.Random(0), signal.SIGSTOP)
    stopped = time.monotonic()
    workers = set(service.engine.crew.workers)
    service.run(until=lambda: set(service.engine.crew.workers) != workers)
    assert 2.5 < time.monotonic() - stopped < 10
    service.run()
    service.check(expected, {"t2v": "t2v"})
    service.executor.shutdown()


def test_a_checkpoint_that_cannot_be_loaded_is_told_by_its_reason(folder: Path) -> None:
    executor = LocalExecutor()
    workers = (WorkerConfig(model="nano-max", device="cpu"),)
    engine = EngineCore(executor, read_config(folder), EngineConfig(workers=workers))
    with pytest.raises(HeliosError, match="no worker can be started to encode: got model 'nano-m"):
        run_forever(engine)
    executor.shutdown()


def run_forever(engine: EngineCore) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        engine.step()
