"""The cost of a step of the published model, against counts from its architecture."""

import pytest

from helios_serve.core.cost import forward_flops, stage_step_cost
from helios_serve.model_config import Geometry
from tests.support.scheduling import CONFIG

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
