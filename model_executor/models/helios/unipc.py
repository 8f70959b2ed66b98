"""The UniPC solver (arXiv 2302.04867) as linear combinations with precomputed weights.

For a given list of sigmas, each predictor and corrector is a weighted sum of the sample, the last
corrected sample and up to three x0 predictions. The weights depend on the sigmas only, so they are
computed before the first step and the solver has no mutable state.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from helios_serve.model_config import SamplerConfig

MIN_SIGMA = 1e-8
"""Lower bound of sigmas in logarithms and ratios."""


class Corrector(NamedTuple):
    """corrected = sample * last_sample + older * x0[-3] + previous * x0[-2] + current * x0[-1]."""

    sample: float
    older: float
    previous: float
    current: float


class Predictor(NamedTuple):
    """next = sample * corrected + previous * x0[-2] + current * x0[-1]."""

    sample: float
    previous: float
    current: float


class UniPCStep(NamedTuple):
    """The weights of one step. `corrector` is None if the step does not correct its sample."""

    corrector: Corrector | None
    predictor: Predictor


class Interval(NamedTuple):
    """The step from one noise level to another, in the paper's variables.

    - `ratio`: the ratio of the sigmas.
    - `alpha`: the signal level at the end, 1 - sigma.
    - `h`: the difference in log signal-to-noise ratio.
    - `phi`: e^-h - 1.
    - `step`: B(h).
    """

    ratio: float
    alpha: float
    h: float
    phi: float
    step: float


def unipc_steps(sigmas: Sequence[float], config: SamplerConfig) -> tuple[UniPCStep, ...]:
    """Return the weights of all steps. `sigmas` has one entry more than there are steps."""
    count = len(sigmas) - 1
    steps, order = [], 0
    for index in range(count):
        corrects = index > 0 and index - 1 not in config.disable_corrector
        corrector = corrector_weights(sigmas, index, order, config) if corrects else None
        limit = count - index if config.lower_order_final else config.solver_order
        order = min(config.solver_order, limit, index + 1)
        steps.append(UniPCStep(corrector, predictor_weights(sigmas, index, order, config)))
    return tuple(steps)


def predictor_weights(
    sigmas: Sequence[float], index: int, order: int, config: SamplerConfig
) -> Predictor:
    """Return the weights of the step from sigma[index] to sigma[index + 1]."""
    move = interval(sigmas[index], sigmas[index + 1], config)
    current = -move.alpha * move.phi
    if order == 1:
        return Predictor(move.ratio, 0.0, current)
    slope = -move.alpha * move.step * 0.5 / relative_step(sigmas, index - 1, index, move.h)
    return Predictor(move.ratio, slope, current - slope)


def corrector_weights(
    sigmas: Sequence[float], index: int, order: int, config: SamplerConfig
) -> Corrector:
    """Return the weights that repeat the step to sigma[index], given x0 at its end."""
    move = interval(sigmas[index - 1], sigmas[index], config)
    base = -move.alpha * move.phi
    scale = -move.alpha * move.step
    if order == 1:
        return Corrector(move.ratio, 0.0, base - 0.5 * scale, 0.5 * scale)
    relative = relative_step(sigmas, index - 2, index - 1, move.h)
    first = move.phi / -move.h - 1
    second = first / -move.h - 0.5
    rho_older, rho_current = np.linalg.solve(
        np.array([[1.0, 1.0], [relative, 1.0]]),
        np.array([first / move.step, 2 * second / move.step]),
    ).tolist()
    older = scale * rho_older / relative
    current = scale * rho_current
    return Corrector(move.ratio, older, base - older - current, current)


def interval(start: float, stop: float, config: SamplerConfig) -> Interval:
    h = log_snr(stop) - log_snr(start)
    phi = math.expm1(-h)
    return Interval(
        ratio=max(stop, MIN_SIGMA) / max(start, MIN_SIGMA),
        alpha=1 - stop,
        h=h,
        phi=phi,
        step=phi if config.solver_type == "bh2" else -h,
    )


def relative_step(sigmas: Sequence[float], before: int, start: int, h: float) -> float:
    return (log_snr(sigmas[before]) - log_snr(sigmas[start])) / h


def log_snr(sigma: float) -> float:
    return math.log(1 - sigma) - math.log(max(sigma, MIN_SIGMA))
