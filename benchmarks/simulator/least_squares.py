"""Least squares with coefficients that are not negative."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TOLERANCE = 1e-10
MAX_ROUNDS = 10


def nonnegative_least_squares(features: Array, values: Array) -> Array:
    """Return x >= 0 that minimizes the squares of `features` @ x - `values`.

    `features` is (observations, coefficients). Source: Lawson and Hanson, Solving Least Squares
    Problems (1974), chapter 23. Columns are scaled, since theirs differ by orders of magnitude.
    """
    scale = np.linalg.norm(features, axis=0)
    scale[scale == 0] = 1.0
    scaled = features / scale
    count = scaled.shape[1]
    found, free = np.zeros(count), np.zeros(count, dtype=bool)
    for _ in range(MAX_ROUNDS * count):
        gradient = scaled.T @ (values - scaled @ found)
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if free.all() or gradient[best] <= TOLERANCE * np.linalg.norm(values):
            break
        free[best] = True
        found = within_bounds(scaled, values, found, free)
    unscaled: Array = found / scale
    return unscaled


def within_bounds(features: Array, values: Array, found: Array, free: NDArray[np.bool_]) -> Array:
    """Minimize over the `free` coefficients from `found` on; those that reach 0 are fixed there."""
    while free.any():
        wanted = np.zeros_like(found)
        wanted[free] = np.linalg.lstsq(features[:, free], values, rcond=None)[0]
        if (wanted[free] > 0).all():
            return wanted
        low = free & (wanted <= 0)
        step = float(np.min(found[low] / np.maximum(found[low] - wanted[low], TOLERANCE)))
        found = found + step * (wanted - found)
        free &= found > TOLERANCE
        found[~free] = 0.0
    return np.zeros_like(found)
