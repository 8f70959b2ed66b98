"""An engine with workers in other processes, which records the results of its requests."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import ChunkReady, RequestFailed, RequestFinished, StepTaken
from helios_serve.model_executor.executor.local import LocalExecutor
from helios_serve.model_executor.executor.ray import RayExecutor
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.worker.tensors import as_tensor
from helios_serve.options.engine import EngineConfig
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import WorkerConfig
from tests.support.videos import Case

CASES = {
    "t2v": Case("distilled", height=64, width=64, chunks=6, seed=1).with_defaults(),
    "i2v": Case("distilled", "i2v", height=64, width=128, chunks=2, seed=2).with_defaults(),
    "v2v": Case("distilled", "v2v", height=64, width=64, chunks=2, seed=3).with_defaults(),
}
Executed = TypeVar("Executed", bound=LocalExecutor | RayExecutor)

PATIENCE = 120.0
"""Timeout of waits, in seconds."""


def worker_config(folder: Path, **fields: Any) -> WorkerConfig:
    return WorkerConfig(
        model=str(folder), device="cpu", history_blocks=2000, batch_invariant=True, **fields
    )


@contextmanager
def shutting_down(executor: Executed) -> Iterator[Executed]:
    """An executor whose workers end however the test ends: on Ray they would take others' room."""
    try:
        yield executor
    finally:
        executor.shutdown()


class Service:
    """An engine, with the chunks and the failures of its requests."""

    def __init__(
        self,
        executor: LocalExecutor | RayExecutor,
        folder: Path,
        workers: Iterable[WorkerConfig],
        **config: float,
    ) -> None:
        self.executor = executor
        self.folder = folder
        # Small batches, so that work is spread over workers and steps.
        scheduling = SchedulingConfig(max_num_seqs=2)
        self.engine = EngineCore(
            executor,
            read_config(folder),
            msgspec.structs.replace(
                EngineConfig(workers=tuple(workers), scheduling=scheduling), **config
            ),
        )
        self.names: dict[str, str] = {}
        """The case of each request."""
        self.chunks: dict[str, list[ChunkReady]] = {}
        self.failures: dict[str, str] = {}
        self.unfinished: set[str] = set()
        self.steps = 0
        self.latest: list[StepTaken] = []
        """The steps that the last call of `step` reported."""

    def __str__(self) -> str:
        """Return the state of all sessions and workers, for the message of a failed test."""
        sessions = [
            f"{item.session_id}: {item.status.name} on {item.worker_id} at {item.cursor}, "
            f"{item.in_flight} in flight, ready {item.is_ready}, suspect {item.is_suspect}"
            for item in self.engine.scheduler.sessions.values()
        ]
        workers = [
            f"{report}, {len(self.engine.worker_pool.workers[report.worker_id].plans)} plans"
            for report in self.engine.worker_pool.reports()
        ]
        counts = f"{self.engine.stats()}, {self.num_chunks} chunks, {self.steps} steps"
        return "\n".join(["", *sessions, *workers, counts])

    def forget(self) -> None:
        """Forget all requests, and keep the workers."""
        for request_id in self.names:
            self.engine.abort(request_id)
        for told in (self.names, self.chunks, self.failures, self.unfinished):
            told.clear()
        self.steps = 0

    def add(self, *cases: str) -> list[str]:
        """Add a request for each of the cases. Returns their ids."""
        added = []
        for case in cases:
            request_id = f"{case}-{len(self.names)}"
            self.names[request_id] = case
            self.engine.add_request(CASES[case].request(request_id))
            added.append(request_id)
        self.unfinished.update(added)
        return added

    def step(self, timeout: float = 0.1) -> None:
        events = self.engine.step(timeout)
        self.latest = [event for event in events if isinstance(event, StepTaken)]
        self.steps += len(self.latest)
        for event in events:
            if isinstance(event, ChunkReady):
                self.chunks.setdefault(event.request_id, []).append(event)
            elif isinstance(event, RequestFinished):
                self.unfinished.discard(event.request_id)
            elif isinstance(event, RequestFailed):
                self.unfinished.discard(event.request_id)
                self.failures[event.request_id] = event.message
        self.engine.scheduler.check_integrity()

    def wait(self, until: Callable[[], bool], timeout: float = 0.1) -> None:
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < deadline, f"timed out: {self}"
            self.step(timeout)

    def run(self) -> None:
        """Run until all requests have ended and the workers have freed their blocks."""
        self.wait(lambda: not self.engine.has_unfinished)
        self.wait(lambda: self.engine.scheduler.stats().used_blocks == 0)

    def wait_ready(self, count: int) -> None:
        self.wait(lambda: len(self.ready) >= count)

    @property
    def num_chunks(self) -> int:
        """The number of delivered chunks."""
        return sum(map(len, self.chunks.values()))

    @property
    def workers(self) -> set[str]:
        return set(self.engine.worker_pool.workers)

    @property
    def ready(self) -> list[str]:
        return [name for name, handle in self.engine.worker_pool.workers.items() if handle.is_ready]

    @property
    def busy(self) -> list[str]:
        """Workers with plans in flight."""
        return [name for name, handle in self.engine.worker_pool.workers.items() if handle.plans]

    def pid(self, worker_id: str) -> int | None:
        """Return the worker's process id; None while it has no process."""
        if isinstance(self.executor, LocalExecutor):
            return self.executor.pid(worker_id)
        place = self.executor.placement(worker_id)
        return place and place.pid

    def kill(self, worker_id: str, number: signal.Signals = signal.SIGKILL) -> None:
        pid = self.pid(worker_id)
        assert pid is not None
        os.kill(pid, number)

    def time_to_resume(self, worker_id: str) -> tuple[float, float]:
        """Return the seconds until a death is noticed, and until one of its sessions resumes."""
        started = time.monotonic()
        sessions = self.engine.scheduler.sessions.values()
        victims = {item.session_id for item in sessions if item.worker_id in (worker_id, None)}
        self.wait(lambda: worker_id not in self.workers, timeout=0.01)
        noticed = time.monotonic() - started
        self.wait(lambda: any(step.request_id in victims for step in self.latest), timeout=0.01)
        return noticed, time.monotonic() - started

    def check(self, expected: dict[str, Tensor], tolerance: float = 0) -> None:
        """Assert that each request has each chunk once, in order, with the expected latents."""
        assert not self.failures, self.failures
        for request_id, case in self.names.items():
            own = self.chunks[request_id]
            assert [chunk.chunk for chunk in own] == list(range(CASES[case].chunks))
            assert all(chunk.frames and chunk.frames.count == 33 for chunk in own)
            got = torch.cat([as_tensor(chunk.latents) for chunk in own], dim=2)
            assert (got - expected[case]).abs().max() <= tolerance, request_id
        stats = self.engine.stats()
        assert not stats.encoding + stats.decoding
        assert self.engine.scheduler.stats().used_text_rows == 0
