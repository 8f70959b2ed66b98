"""Phases, positions and remaining times of requests, on a worker in virtual time."""

import itertools

import pytest

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import ChunkReady
from helios_serve.engine.requests.progress import measured_pace, progress_of
from helios_serve.messages import (
    ChunkDecoded,
    ChunkResult,
    DecodeTask,
    EncodeTask,
    InputsEncoded,
    RunnerOutput,
    SchedulerOutput,
    StepsDone,
    TensorData,
    WorkerCommand,
    WorkerEvent,
    WorkerReady,
)
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.options.engine import EngineConfig
from helios_serve.options.workers import WorkerConfig
from tests.support.scheduling import CONFIG, SESSION_BLOCKS, Past, make_request, read

ENCODE, STEP, DECODE = 0.5, 0.25, 4.0
"""Seconds of an encode task, of a step of one session and of a decode task."""
LATENTS = TensorData(b"", (), "float32")
ENOUGH_TIME = 1e6


class TimedWorker:
    """An executor of one worker, which does one command of each kind at a time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.core: EngineCore | None = None
        self.free_at: dict[type[WorkerCommand], float] = {}
        self.ends: list[tuple[float, int, WorkerEvent]] = [
            (0.0, 0, WorkerReady(SESSION_BLOCKS * 16, 10_000))
        ]
        self._tie = itertools.count(1)

    def start_worker(self, config: WorkerConfig) -> str:  # noqa: ARG002
        return "worker"

    def submit(self, worker_id: str, command: WorkerCommand) -> None:  # noqa: ARG002
        seconds, event = self._do(command)
        start = max(self.now, self.free_at.get(type(command), 0.0))
        self.free_at[type(command)] = start + seconds
        self.ends.append((start + seconds, next(self._tie), event))

    def poll(self, timeout: float) -> list[Received]:  # noqa: ARG002
        if not self.ends:
            return []
        first = min(self.ends, key=lambda item: item[:2])
        self.ends.remove(first)
        self.now = first[0]
        return [Received("worker", first[2])]

    def wake(self) -> None:
        raise AssertionError("nothing waits here")

    def where(self, worker_id: str) -> str:
        return worker_id

    def kill_worker(self, worker_id: str) -> None:
        raise AssertionError(f"{worker_id} is not late")

    def stop_worker(self, worker_id: str) -> None:
        raise AssertionError(f"{worker_id} does not drain")

    def shutdown(self) -> None:
        pass

    def _do(self, command: WorkerCommand) -> tuple[float, WorkerEvent]:
        match command:
            case EncodeTask():
                prompts = tuple(map(read, command.prompts))
                return ENCODE, InputsEncoded(command.session_id, prompts, seconds=ENCODE)
            case DecodeTask():
                return DECODE, ChunkDecoded(command.session_id, command.chunk, seconds=DECODE)
            case SchedulerOutput():
                seconds = STEP * len(command.scheduled_steps)
                return seconds, StepsDone(RunnerOutput(tuple(self._chunks(command))), seconds)

    def _chunks(self, plan: SchedulerOutput) -> list[ChunkResult]:
        assert self.core is not None
        made = []
        for step in plan.scheduled_steps:
            session = self.core.scheduler.sessions[step.session_id]
            chunk, counts = step.cursor.chunk, session.params.stage_steps(step.cursor.chunk)
            if step.cursor[1:] == (len(counts) - 1, counts[-1] - 1):
                snapshot = Past.of(session.snapshot).then(step.session_id, chunk)
                snap = snapshot.snapshot(session, chunk + 1)
                made.append(ChunkResult(step.session_id, chunk, LATENTS, snap))
        return made


class Run:
    """An engine on a `TimedWorker`, and when chunks were delivered."""

    def __init__(self) -> None:
        self.worker = TimedWorker()
        self.delivered: dict[str, list[float]] = {}
        roles = WorkerConfig(roles=("encode", "denoise", "decode"))
        config = EngineConfig(
            workers=(roles,), step_deadline=ENOUGH_TIME, start_deadline=ENOUGH_TIME
        )
        self.core = EngineCore(self.worker, CONFIG, config, clock=lambda: self.worker.now)
        self.worker.core = self.core

    def step(self) -> None:
        for event in self.core.step(0):
            if isinstance(event, ChunkReady):
                self.delivered.setdefault(event.request_id, []).append(self.worker.now)
        self.core.scheduler.check_integrity()

    def run_to(self, name: str, chunks: int) -> None:
        while len(self.delivered.get(name, ())) < chunks:
            self.step()

    def eta(self, name: str) -> float | None:
        return progress_of(self.core, name).eta_seconds


@pytest.mark.parametrize("others", [0, 5])
def test_the_remaining_time_is_right_from_the_second_chunk_on(others: int) -> None:
    """Decoding is the bottleneck. Others have as much to do."""
    run, chunks = Run(), 12
    for index in range(others):
        run.core.add_request(make_request(f"other-{index}", chunks=chunks))
    run.core.add_request(make_request("a", chunks=chunks))
    said: list[tuple[float, float]] = []
    for delivered in range(2, chunks):
        run.run_to("a", delivered)
        for _ in range(5):
            eta = run.eta("a")
            if len(run.delivered["a"]) < chunks:
                assert eta is not None
                said.append((run.worker.now, eta))
            run.step()
    run.run_to("a", chunks)
    end = run.delivered["a"][-1]
    for now, eta in said:
        assert eta == pytest.approx(end - now, rel=0.25, abs=DECODE), now


@pytest.mark.parametrize("others", [0, 5])
def test_before_the_second_chunk_decoding_is_estimated(others: int) -> None:
    run, chunks = Run(), 12
    run.core.add_request(make_request("warm-up", chunks=3))
    run.run_to("warm-up", 3)
    for index in range(others):
        run.core.add_request(make_request(f"other-{index}", chunks=chunks))
    run.core.add_request(make_request("a", chunks=chunks))
    begun = run.worker.now
    while run.core.scheduler.sessions["a"].cursor < (0, 1, 0):
        run.step()
    eta, asked = run.eta("a"), run.worker.now
    run.run_to("a", chunks)
    assert eta is not None
    assert eta == pytest.approx(run.delivered["a"][-1] - asked, rel=0.5)
    assert eta > 0.6 * chunks * DECODE * (1 + others), "it knows of no decoding"
    assert begun < asked


def test_nothing_is_said_before_anything_was_measured() -> None:
    run = Run()
    run.core.add_request(make_request("a", chunks=3))
    for _ in range(4):
        run.step()
        assert run.eta("a") is None


def test_a_request_is_queued_until_a_worker_has_it() -> None:
    run = Run()
    run.step()
    for name in ("a", "b"):
        run.core.add_request(make_request(name, prompt=name, chunks=2))
    assert progress_of(run.core, "a")[:2] == ("queued", 2)  # both arrived at the same time
    run.core._dispatch()
    assert [progress_of(run.core, name).phase for name in "ab"] == ["encoding", "queued"]
    seen = []
    while "a" in run.core.decode_stage.assemblers:
        seen.append(progress_of(run.core, "a").phase)
        run.step()
    assert list(dict.fromkeys(seen)) == ["encoding", "denoising", "decoding"]


def test_the_pace_is_that_of_the_last_chunks() -> None:
    assert measured_pace([]) is None
    assert measured_pace([3.0]) is None
    assert measured_pace([3.0, 5.0, 9.0]) == 3.0
