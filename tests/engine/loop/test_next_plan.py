"""When the engine sends a worker its next plan, in virtual time."""

import pytest

from helios_serve.benchmarks.simulator.costs import CostModel
from helios_serve.benchmarks.simulator.executor import SimulatedExecutor
from helios_serve.benchmarks.simulator.virtual_time import SteppedClock
from helios_serve.core.plan_pace import PLAN_LEAD
from helios_serve.core.worker_state import WorkerState
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.messages import ScheduledStep
from helios_serve.options.engine import EngineConfig
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import WorkerConfig
from tests.support.scheduling import CONFIG, make_request
from tests.support.simulated import seconds_of
from tests.support.timed_worker import STEP, TimedWorker, timed_engine


def test_the_engine_wakes_up_to_send_the_next_plan() -> None:
    """Plans of large steps are sent shortly before the worker needs them, and none too late.

    Steps of the first video, whose rates are still unknown, may be late.
    """
    worker = TimedWorker()
    core = timed_engine(worker)
    for name in ("a", "b"):
        core.add_request(make_request(name))
        while core.has_unfinished:
            core.step(1.0)
    steps_of_b, closing = worker.waits[-7:-1], worker.waits[-1]
    assert (steps_of_b[0], closing) == (0.0, 0.0)
    assert all(0 < wait <= STEP for wait in steps_of_b[1:])
    assert steps_of_b[-1] == pytest.approx(PLAN_LEAD)


def test_a_plan_is_not_late_after_smaller_ones() -> None:
    """A plan of many steps is faster for its cost, if a part of its time is the same for any."""
    worker = TimedWorker(decode=0.1, fixed=1.0)
    core = timed_engine(worker, SchedulingConfig(max_num_batched_tokens=1 << 20))
    core.add_request(make_request("first", chunks=40))
    while core.scheduler.sessions["first"].cursor.chunk < 10:
        core.step(1.0)
    for index in range(6):
        core.add_request(make_request(f"other-{index}", chunks=20))
    while "other-5" not in {step.session_id for step in core_steps(core)}:
        core.step(1.0)
    before = len(worker.waits)
    while len(worker.waits) < before + 12:
        core.step(1.0)
    assert all(wait > 0 for wait in worker.waits[before:])


def test_a_step_looks_only_at_workers_that_have_work(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: set[str] = set()
    ask = WorkerState.next_plan_at

    def noting(worker: WorkerState, now: float) -> float:
        looked.add(worker.worker_id)
        return ask(worker, now)

    monkeypatch.setattr(WorkerState, "next_plan_at", noting)
    clock = SteppedClock()
    model = CostModel(seconds_of(encode=0.1, step=0.1, decode=0.1), CONFIG)
    config = EngineConfig(workers=(WorkerConfig(),) * 16)
    core = EngineCore(SimulatedExecutor(model, clock), CONFIG, config, clock=clock.now)
    for names in (("a",), ("b", "c")):
        looked.clear()
        for name in names:
            core.add_request(make_request(name, chunks=3))
        while core.has_unfinished:
            core.step(1.0)
        assert len(looked) == len(names)


def core_steps(core: EngineCore) -> list[ScheduledStep]:
    """Steps in flight."""
    plans = core.scheduler.workers["worker"].plans
    return [step for plan in plans for step in plan.output.scheduled_steps]
