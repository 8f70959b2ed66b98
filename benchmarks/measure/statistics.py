"""Quantiles, intervals and fairness.

Each bound of an interval holds with a confidence of 95 %, so that an interval has 90 %. A bound
that does not exist is None: p90 has an upper bound from 29 samples on, p95 from 59, p99 from 299.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
Z = 1.6448536269514722
"""Quantile of the normal distribution at CONFIDENCE."""
T_QUANTILES = (
    6.3138, 2.9200, 2.3534, 2.1318, 2.0150, 1.9432, 1.8946, 1.8595, 1.8331, 1.8125,
    1.7959, 1.7823, 1.7709, 1.7613, 1.7531, 1.7459, 1.7396, 1.7341, 1.7291, 1.7247,
)  # fmt: skip
"""Quantiles of Student's t at CONFIDENCE for 1 to 20 degrees of freedom."""
DRAWS = 2000
"""Draws of a bootstrap."""
MAX_CELLS = 4_000_000
"""Weights of values that are held at a time."""
LARGE = 5000
"""Sessions from which on bounds follow from the normal distribution instead of a bootstrap, which
would take minutes and give the same."""
BLOCK = 100
"""Draws that are computed together, which bounds memory."""

Values = Sequence[float] | NDArray[np.float64]


class Estimate(msgspec.Struct, frozen=True):
    """A value with its bounds. A bound is None if there are too few samples."""

    value: float
    low: float | None
    high: float | None


def quantile(values: Values, q: float) -> float:
    """Return a quantile by linear interpolation."""
    return float(np.quantile(np.asarray(values), q))


def quantile_interval(values: Values, q: float) -> Estimate:
    """Return a quantile with bounds that are order statistics: exact for any distribution."""
    ordered = np.sort(np.asarray(values))
    below = binomial_cdf(len(ordered), q)
    n = len(ordered)
    low = int(np.sum(1 - below[:n] >= CONFIDENCE))
    high = int(np.argmax(below[:n] >= CONFIDENCE)) if below[n - 1] >= CONFIDENCE else None
    return Estimate(
        quantile(ordered, q),
        float(ordered[low - 1]) if low else None,
        None if high is None else float(ordered[high]),
    )


def binomial_cdf(n: int, p: float) -> NDArray[np.float64]:
    """Return P(X <= k) for k = 0, ..., n of a binomial distribution with 0 < p < 1."""
    k = np.arange(n + 1)
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    log_mass = logs[n] - logs[k] - logs[n - k] + k * math.log(p) + (n - k) * math.log1p(-p)
    return np.cumsum(np.exp(log_mass))


