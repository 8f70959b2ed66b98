"""How long plans take is told from plans that were measured."""

import random

import pytest

from helios_serve.core.rate import PlanTime

FIXED, SLOPE = 0.02, 1e-12


def seconds(cost: float) -> float:
    return FIXED + SLOPE * cost


def measured(costs: list[float], noise: float = 0.0) -> PlanTime:
    times, draw = PlanTime(), random.Random(0)
    times.measure(costs[0], 10.0)  # the first one loads and compiles
    for cost in costs:
        times.measure(cost, seconds(cost) * (1 + noise * draw.uniform(-1, 1)))
    return times


def test_a_fixed_time_is_told_from_one_that_grows() -> None:
    times = measured([1e10, 2e10, 5e10] * 10)
    assert times.fixed == pytest.approx(FIXED)
    assert times.slope == pytest.approx(SLOPE)
    assert times.seconds(1e12) == pytest.approx(seconds(1e12))
    assert times.seconds(3e10, plans=3) == pytest.approx(3 * seconds(1e10))


def test_a_tenth_of_noise_changes_the_fit_little() -> None:
    times = measured([1e10, 2e10, 5e10] * 60, noise=0.1)
    assert times.fixed == pytest.approx(FIXED, rel=0.2)
    assert times.seconds(1e11) == pytest.approx(seconds(1e11), rel=0.1)


def test_plans_that_were_measured_get_their_time_in_total() -> None:
    """The last ones count most, so these are repeated until all before them are forgotten."""
    times = measured([1e10, 2e10, 5e10] * 400, noise=0.9)
    mean = sum(map(times.seconds, (1e10, 2e10, 5e10))) / 3
    assert mean == pytest.approx(sum(map(seconds, (1e10, 2e10, 5e10))) / 3, rel=0.15)


def test_equal_plans_leave_the_fixed_time_as_it_is() -> None:
    assert measured([1e10] * 50).fixed == 0
    times = measured([1e10, 5e10] * 10 + [2e10] * 200)
    assert times.fixed == pytest.approx(FIXED)
    assert times.seconds(2e10) == pytest.approx(seconds(2e10))


@pytest.mark.parametrize("pairs", [[(1.0, 5.0), (2.0, 3.0)], [(1.0, 1.0), (2.0, 9.0)]])
def test_neither_part_is_negative(pairs: list[tuple[float, float]]) -> None:
    times = PlanTime()
    for cost, spent in pairs * 20:
        times.measure(cost, spent)
    assert times.fixed >= 0
    assert times.slope > 0


def test_a_change_is_learnt_within_seconds() -> None:
    times = measured([1e10, 5e10] * 10)
    for _ in range(200):
        for cost in (1e10, 5e10):
            times.measure(cost, 3 * seconds(cost))
    assert times.fixed == pytest.approx(3 * FIXED, rel=0.05)


def test_nothing_is_known_before_the_first_measurement() -> None:
    times = PlanTime()
    times.measure(0.0, 1.0)
    times.measure(1e10, 0.0)
    assert times.seconds(1e12) == 0
