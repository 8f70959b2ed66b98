"""The trace file: lanes and slices of workers, readable whenever writing stops."""

import json
from pathlib import Path
from typing import Any

import pytest

from helios_serve.core.scheduler import Scheduler
from helios_serve.engine.observe.trace import Trace
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.errors import StorageError
from helios_serve.messages import (
    ChunkDecoded,
    ChunkRendered,
    InputsEncoded,
    RunnerOutput,
    ScheduledStep,
    SchedulerOutput,
    StepCursor,
    StepsDone,
)
from helios_serve.options.scheduling import SchedulingConfig
from tests.support.engines import core, make, quick_model, request, run
from tests.support.scheduling import make_session


class Clock:
    """Returns the seconds to which it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


@pytest.fixture
def scheduler(clock: Clock) -> Scheduler:
    """With two sessions."""
    scheduler = Scheduler(SchedulingConfig(), clock)
    for name in ("a", "b"):
        scheduler.add_session(make_session(request(name), quick_model().config))
    return scheduler


def plan(*steps: tuple[str, int], finished: tuple[str, ...] = ()) -> SchedulerOutput:
    """Steps of sessions at stages of chunk 1."""
    return SchedulerOutput(
        scheduled_steps=tuple(
            ScheduledStep(name, StepCursor(1, stage, 0)) for name, stage in steps
        ),
        finished=finished,
    )


def done(seconds: float) -> StepsDone:
    return StepsDone(RunnerOutput(), seconds)


def slices(events: list[dict[str, Any]]) -> list[tuple[str, int, float, float]]:
    """Name, lane, and the milliseconds at which each begins and that it takes."""
    return [
        (event["name"], event["tid"], round(event["ts"] / 1000, 6), event["dur"] / 1000)
        for event in events
        if event["ph"] == "X"
    ]


def lanes(events: list[dict[str, Any]]) -> dict[int, str]:
    return {
        event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
    }


def test_a_plan_is_a_slice_that_ends_when_it_is_done(
    path: Path, clock: Clock, scheduler: Scheduler
) -> None:
    with Trace(path, clock) as trace:
        trace.plan("one", plan(("a", 0), ("b", 2)), scheduler)
        trace.plan("one", plan(("a", 1)), scheduler)
        trace.plan("two", plan(finished=("c",)), scheduler)
        for now, worker in ((101.0, "one"), (101.25, "two"), (101.5, "one")):
            clock.now = now
            trace.steps(worker, done(0.25), scheduler)
    events = json.loads(path.read_text())
    assert lanes(events) == {1: "one", 2: "two"}
    assert slices(events) == [
        ("2 sessions at stage 0, 2", 1, 750, 250),
        ("bookkeeping", 2, 1000, 250),
        ("1 session at stage 1", 1, 1250, 250),
    ]
    first, closing, _ = [event["args"] for event in events if event["ph"] == "X"]
    tokens = [scheduler.sessions[name].cost.tokens[stage] for name, stage in (("a", 0), ("b", 2))]
    size = {"width": 64, "height": 64, "branches": 1}
    assert first["steps"] == [
        {"session": "a", "chunk": 1, "stage": 0, "step": 0, "tokens": tokens[0]} | size,
        {"session": "b", "chunk": 1, "stage": 2, "step": 0, "tokens": tokens[1]} | size,
    ]
    assert first["tokens"] == sum(tokens)
    assert closing["closed"] == ["c"]
    counts = [event["args"] for event in events if event["name"] == "sessions"]
    assert counts == [{"waiting": 2, "running": 0}] * 3


def test_what_runs_beside_the_steps_has_lanes_of_its_own(path: Path, clock: Clock) -> None:
    with Trace(path, clock) as trace:
        clock.now = 102.0
        trace.task("one", InputsEncoded("a", seconds=0.5))
        trace.rendered("one", ChunkRendered("a", 3, 1.0))
        clock.now = 102.5
        trace.rendered("one", ChunkRendered("a", 4, 0.5))
        trace.task("one", ChunkDecoded("a", 3, error="no memory", seconds=1.25))
    events = json.loads(path.read_text())
    assert lanes(events) == {1: "one encode", 2: "one decode", 3: "one segments"}
    assert slices(events) == [
        ("inputs", 1, 1500, 500),
        ("chunk 3", 2, 1000, 1000),
        ("chunk 4", 2, 2000, 500),
        ("chunk 3", 3, 2250, 250),
    ]
    assert events[-1]["args"] == {"session": "a", "error": "no memory", "chunk": 3}


def test_a_death_ends_what_the_worker_had(path: Path, clock: Clock, scheduler: Scheduler) -> None:
    with Trace(path, clock) as trace:
        trace.plan("one", plan(("a", 0)), scheduler)
        trace.death("one", "process killed by SIGKILL")
        trace.plan("one", plan(("b", 1)), scheduler)
        trace.steps("one", done(0.25), scheduler)
    events = json.loads(path.read_text())
    (death,) = [event for event in events if event["ph"] == "i"]
    assert (death["tid"], death["args"]) == (1, {"reason": "process killed by SIGKILL"})
    assert [name for name, *_ in slices(events)] == ["1 session at stage 1"]


def test_a_file_without_its_end_can_be_read(path: Path, clock: Clock, scheduler: Scheduler) -> None:
    trace = Trace(path, clock)
    assert json.loads(path.read_text() + "]") == []
    for _ in range(3):
        trace.plan("one", plan(("a", 0)), scheduler)
        trace.steps("one", done(0.25), scheduler)
        assert slices(json.loads(path.read_text() + "]"))
    trace.close()
    assert len(slices(json.loads(path.read_text()))) == 3


def test_engines_share_a_file_but_no_lanes(path: Path) -> None:
    """Their workers have the same ids, and write at the same time."""
    with Trace(path) as trace:
        cores = {name: core() for name in ("first", "second")}
        for name, own in cores.items():
            own.observers.add(trace.of(name))

        async def main() -> None:
            async with AsyncEngine(cores) as engine:
                for model in cores:
                    await make(engine, request(f"of {model}", 66, model=model))

        run(main())
    events = json.loads(path.read_text())
    parts = {
        event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"
    }
    assert sorted(parts.values()) == ["first", "second"]
    for process, model in parts.items():
        of_process = [event for event in events if event["pid"] == process]
        expected = {"inline-0", *(f"inline-0 {kind}" for kind in ("encode", "decode", "segments"))}
        assert set(lanes(of_process).values()) == expected
        steps = [step for event in of_process for step in event.get("args", {}).get("steps", ())]
        assert {step["session"] for step in steps} == {f"of {model}"}
        assert len(steps) == 6


def test_a_disk_that_fails_ends_the_trace_and_nothing_else(
    path: Path, clock: Clock, scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StorageError, match=f"^cannot write {path.parent}: Is a directory$"):
        Trace(path.parent, clock)
    with Trace(Path("/dev/full"), clock) as trace:
        trace.plan("one", plan(("a", 0)), scheduler)
        trace.steps("one", done(0.25), scheduler)
    message = "the trace ends here: cannot write /dev/full: [Errno 28] No space left on device"
    assert caplog.messages == [message]


def test_cpu_time_is_counted_for_workers_and_server(
    path: Path, clock: Clock, scheduler: Scheduler
) -> None:
    with Trace(path, clock, cpu_clock=lambda: 2.5) as trace:
        for report in (StepsDone(RunnerOutput(), 0.25, 7.0), done(0.25)):
            trace.plan("one", plan(("a", 0)), scheduler)
            trace.steps("one", report, scheduler)
    events = json.loads(path.read_text())
    counts = [event["args"] for event in events if event["name"] == "CPU seconds"]
    assert counts == [{"one": 7.0, "server": 2.5}]
