"""Fits the costs of a device to a trace of a real server."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helios_serve.benchmarks.simulator.costs import (
    DeviceCosts,
    FitError,
    PlanCosts,
    TaskCosts,
    step_flops,
)
from helios_serve.benchmarks.simulator.least_squares import nonnegative_least_squares
from helios_serve.benchmarks.simulator.observations import Observation, TraceFacts
from helios_serve.core.cost import PROMPT_PIXELS
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES, HeliosConfig
from helios_serve.options.workers import ROLES, Role

HELD_OUT = 5
"""Every fifth plan, and every fifth task, is held out of the fit."""
WARM_UP = 2
"""The first plans and tasks of a worker, which load libraries and choose kernels."""
LEAST = 10
"""Observations of a stage, at least."""
MAX_RESIDUALS = 500
ROUNDS = 6
SHARING = tuple(step / 20 for step in range(21))
"""Values that are tried for how much stages slow each other down."""

Array = NDArray[np.float64]


class Fit(NamedTuple):
    """Coefficients of the features, and how well they predict what was held out."""

    coefficients: Array
    error: FitError
    residuals: tuple[float, ...]


def fit_costs(
    facts: TraceFacts, config: HeliosConfig, *, name: str, origin: str, text_rows: int
) -> DeviceCosts:
    """Return the costs that predict the observations best, by their relative errors.

    How much stages that run at the same time slow each other down is the value with which the
    plans, without those held out, are predicted best. Raises InvalidRequestError if a stage was
    observed too rarely.
    """
    lanes = {role: lane_of(facts.observations, role) for role in ROLES}
    features: dict[Role, Callable[[Observation], list[float]]] = {
        "denoise": lambda each: plan_features(each, config),
        "encode": encode_features,
        "decode": decode_features,
    }
    sharing = min(
        SHARING,
        key=lambda value: sum(
            training_error(lanes[role], features[role], value) for role in ("denoise", "decode")
        ),
    )
    fits = {role: fit(lanes[role], features[role], sharing) for role in ROLES}
    overhead, session, linear, attention, *stages = fits["denoise"].coefficients.tolist()
    return DeviceCosts(
        name=name,
        source="measured",
        origin=origin,
        plan=PlanCosts(
            overhead=overhead,
            stages=tuple(stages),
            session=session,
            linear=linear,
            attention=attention,
        ),
        encode=TaskCosts(**dict(zip(("overhead", "pixel"), numbers(fits["encode"]), strict=True))),
        decode=TaskCosts(**dict(zip(("overhead", "pixel"), numbers(fits["decode"]), strict=True))),
        sharing=sharing,
        num_blocks=facts.num_blocks,
        text_rows=text_rows,
        errors={role: each.error for role, each in fits.items()},
        residuals={role: each.residuals for role, each in fits.items()},
        segment=segment_costs(facts.observations),
    )


def lane_of(observations: Sequence[Observation], role: Role) -> list[Observation]:
    """Return the observations of a stage, without each worker's first ones."""
    seen: dict[str, int] = {}
    found = []
    for each in observations:
        if each.lane == role:
            seen[each.worker] = seen.get(each.worker, 0) + 1
            if seen[each.worker] > WARM_UP:
                found.append(each)
    if len(found) < LEAST:
        raise InvalidRequestError(
            f"got a trace with {len(found)} usable observations of {role}, expected at least "
            f"{LEAST}: trace a longer load",
            param="trace",
        )
    return found


def segment_costs(observations: Sequence[Observation]) -> TaskCosts:
    """Return what encoding takes the host: nothing if it was hardly observed, as in a trace of jobs
    that deliver frames.
    """
    shown = [each for each in observations if each.lane == "segment" and each.seconds > 0]
    if len(shown) < LEAST:
        return TaskCosts()
    overhead, pixel = numbers(fit(shown, decode_features, 0.0))
    return TaskCosts(overhead=overhead, pixel=pixel)


