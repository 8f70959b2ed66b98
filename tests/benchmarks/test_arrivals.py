"""Arrival times have the distributions that their names promise."""

import math
from itertools import islice

import numpy as np
import pytest

from helios_serve.benchmarks.load.arrivals import (
    ArrivalProcess,
    BurstArrivals,
    ConstantArrivals,
    GammaArrivals,
    Ramp,
    RateSeries,
    VaryingArrivals,
    draw_times,
)
from helios_serve.errors import InvalidRequestError

NUM = 10_000


def gaps(process: ArrivalProcess, seed: int = 0) -> np.ndarray:
    times = draw_times(process, np.random.default_rng(seed), num=NUM)
    return np.diff([0.0, *times])


@pytest.mark.parametrize("seed", range(3))
def test_poisson_gaps_are_exponential(seed: int) -> None:
    """Kolmogorov and Smirnov's test: 1.63 / sqrt(n) is the critical value of p = 0.01."""
    ordered = np.sort(gaps(GammaArrivals(2.0), seed))
    theory = 1 - np.exp(-2.0 * ordered)
    above = np.arange(1, NUM + 1) / NUM - theory
    below = theory - np.arange(NUM) / NUM
    assert max(above.max(), below.max()) < 1.63 / math.sqrt(NUM)


@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_shape_and_the_rate(shape: float) -> None:
    found = gaps(GammaArrivals(5.0, shape))
    assert found.mean() == pytest.approx(1 / 5.0, rel=0.05)
    assert found.mean() ** 2 / found.var() == pytest.approx(shape, rel=0.1)


def test_times_are_not_rescaled() -> None:
    """The time of the 100th session varies as a Poisson process does: by a tenth."""
    ends = [
        draw_times(GammaArrivals(1.0), np.random.default_rng(k), num=100)[-1] for k in range(200)
    ]
    assert np.std(ends) == pytest.approx(10.0, rel=0.2)


def test_times_end_with_the_duration() -> None:
    times = draw_times(ConstantArrivals(2.0), np.random.default_rng(0), duration=2.0)
    assert times == [0.0, 0.5, 1.0, 1.5]


def test_bursts_come_together() -> None:
    times = list(islice(BurstArrivals(2.0, 3).times(np.random.default_rng(0)), 7))
    assert times == [0.0, 0.0, 0.0, 1.5, 1.5, 1.5, 3.0]


@pytest.mark.parametrize("is_exponential", [False, True])
def test_a_ramp_has_its_rates_and_its_number_of_sessions(is_exponential: bool) -> None:
    ramp = Ramp.for_sessions(1.0, 9.0, 5000, is_exponential=is_exponential)
    assert ramp.at(0) == 1.0
    assert ramp.at(ramp.seconds) == ramp.at(2 * ramp.seconds) == pytest.approx(9.0)
    middle = 3.0 if is_exponential else 5.0
    assert ramp.at(ramp.seconds / 2) == pytest.approx(middle)
    times = draw_times(VaryingArrivals(ramp), np.random.default_rng(0), duration=ramp.seconds)
    assert len(times) == pytest.approx(5000, rel=0.05)


def test_a_series_repeats() -> None:
    series = RateSeries(((0, 0), (10, 8), (20, 0)))
    assert [series.at(time) for time in (0, 5, 10, 15, 25)] == [0, 4, 8, 4, 4]
    times = draw_times(VaryingArrivals(series), np.random.default_rng(0), duration=2000)
    phases = np.mod(times, 20)
    assert len(times) == pytest.approx(8000, rel=0.05)
    assert np.mean((phases > 5) & (phases < 15)) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(
    "points", [((0, 1),), ((1, 1), (2, 1)), ((0, 0), (5, 0)), ((0, 1), (5, -1))]
)
def test_a_series_that_makes_no_sense_is_refused(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(InvalidRequestError, match="expected two or more lines"):
        RateSeries(points)
