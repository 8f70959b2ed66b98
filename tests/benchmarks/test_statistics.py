"""Statistics equal values from tables and from hand calculation."""

import math

import numpy as np
import pytest
from msgspec.structs import astuple

from helios_serve.benchmarks.measure.statistics import (
    LARGE,
    Z,
    binomial_cdf,
    clustered_quantiles,
    jain,
    quantile_interval,
    ratio_error,
    ratio_interval,
    runs_interval,
    wilson,
    woodruff_interval,
)


@pytest.mark.parametrize(("q", "least"), [(0.9, 29), (0.95, 59), (0.99, 299)])
def test_a_percentile_has_an_upper_bound_from_enough_samples_on(q: float, least: int) -> None:
    assert quantile_interval(range(least - 1), q).high is None
    assert quantile_interval(range(least), q).high == least - 1


def test_bounds_of_a_median_are_order_statistics() -> None:
    """For n = 20, P(X <= 5) = 0.0207 and P(X <= 6) = 0.0577: ranks 6 and 15."""
    found = quantile_interval(range(1, 21), 0.5)
    assert astuple(found) == (10.5, 6, 15)


def test_quantile_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    truth = math.log(10)
    found = [quantile_interval(random.exponential(size=100), 0.9) for _ in range(500)]
    covered = [
        at.low <= truth <= at.high for at in found if at.low is not None and at.high is not None
    ]
    assert len(covered) == 500
    assert np.mean(covered) > 0.88


def test_the_binomial_distribution() -> None:
    assert binomial_cdf(3, 0.5) == pytest.approx([1 / 8, 4 / 8, 7 / 8, 1])


def test_wilsons_bounds() -> None:
    """z = 1.6449: for 10 of 10, n / (n + z^2) = 0.787."""
    assert astuple(wilson(10, 10)) == pytest.approx((1.0, 0.7871, 1.0), abs=1e-4)
    assert astuple(wilson(0, 10)) == pytest.approx((0.0, 0.0, 0.2129), abs=1e-4)


def test_a_ratio_covers_the_truth_though_chunks_of_a_session_are_alike() -> None:
    """Sessions of 20 equal chunks: an interval over chunks would be far too narrow."""
    random = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        sessions = random.normal(1.0, 0.2, size=30)
        found = ratio_interval(20 * sessions, np.full(30, 20), seed)
        hits += found.low is not None and found.high is not None and found.low <= 1 <= found.high
    assert hits >= 82


def test_quantiles_of_clusters_are_wider_than_of_independent_values() -> None:
    random = np.random.default_rng(0)
    values = np.repeat(random.normal(size=40), 25)
    (clustered,) = clustered_quantiles(values, [index // 25 for index in range(1000)], [0.5], 0)
    alone = quantile_interval(values, 0.5)
    assert clustered.value == alone.value
    assert clustered.low is not None
    assert clustered.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


def test_bounds_of_large_runs_are_nearly_those_of_a_bootstrap() -> None:
    """Of 600 sessions, which the bootstrap takes no long for."""
    random, number = np.random.default_rng(0), 600
    sizes = random.integers(1, 5, size=number)
    owners = np.repeat(np.arange(number), sizes)
    values = np.sort(random.normal(10, 1, size=number)[owners] + random.normal(size=len(owners)))
    for q in (0.5, 0.9):
        computed = woodruff_interval(values, owners, q)
        (drawn,) = clustered_quantiles(values, list(owners), [q], 0)
        assert astuple(computed) == pytest.approx(astuple(drawn), rel=5e-3)
    sums, counts = np.bincount(owners, weights=values).astype(float), sizes.astype(float)
    drawn = ratio_interval(sums, counts, 0)
    assert drawn.high is not None
    half = Z * ratio_error(sums, counts)
    assert half == pytest.approx(drawn.high - drawn.value, rel=0.1)


def test_large_runs_have_bounds() -> None:
    values = np.random.default_rng(0).exponential(size=LARGE)
    found = ratio_interval(values, np.ones(LARGE), 0)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.0 < found.high < 1.05
    (median,) = clustered_quantiles(values, range(LARGE), [0.5], 0)
    assert median.low is not None
    assert median.high is not None
    assert median.low < math.log(2) < median.high < 0.73


def test_intervals_over_runs_are_students() -> None:
    """Five runs: t(4) = 2.1318, s = 1.5811."""
    found = runs_interval([1, 2, 3, 4, 5])
    assert astuple(found) == pytest.approx((3, 3 - 1.5073, 3 + 1.5073), abs=1e-3)
    assert astuple(runs_interval([1.0])) == (1.0, None, None)


def test_jains_index() -> None:
    assert jain([5, 5, 5]) == 1
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([1, 2, 3]) == pytest.approx(36 / 42)
