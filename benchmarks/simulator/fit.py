"""Fits the costs of a device to a trace of a real server."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helios_serve.benchmarks.simulator.costs import (
    LANES,
    DeviceCosts,
    FitError,
    Lane,
    PlanCosts,
    TaskCosts,
    step_flops,
)
from helios_serve.benchmarks.simulator.least_squares import nonnegative_least_squares
from helios_serve.benchmarks.simulator.observations import CpuUse, Observation, TraceFacts
from helios_serve.core.cost import PROMPT_PIXELS
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES, HeliosConfig
from helios_serve.options.workers import ROLES

HELD_OUT = 5
"""Every fifth plan, and every fifth task, is held out of the fit."""
WARM_UP = 2
"""The first plans and tasks of a worker, which load libraries and choose kernels."""
LEAST = 10
"""Observations of a stage, at least."""
MAX_RESIDUALS = 500
ROUNDS = 6
LEAST_SHARED = 0.02
"""Share of a lane's time in which another one must have been busy to tell how that slows it."""
MOST_LOST = 0.95
"""Part of its speed that a lane loses at most to another one."""
CPU_SECONDS = 0.5
"""Seconds between two looks at the CPU time of a worker, at least: it is counted in ticks."""

Array = NDArray[np.float64]
Features = Callable[[Observation], list[float]]


class Fit(NamedTuple):
    """Coefficients of the features, and how well they predict what was held out.

    `losses` is the part of its speed that the lane loses while another one is busy.
    """

    coefficients: Array
    losses: dict[Lane, float]
    error: FitError
    residuals: tuple[float, ...]

    @property
    def slowdowns(self) -> dict[Lane, float]:
        """By how much longer the lane takes while another one is busy."""
        return {lane: loss / (1 - loss) for lane, loss in self.losses.items()}


def fit_costs(
    facts: TraceFacts, config: HeliosConfig, *, name: str, origin: str, text_rows: int
) -> DeviceCosts:
    """Return the costs that predict the observations best, by their relative errors.

    How much lanes that run at the same time slow each other down is fitted with them. Stages of
    which that was not seen, and encode tasks, which are few and short, share the device as the
    others do on average. Raises InvalidRequestError if a stage was observed too rarely.
    """
    features: dict[Lane, Features] = {
        "denoise": lambda each: plan_features(each, config),
        "decode": decode_features,
    }
    fits = {
        lane: fit(lane_of(facts.observations, lane), own, lane) for lane, own in features.items()
    }
    segments = segments_of(facts.observations)
    if segments:
        fits["segment"] = fit(segments, decode_features, "segment")
    slowdowns = {lane: found.slowdowns for lane, found in fits.items()}
    sharing = mean_sharing(slowdowns)
    shared: dict[Lane, float] = dict.fromkeys(ROLES, sharing / (1 + sharing))
    encodes = lane_of(facts.observations, "encode")
    fits["encode"] = fit(encodes, encode_features, "encode", known=shared)
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
        encode=task_costs(fits["encode"]),
        decode=task_costs(fits["decode"]),
        segment=task_costs(fits["segment"]) if segments else TaskCosts(),
        sharing=sharing,
        slowdowns=slowdowns,
        cores=cores_of(facts, fits),
        num_blocks=facts.num_blocks,
        text_rows=text_rows,
        errors={lane: each.error for lane, each in fits.items()},
        residuals={lane: each.residuals for lane, each in fits.items()},
    )


def task_costs(found: Fit) -> TaskCosts:
    overhead, pixel = found.coefficients.tolist()
    return TaskCosts(overhead=overhead, pixel=pixel)


def mean_sharing(slowdowns: Mapping[Lane, Mapping[Lane, float]]) -> float:
    """Return how much stages slow each other down on average; 1 if that was never seen."""
    seen = [
        min(1.0, value)
        for lane, own in slowdowns.items()
        for other, value in own.items()
        if "segment" not in (lane, other)
    ]
    return sum(seen) / len(seen) if seen else 1.0


def lane_of(observations: Sequence[Observation], role: Lane) -> list[Observation]:
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


def segments_of(observations: Sequence[Observation]) -> list[Observation]:
    """Return how long chunks were encoded: nothing if that was hardly observed, as in a trace of
    jobs that deliver frames.
    """
    shown = [each for each in observations if each.lane == "segment" and each.seconds > 0]
    return shown if len(shown) >= LEAST else []


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