def plan_features(each: Observation, config: HeliosConfig) -> list[float]:
    """Return what the coefficients of PlanCosts multiply: overhead, session, linear, attention, and
    the stages.
    """
    flops = [step_flops(config, step) for step in each.steps]
    present = {step.stage for step in each.steps}
    return [
        1.0,
        float(len(each.steps)),
        sum(item.linear for item in flops),
        sum(item.attention for item in flops),
        *(float(stage in present) for stage in range(config.stages)),
    ]


def encode_features(each: Observation) -> list[float]:
    """Return what overhead and pixels of an encode task multiply, as `encode_cost` has it."""
    assert each.geometry is not None, "tasks have a size"
    still = (1 + CHUNK_FRAMES) * each.geometry.height * each.geometry.width
    return [1.0, each.prompts * PROMPT_PIXELS + each.has_reference * float(still)]


def decode_features(each: Observation) -> list[float]:
    assert each.geometry is not None, "tasks have a size"
    return [1.0, float(CHUNK_FRAMES * each.geometry.height * each.geometry.width)]


def training_error(
    observations: Sequence[Observation],
    features: Callable[[Observation], list[float]],
    sharing: float,
) -> float:
    """Return the mean squared relative error of the fit where it was fitted."""
    chosen, _ = split(observations)
    rows, seconds = matrix(chosen, features), alone(chosen, sharing)
    found = rows @ coefficients(rows, seconds)
    stretched = stretch(chosen, found, sharing)
    measured = np.array([each.seconds for each in chosen])
    return float(np.mean((measured / stretched - 1) ** 2))


def fit(
    observations: Sequence[Observation],
    features: Callable[[Observation], list[float]],
    sharing: float,
) -> Fit:
    """Fit the times alone, and compare with what was held out as it ran, together with others."""
    chosen, held = split(observations)
    rows = matrix(chosen, features)
    found = coefficients(rows, alone(chosen, sharing))
    predicted = stretch(held, matrix(held, features) @ found, sharing)
    measured = np.array([each.seconds for each in held])
    residuals = measured / np.maximum(predicted, 1e-9)
    error = FitError(
        len(held),
        float(np.mean(np.abs(predicted / measured - 1))),
        float(predicted.sum() / measured.sum() - 1),
    )
    step = max(1, len(residuals) // MAX_RESIDUALS)
    return Fit(found, error, tuple(round(float(each), 4) for each in residuals[::step]))


def split(observations: Sequence[Observation]) -> tuple[list[Observation], list[Observation]]:
    """Return what is fitted, and what is held out."""
    chosen = [each for index, each in enumerate(observations) if index % HELD_OUT]
    return chosen, list(observations[::HELD_OUT])


def coefficients(rows: Array, seconds: Array) -> Array:
    """Minimize relative errors, so that short plans count as much as long ones.

    Errors are taken relative to what is predicted, in a few rounds: relative to what was measured,
    a plan that something else delayed would count less than one in time, and the sum be too low.
    """
    scale = seconds
    for _ in range(ROUNDS):
        found = nonnegative_least_squares(rows / scale[:, None], seconds / scale)
        scale = np.maximum(rows @ found, 0.01 * seconds)
    return found


def matrix(
    observations: Sequence[Observation], features: Callable[[Observation], list[float]]
) -> Array:
    return np.array([features(each) for each in observations])


def alone(observations: Sequence[Observation], sharing: float) -> Array:
    """Return the seconds that jobs would have taken without other lanes."""
    return np.array([each.seconds - each.lost(sharing) for each in observations])


def stretch(observations: Sequence[Observation], seconds: Array, sharing: float) -> Array:
    """Return the seconds that jobs of `seconds` alone take with what ran at the same time."""
    lost: Array = np.array([each.lost(sharing) for each in observations])
    return np.add(seconds, lost)


def numbers(found: Fit) -> list[float]:
    return [float(each) for each in found.coefficients]
