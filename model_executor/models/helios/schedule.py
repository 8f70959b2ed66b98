"""Denoise schedules as pure functions of checkpoint, parameters and size.

A schedule is computed once, in fp64, and indexed by the cursor; nothing in it ever changes. The
formulas are those of HeliosScheduler and HeliosDMDScheduler in diffusers 0.42.1, which keep them
in mutable scheduler objects.
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
LAST_RATIO = 0.9999999999999999


class Transition(NamedTuple):
    """Entering a stage: latents = signal * upsampled + noise * block noise."""

    signal: float
    noise: float


class DenoiseStep(NamedTuple):
    """One step of one stage.

    `timestep` is what the model is given, `sigma` the noise level that turns its flow into x0.
    `next_sigma` is the level the sample moves to; None after the last step of DMD, whose x0 is the
    sample. `skip_forward` marks a zero-init step, whose flow is zero by definition. `unipc` holds
    that solver's weights.
    """

    solver: Literal["unipc", "euler", "dmd"]
    timestep: float
    sigma: float
    next_sigma: float | None
    skip_forward: bool
    unipc: UniPCStep | None


class StageSchedule(NamedTuple):
    transition: Transition | None
    steps: tuple[DenoiseStep, ...]


@lru_cache(maxsize=256)
def denoise_schedule(
    config: HeliosConfig,
    geometry: Geometry,
    stage_steps: tuple[int, ...],
    zero_init_steps: int = 0,
) -> tuple[StageSchedule, ...]:
    """The steps of one chunk, stage by stage.

    `stage_steps` counts the steps of each stage, an amplified first chunk's doubling included.
    The first `zero_init_steps` steps of stage 0 are zero-init steps.
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
    """The token count behind mu: that of the PREVIOUS stage, which is how the models were made."""
    return geometry.noise_tokens(max(stage - 1, 0), stages)


def shift_mu(config: SamplerConfig, tokens: int) -> float:
    span = config.max_image_seq_len - config.base_image_seq_len
    slope = (config.max_shift - config.base_shift) / span
    return tokens * slope + (config.base_shift - slope * config.base_image_seq_len)


def stage_transition(config: SamplerConfig, stage: int) -> Transition:
    """Coefficients that keep the flow continuous across the upsampling into `stage`."""
    sigma = flow_sigmas(config)[stage_index(config, stage)]
    signal_left = 1 - sigma
    signal = 1 / (math.sqrt(1 + 1 / config.gamma) * (1 - signal_left) + signal_left)
    return Transition(signal, signal * (1 - signal_left) / math.sqrt(config.gamma))


def stage_schedule(
    config: SamplerConfig, stage: int, count: int, mu: float, zero_init_steps: int
) -> tuple[DenoiseStep, ...]:
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
    """Pyramids give the model whole timesteps, a single stage gives it fractional ones."""
    return [float(t if config.stages == 1 else int(t)) for t in timesteps]


def dmd_steps(timesteps: Floats, sigmas: Floats) -> tuple[DenoiseStep, ...]:
    """Steps of distribution matching: predict x0, then noise it again to the next level.

    The level of a step is that of the schedule's nearest point to its whole timestep.
    """
    whole = np.floor(timesteps)
    levels = [sigmas[np.argmin(np.abs(timesteps - t))].item() for t in whole]
    following = [*levels[1:], None]
    return tuple(
        DenoiseStep("dmd", t, sigma, next_sigma, skip_forward=False, unipc=None)
        for t, sigma, next_sigma in zip(whole.tolist(), levels, following, strict=True)
    )


def single_stage_points(config: SamplerConfig, count: int, mu: float) -> tuple[Floats, Floats]:
    """Timesteps (count) and sigmas (count + 1) of a checkpoint without a pyramid."""
    sigmas = np.append(np.linspace(FIRST_SIGMA, 0.0, count + 1)[:-1], 0.0)
    if config.use_dynamic_shifting:
        sigmas = shifted(config, mu, sigmas)
    return sigmas[:-1] * config.num_train_timesteps, sigmas


def pyramid_points(
    config: SamplerConfig, stage: int, count: int, mu: float
) -> tuple[Floats, Floats]:
    """Timesteps (count) and sigmas (count + 1) of one pyramid stage.

    DMD cuts the stage in one part more and drops its last point.
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
    """Dynamic shift: more steps at high noise for more tokens."""
    weight = math.exp(mu) if config.time_shift_type == "exponential" else mu
    with np.errstate(divide="ignore"):
        return weight / (weight + (1 / sigmas - 1))


def flow_sigmas(config: SamplerConfig) -> Floats:
    """The training grid, from sigma 0.999 down."""
    steps, shift = config.num_train_timesteps, config.shift
    sigmas = 1.0 - np.linspace(1, 1 / steps, steps + 1)
    return np.flip(shift * sigmas / (1 + (shift - 1) * sigmas))[:-1].copy()


def stage_index(config: SamplerConfig, stage: int) -> int:
    """Where a stage begins in the training grid."""
    steps = config.num_train_timesteps
    return min(max(int(config.stage_range[stage] * steps), 0), steps)


def stage_timesteps(config: SamplerConfig) -> list[tuple[float, float]]:
    """(lowest, highest) timestep of every stage: stages share the range by their flow's length."""
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
