"""Denoise schedules as pure functions of the checkpoint, the parameters and the size.

A schedule is computed once, in fp64, and indexed by a session's cursor. The formulas are those of
HeliosScheduler and HeliosDMDScheduler in diffusers 0.42.1, which are stateful objects.
"""

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helios_serve.model_config import Geometry, HeliosConfig, SamplerConfig
from helios_serve.model_executor.models.helios.unipc import UniPCStep, unipc_steps

Floats = NDArray[np.float64]

FIRST_SIGMA = 0.999
"""Sigma of the first point of every grid."""
LAST_RATIO = 0.9999999999999999
"""End of the last stage as a share of the timesteps: below 1, to be a valid index into them."""


class Transition(NamedTuple):
    """Coefficients for entering a stage: latents = signal * upsampled + noise * block noise."""

    signal: float
    noise: float


class DenoiseStep(NamedTuple):
    """One denoise step of a stage.

    - `timestep`: the timestep that the transformer is given.
    - `sigma`: the noise level at which the flow is converted to x0.
    - `next_sigma`: the noise level after the step; None in the last step of DMD, which returns x0.
    - `skip_forward`: a zero-init step, whose flow is zero by definition.
    - `unipc`: the weights of the UniPC solver.
    """

    solver: Literal["unipc", "euler", "dmd"]
    timestep: float
    sigma: float
    next_sigma: float | None
    skip_forward: bool
    unipc: UniPCStep | None


class StageSchedule(NamedTuple):
    """The steps of a stage, and the transition into it; None for the first stage."""

    transition: Transition | None
    steps: tuple[DenoiseStep, ...]


@lru_cache(maxsize=256)
def denoise_schedule(
    config: HeliosConfig,
    geometry: Geometry,
    stage_steps: tuple[int, ...],
    zero_init_steps: int = 0,
) -> tuple[StageSchedule, ...]:
    """Return the steps of one chunk, stage by stage.

    `stage_steps` is the number of steps of each stage, already doubled for an amplified first
    chunk. The first `zero_init_steps` steps of stage 0 are zero-init steps.
    """
    scheduler = config.scheduler
    return tuple(
        StageSchedule(
            transition=stage_transition(scheduler, stage) if stage else None,
            steps=stage_schedule(
                scheduler,
                stage,
                count,
                shift_mu(scheduler, lagged_tokens(geometry, stage, scheduler.stages)),
                zero_init_steps if stage == 0 else 0,
            ),
        )
        for stage, count in enumerate(stage_steps)
    )


def lagged_tokens(geometry: Geometry, stage: int, stages: int) -> int:
    """Return the token count for `shift_mu`: that of the PREVIOUS stage, as in training."""
    return geometry.noise_tokens(max(stage - 1, 0), stages)


def shift_mu(config: SamplerConfig, tokens: int) -> float:
    """Return mu of the dynamic shift, which is linear in the number of tokens."""
    span = config.max_image_seq_len - config.base_image_seq_len
    slope = (config.max_shift - config.base_shift) / span
    return tokens * slope + (config.base_shift - slope * config.base_image_seq_len)


def stage_transition(config: SamplerConfig, stage: int) -> Transition:
    """Return the coefficients that keep the flow continuous across the upsampling into `stage`."""
    sigma = flow_sigmas(config)[stage_index(config, stage)]
    signal_left = 1 - sigma
    signal = 1 / (math.sqrt(1 + 1 / config.gamma) * (1 - signal_left) + signal_left)
    return Transition(signal, signal * (1 - signal_left) / math.sqrt(config.gamma))


def stage_schedule(
    config: SamplerConfig, stage: int, count: int, mu: float, zero_init_steps: int
) -> tuple[DenoiseStep, ...]:
    """Return the `count` steps of one stage."""
    if config.stages == 1:
        timesteps, sigmas = single_stage_points(config, count, mu)
    else:
        timesteps, sigmas = pyramid_points(config, stage, count, mu)
    if config.solver == "dmd":
        return dmd_steps(timesteps, sigmas)
    solver = unipc_steps(sigmas.tolist(), config) if config.solver == "unipc" else (None,) * count
    return tuple(
        DenoiseStep(
            solver=config.solver,
            timestep=timestep,
            sigma=sigma,
            next_sigma=next_sigma,
            skip_forward=index < zero_init_steps,
            unipc=coefficients,
        )
        for index, (timestep, sigma, next_sigma, coefficients) in enumerate(
            zip(
                model_timesteps(config, timesteps),
                sigmas[:-1].tolist(),
                sigmas[1:].tolist(),
                solver,
                strict=True,
            )
        )
    )