def wilson(successes: int, n: int) -> Estimate:
    """Return a share with Wilson's bounds."""
    if n == 0:
        return Estimate(math.nan, None, None)
    share, z2 = successes / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def ratio_interval(numerators: Values, denominators: Values, seed: int) -> Estimate:
    """Return sum(numerators) / sum(denominators), with bounds by a bootstrap of its pairs.

    A pair belongs to one session, whose chunks are correlated: so sessions are drawn, not chunks.
    """
    over, under = np.asarray(numerators, float), np.asarray(denominators, float)
    value = float(over.sum() / under.sum())
    if len(over) < 2:
        return Estimate(value, None, None)
    if len(over) >= LARGE:
        half = Z * ratio_error(over, under)
        return Estimate(value, value - half, value + half)
    random = np.random.default_rng(seed)
    found: list[NDArray[np.float64]] = []
    for _ in range(DRAWS // BLOCK):
        weights = random.multinomial(len(over), np.full(len(over), 1 / len(over)), size=BLOCK)
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(weights @ over / (weights @ under))
    drawn = np.concatenate(found)
    return bounds_of(value, drawn[np.isfinite(drawn)])


def ratio_error(over: NDArray[np.float64], under: NDArray[np.float64]) -> float:
    """Return the standard error of sum(over) / sum(under) by linearization (delta method)."""
    residuals = over - over.sum() / under.sum() * under
    return math.sqrt(float(residuals @ residuals)) / float(under.sum())


def mean_interval(values: Values, seed: int) -> Estimate:
    """Return a mean with bounds by a bootstrap."""
    return ratio_interval(values, np.ones(len(values)), seed)


def bounds_of(value: float, drawn: NDArray[np.float64]) -> Estimate:
    """Return a value with the quantiles of a bootstrap as its bounds."""
    if not len(drawn):
        return Estimate(value, None, None)
    low, high = np.quantile(drawn, [1 - CONFIDENCE, CONFIDENCE])
    return Estimate(value, float(low), float(high))


def runs_interval(values: Sequence[float]) -> Estimate:
    """Return the mean of one value per run, with Student's bounds; at least two runs have them."""
    mean, freedom = float(np.mean(values)), len(values) - 1
    if freedom < 1:
        return Estimate(mean, None, None)
    t = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else Z
    half = t * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def jain(values: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 if all values are equal, 1/n if one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else math.nan


def clustered_quantiles(
    values: Values, clusters: Sequence[int], quantiles: Sequence[float], seed: int
) -> list[Estimate]:
    """Return quantiles of values that are correlated within clusters, such as a session's chunks.

    Bounds come from a bootstrap that draws clusters, numbered from 0. An upper bound exists from
    the same number of values on as in `quantile_interval`.
    """
    given = np.asarray(values, float)
    order = np.argsort(given)
    ordered, owners = given[order], np.asarray(clusters)[order]
    number = int(owners.max()) + 1
    drawn = np.full((0, len(quantiles)), np.nan)
    if number >= LARGE:
        return [woodruff_interval(ordered, owners, q) for q in quantiles]
    if number > 1:
        weights = session_weights(number, seed)
        drawn = weighted_quantiles(ordered, owners, weights, quantiles)
    return [
        Estimate(
            exact.value,
            None if exact.low is None else bounds.low,
            None if exact.high is None else bounds.high,
        )
        for q, found in zip(quantiles, drawn.T, strict=True)
        for exact in [quantile_interval(ordered, q)]
        for bounds in [bounds_of(exact.value, found)]
    ]


def woodruff_interval(
    ordered: NDArray[np.float64], owners: NDArray[np.int64], q: float
) -> Estimate:
    """Return a quantile of ascending values of clusters, with bounds from the standard error of the
    share of values below it (Woodruff, 1952).
    """
    value, sizes = quantile(ordered, q), np.bincount(owners).astype(float)
    below = np.bincount(owners, weights=ordered <= value, minlength=len(sizes)).astype(float)
    half = Z * ratio_error(below, sizes)
    low, high = np.quantile(ordered, [max(0.0, q - half), min(1.0, q + half)])
    return Estimate(value, float(low), float(high))


def session_weights(number: int, seed: int) -> NDArray[np.int64]:
    """Return DRAWS draws with replacement of `number` sessions, as how often each was drawn."""
    random = np.random.default_rng(seed)
    return random.multinomial(number, np.full(number, 1 / number), size=DRAWS)


def weighted_quantiles(
    ordered: NDArray[np.float64],
    owners: NDArray[np.int64],
    weights: NDArray[np.int64],
    quantiles: Sequence[float],
) -> NDArray[np.float64]:
    """Return quantiles of ascending values for each row of weights of their owners.

    The result has the shape (rows, quantiles). Rows are computed in blocks, which bounds memory.
    """
    rows = max(1, MAX_CELLS // len(ordered))
    found = []
    for start in range(0, len(weights), rows):
        totals = np.cumsum(weights[start : start + rows][:, owners], axis=1)
        ranks = [(totals < q * totals[:, -1:]).sum(axis=1) for q in quantiles]
        found.append(ordered[np.array(ranks).T])
    return np.concatenate(found)