def fit(
    observations: Sequence[Observation],
    features: Features,
    lane: Lane,
    known: Mapping[Lane, float] | None = None,
) -> Fit:
    """Fit the times alone, and what other lanes take of the lane's speed unless that is `known`.

    The fit is compared with what was held out, as that ran, together with others.
    """
    chosen, held = split(observations)
    found, losses = coefficients(chosen, features, lane, known)
    alone = matrix(held, features) @ found
    measured = np.array([each.seconds for each in held])
    left = np.array([1 - lost_seconds(each, losses) / each.seconds for each in held])
    predicted = alone / np.maximum(left, 1 - MOST_LOST)
    residuals = measured / np.maximum(predicted, 1e-9)
    error = FitError(
        len(held),
        float(np.mean(np.abs(predicted / measured - 1))),
        float(predicted.sum() / measured.sum() - 1),
    )
    step = max(1, len(residuals) // MAX_RESIDUALS)
    return Fit(found, losses, error, tuple(round(float(each), 4) for each in residuals[::step]))


def split(observations: Sequence[Observation]) -> tuple[list[Observation], list[Observation]]:
    """Return what is fitted, and what is held out."""
    chosen = [each for index, each in enumerate(observations) if index % HELD_OUT]
    return chosen, list(observations[::HELD_OUT])


def coefficients(
    observations: Sequence[Observation],
    features: Features,
    lane: Lane,
    known: Mapping[Lane, float] | None,
) -> tuple[Array, dict[Lane, float]]:
    """Return the coefficients of the features, and the losses to other lanes.

    Minimizes relative errors, so that short plans count as much as long ones. Errors are taken
    relative to what is predicted, in a few rounds: relative to what was measured, a plan that
    something else delayed would count less than one in time, and the sum be too low.
    """
    seconds = np.array([each.seconds for each in observations])
    rows = matrix(observations, features)
    others: list[Lane] = []
    losses: dict[Lane, float] = dict(known or {})
    if known is None:
        others = [other for other in LANES if other != lane and is_seen(observations, other)]
        losses = dict.fromkeys(others, 0.0)
    else:
        seconds = seconds - np.array([lost_seconds(each, losses) for each in observations])
    scale = seconds
    for _ in range(ROUNDS):
        shared = [
            [beside_seconds(each, other, losses) for other in others] for each in observations
        ]
        columns = np.hstack([rows, np.array(shared).reshape(len(rows), len(others))])
        found = nonnegative_least_squares(columns / scale[:, None], seconds / scale)
        own = found[rows.shape[1] :]
        scale = np.maximum(columns @ found, 0.01 * seconds)
        losses |= {
            other: min(MOST_LOST, float(loss)) for other, loss in zip(others, own, strict=True)
        }
    return found[: rows.shape[1]], losses


def is_seen(observations: Sequence[Observation], other: Lane) -> bool:
    """Whether another lane was busy long enough beside the observations."""
    shared = sum(seconds for each in observations for busy, seconds in each.beside if other in busy)
    return shared >= LEAST_SHARED * sum(each.seconds for each in observations)


def lost_part(busy: Collection[Lane], losses: Mapping[Lane, float]) -> float:
    """Return the part of its speed that a lane loses to several others: slowdowns add up."""
    slower = sum(losses[other] / (1 - losses[other]) for other in busy if other in losses)
    return slower / (1 + slower)


def lost_seconds(each: Observation, losses: Mapping[Lane, float]) -> float:
    return sum(seconds * lost_part(busy, losses) for busy, seconds in each.beside)


def beside_seconds(each: Observation, other: Lane, losses: Mapping[Lane, float]) -> float:
    """Return what the loss to `other` is multiplied by: the seconds beside it, less where it shares
    them with further lanes. `losses` are those of the round before.
    """
    found = 0.0
    for busy, seconds in each.beside:
        if other in busy:
            single = sum(losses[lane] for lane in busy if lane in losses)
            found += seconds * (lost_part(busy, losses) / single if single > 0 else 1.0)
    return found


def cores_of(facts: TraceFacts, fits: Mapping[Lane, Fit]) -> dict[Lane, float]:
    """Return how many cores of its host each lane keeps busy while nothing slows it down.

    They are fitted to the CPU time of the workers, which older traces do not have.
    """
    rows, used = [], []
    for worker in sorted({each.worker for each in facts.observations}):
        own = [each for each in facts.observations if each.worker == worker]
        for first, last in spaced([each for each in facts.cpu if each.worker == worker]):
            rows.append([work_within(own, lane, fits, first.time, last.time) for lane in fits])
            used.append(last.seconds - first.seconds)
    if len(rows) < LEAST:
        return {}
    found = nonnegative_least_squares(np.array(rows), np.array(used))
    return {lane: float(each) for lane, each in zip(fits, found, strict=True) if each > 0}


def spaced(uses: Sequence[CpuUse]) -> Iterator[tuple[CpuUse, CpuUse]]:
    """Yield the ends of intervals of at least CPU_SECONDS."""
    first = None
    for use in uses:
        if first is None:
            first = use
        elif use.time - first.time >= CPU_SECONDS:
            yield first, use
            first = use


def work_within(
    observations: Sequence[Observation],
    lane: Lane,
    fits: Mapping[Lane, Fit],
    start: float,
    end: float,
) -> float:
    """Return the seconds of work of a lane in an interval: those that it would have taken alone."""
    found = 0.0
    for each in observations:
        within = min(end, each.end) - max(start, each.start)
        if each.lane == lane and within > 0:
            found += within * (1 - lost_seconds(each, fits[lane].losses) / each.seconds)
    return found


def matrix(observations: Sequence[Observation], features: Features) -> Array:
    return np.array([features(each) for each in observations])
