"""The cost of a step of the published model, against counts from its architecture."""

import pytest

from helios_serve.core.cost import NO_STEPS, forward_flops, stage_step_cost
from helios_serve.core.device import Device
from helios_serve.messages import StepCursor
from helios_serve.model_config import Geometry
from helios_serve.options.scheduling import BatchLimits
from tests.support.scheduling import CONFIG, make_request, make_session

SIZE = Geometry(384, 640)


@pytest.mark.parametrize(
    ("stage", "teraflops", "attention"), [(0, 69.7, 0.10), (1, 119.1, 0.14), (2, 359.6, 0.28)]
)
def test_a_forward_of_the_published_model(stage: int, teraflops: float, attention: float) -> None:
    """The figures count the prompt's keys and values, and all of the last layer; we skip both."""
    flops = forward_flops(CONFIG, SIZE, stage)
    assert 0.94 < flops.total / (teraflops * 1e12) < 1
    assert flops.attention / flops.total == pytest.approx(attention, abs=0.015)


def test_guidance_costs_twice() -> None:
    once, twice = (stage_step_cost(CONFIG, SIZE, 1, branches) for branches in (1, 2))
    assert twice == 2 * once


def test_the_steps_that_are_left_are_counted_from_a_cursor() -> None:
    """Two for each of three stages; the first chunk of a distilled model may have more."""
    session = make_session(make_request("a", chunks=3))
    total = session.params.total_steps
    assert session.cost.steps_left(StepCursor(0, 0, 0)) == total
    assert session.cost.steps_left(StepCursor(2, 2, 1)) == 1
    assert session.cost.steps_left(StepCursor(1, 1, 0)) == 4 + 6
    assert session.cost.steps_left(StepCursor(3, 0, 0)) == 0


def test_sessions_that_fit_one_plan_take_its_fixed_time_once() -> None:
    """Each plays a chunk of 33 frames at 24 fps, in six steps; a plan has 0.05 s of its own."""
    cost = make_session(make_request("a")).cost
    device = Device("worker", ("denoise",))
    device.plan_time.fixed, device.plan_time.slope = 0.05, 1e-18
    rounds = 6 * 24 / 33

    def share(sessions: int, limits: BatchLimits) -> float:
        load = NO_STEPS
        for _ in range(sessions):
            load = load.plus(cost.load(limits))
        return device.realtime_share(load)

    together, alone = BatchLimits(max_num_batched_tokens=1 << 20), BatchLimits(max_num_seqs=1)
    assert share(1, together) == pytest.approx(0.05 * rounds, rel=0.02)
    assert share(4, together) == pytest.approx(0.05 * rounds, rel=0.05)
    assert share(4, alone) == pytest.approx(4 * 0.05 * rounds, rel=0.02)