def model_timesteps(config: SamplerConfig, timesteps: Floats) -> list[float]:
    """Return the transformer's timesteps: truncated to integers, except with a single stage."""
    return [float(t if config.stages == 1 else int(t)) for t in timesteps]


def dmd_steps(timesteps: Floats, sigmas: Floats) -> tuple[DenoiseStep, ...]:
    """Return the steps of DMD, which predict x0 and then add noise up to the next level.

    The noise level of a step is that of the schedule's point nearest to its integer timestep.
    """
    whole = np.floor(timesteps)
    levels = [sigmas[np.argmin(np.abs(timesteps - t))].item() for t in whole]
    following = [*levels[1:], None]
    return tuple(
        DenoiseStep("dmd", t, sigma, next_sigma, skip_forward=False, unipc=None)
        for t, sigma, next_sigma in zip(whole.tolist(), levels, following, strict=True)
    )


def single_stage_points(config: SamplerConfig, count: int, mu: float) -> tuple[Floats, Floats]:
    """Return timesteps (count,) and sigmas (count + 1,) of a checkpoint without a pyramid."""
    sigmas = np.append(np.linspace(FIRST_SIGMA, 0.0, count + 1)[:-1], 0.0)
    if config.use_dynamic_shifting:
        sigmas = shifted(config, mu, sigmas)
    return sigmas[:-1] * config.num_train_timesteps, sigmas


def pyramid_points(
    config: SamplerConfig, stage: int, count: int, mu: float
) -> tuple[Floats, Floats]:
    """Return timesteps (count,) and sigmas (count + 1,) of one pyramid stage.

    DMD divides the stage into one more interval and drops its last point.
    """
    low, high = stage_timesteps(config)[stage]
    points = count + 1 if config.solver == "dmd" else count
    levels = np.linspace(FIRST_SIGMA, 0, config.num_train_timesteps + 1)[:-1]
    sigmas = np.append(np.linspace(levels[0], levels[-1], points)[:count], 0.0)
    timesteps = np.linspace(high, low, points)[:count]
    if config.use_dynamic_shifting:
        sigmas = shifted(config, mu, sigmas)
        timesteps = low + sigmas[:-1] * (high - low)
    return timesteps, sigmas


def shifted(config: SamplerConfig, mu: float, sigmas: Floats) -> Floats:
    """Apply the dynamic shift, which takes more steps at high noise for more tokens."""
    weight = math.exp(mu) if config.time_shift_type == "exponential" else mu
    with np.errstate(divide="ignore"):
        return weight / (weight + (1 / sigmas - 1))


def flow_sigmas(config: SamplerConfig) -> Floats:
    """Return the sigmas of the training grid, descending from 0.999."""
    steps, shift = config.num_train_timesteps, config.shift
    sigmas = 1.0 - np.linspace(1, 1 / steps, steps + 1)
    return np.flip(shift * sigmas / (1 + (shift - 1) * sigmas))[:-1].copy()


def stage_index(config: SamplerConfig, stage: int) -> int:
    """Return the index in the training grid at which a stage starts."""
    steps = config.num_train_timesteps
    return min(max(int(config.stage_range[stage] * steps), 0), steps)


def stage_timesteps(config: SamplerConfig) -> list[tuple[float, float]]:
    """Return the (lowest, highest) timestep of each stage, in proportion to its flow's length."""
    steps = config.num_train_timesteps
    sigmas = flow_sigmas(config)
    distances = []
    for stage in range(config.stages):
        start = sigmas[stage_index(config, stage)].item()
        stop_index = stage_index(config, stage + 1)
        stop = sigmas[stop_index].item() if stop_index < steps else 0.0
        if stage:
            start = 1 - stage_transition(config, stage).signal * (1 - start)
        distances.append(start - stop)
    total = sum(distances)
    timesteps = sigmas * steps
    spans = []
    for stage in range(config.stages):
        first = sum(distances[:stage]) / total
        last = sum(distances[: stage + 1]) / total
        if stage == config.stages - 1:
            last = LAST_RATIO
        high = min(timesteps[int(first * steps)].item(), 999)
        low = timesteps[min(int(last * steps), steps - 1)].item()
        grid = np.linspace(high, low, steps + 1)[:-1]
        spans.append((grid[-1].item(), grid[0].item()))
    return spans
