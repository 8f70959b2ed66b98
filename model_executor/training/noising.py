"""Noisy latents and their targets: flow matching at full resolution and in the pyramid."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.model_config import SamplerConfig
from helios_serve.model_executor.models.helios.schedule import (
    flow_sigmas,
    stage_index,
    stage_timesteps,
    stage_transition,
)


class StageRange(NamedTuple):
    """A stage of the pyramid: noise levels at its start and end, and its timesteps."""

    start: float
    end: float
    low: float
    high: float


class Noised(NamedTuple):
    """Noisy latents (batch, 16, 9, h, w), the flow to predict, and the timesteps (batch,)."""

    latents: Tensor
    flow: Tensor
    timesteps: Tensor


class Endpoints(NamedTuple):
    """The latents at the start and the end of a stage."""

    start: Tensor
    end: Tensor


def stage_ranges(config: SamplerConfig) -> list[StageRange]:
    """Return the stages of a checkpoint's schedule. A model without a pyramid has one."""
    if config.stages == 1:
        return [StageRange(1.0, 0.0, 0.0, float(config.num_train_timesteps))]
    sigmas = flow_sigmas(config)
    ranges = []
    for stage, (low, high) in enumerate(stage_timesteps(config)):
        start = float(sigmas[stage_index(config, stage)])
        if stage:
            start = 1 - stage_transition(config, stage).signal * (1 - start)
        last = stage == config.stages - 1
        end = 0.0 if last else float(sigmas[stage_index(config, stage + 1)])
        ranges.append(StageRange(start, end, low, high))
    return ranges


def halved(latents: Tensor) -> Tensor:
    """Halve height and width: the mean of 2 x 2 latent pixels."""
    return F.avg_pool3d(latents, (1, 2, 2))


def doubled(latents: Tensor) -> Tensor:
    """Double height and width: each latent pixel becomes four."""
    return latents.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def at_stage(latents: Tensor, stage: int, stages: int) -> Tensor:
    """Return latents of full resolution at that of a stage, the last of which is the full one."""
    for _ in range(stages - 1 - stage):
        latents = halved(latents)
    return latents


def noise_at_stage(noise: Tensor, stage: int, stages: int) -> Tensor:
    """Return noise at the resolution of a stage, with the same variance."""
    scale: int = 2 ** (stages - 1 - stage)
    return at_stage(noise, stage, stages) * scale


def stage_endpoints(
    clean: Tensor, noise: Tensor, stage: int, stages: list[StageRange]
) -> Endpoints:
    """Return both ends of the straight path that a stage's flow follows.

    `clean` and `noise` are (batch, 16, 9, h, w) at full resolution. A stage starts from the
    upsampled clean latents of the stage before and ends with its own, both with the same noise
    (Pyramid Flow, arXiv 2410.05954, as Helios trains it).
    """
    clean = at_stage(clean, stage, len(stages))
    noise = noise_at_stage(noise, stage, len(stages))
    coarse = doubled(halved(clean)) if stage else clean
    own = stages[stage]
    return Endpoints(
        own.start * noise + (1 - own.start) * coarse, own.end * noise + (1 - own.end) * clean
    )


def noised(ends: Endpoints, levels: Tensor, stage: StageRange) -> Noised:
    """Return the latents at `levels` (batch,), 1 at the start of the stage and 0 at its end."""
    flow = ends.start - ends.end
    share = levels.view(-1, 1, 1, 1, 1)
    times = stage.low + levels * (stage.high - stage.low)
    return Noised(ends.end + share * flow, flow, times)


def draw_levels(generator: torch.Generator, count: int, mean: float, spread: float) -> Tensor:
    """Draw noise levels sigmoid(mean + spread * n): motion is decided at high noise."""
    return torch.sigmoid(mean + spread * torch.randn(count, generator=generator))
