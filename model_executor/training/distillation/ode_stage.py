"""ODE regression: the student learns to reach the teacher's result in few steps.

The teacher's sampler maps noise to a result without randomness. The student learns the straight
line between both ends of each stage, at the very levels that its own schedule visits.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from helios_serve.model_config import Geometry, HeliosConfig
from helios_serve.model_executor.models.helios.embeddings import make_rope
from helios_serve.model_executor.models.helios.schedule import denoise_schedule
from helios_serve.model_executor.training.codec import Codec
from helios_serve.model_executor.training.contact_sheet import write_sheet
from helios_serve.model_executor.training.dense import dense_forward
from helios_serve.model_executor.training.distillation.teacher_pairs import PairPool
from helios_serve.model_executor.training.nano_model import NanoModel, variant_config
from helios_serve.model_executor.training.optimizer import Optimizer, rate_scale
from helios_serve.model_executor.training.probe import Probe, measure_probe
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.windows import window_patches

STUDENT_STEPS = (2, 2, 2)
FEWEST_STEPS = (1, 1, 1)
COUNTS = ((2, 0.7), (1, 0.15), (4, 0.15))
"""Steps per stage that the student is trained for, and their shares. Four is an amplified first
chunk."""


class Level(NamedTuple):
    """A point of the student's schedule: its timestep, and the weight of the stage's start."""

    timestep: float
    sigma: float


class OdeStage:
    """Trains a student, which starts as the teacher, on pairs of the teacher's."""

    name = "ode"

    def __init__(
        self, recipe: Recipe, pairs: PairPool, codec: Codec, start: dict[str, Tensor]
    ) -> None:
        self.recipe = recipe
        self.steps = recipe.steps.ode
        self.pairs = pairs
        self.codec = codec
        self.model = NanoModel(recipe)
        self.model.load_state_dict(start, strict=False)
        self.config = variant_config("distilled", self.model.transformer.config)
        self.levels = student_levels(self.config, recipe.geometry)
        self.optimizer = Optimizer(
            self.model, muon_rate=recipe.muon_rate / 2, adam_rate=recipe.adam_rate / 2
        )

    def step(self, index: int) -> dict[str, float]:
        rng = np.random.default_rng([self.recipe.seed, 21, index])
        pairs = self.pairs.batch(int(rng.integers(len(self.pairs))))
        text = self.model.encode(pairs.captions)
        history = window_patches(pairs.window)
        losses = []
        for stage, (start, end) in enumerate(pairs.stages):
            chosen = [draw_level(rng, self.levels[stage]) for _ in pairs.captions]
            sigmas = torch.tensor([level.sigma for level in chosen]).view(-1, 1, 1)
            rope = make_rope(
                self.model.transformer.config, self.recipe.geometry, stage, 3, start.device
            )
            flow = dense_forward(
                self.model.transformer,
                history,
                end + sigmas * (start - end),
                torch.tensor([level.timestep for level in chosen]),
                text,
                rope,
            )
            target = start - end
            losses.append((flow - target).square().mean() / target.var())
        torch.autograd.backward(torch.stack(losses).sum())
        norm = self.optimizer.step(index, rate_scale(index, self.steps, self.recipe.warm_up))
        parts = [float(loss.detach()) for loss in losses]
        by_stage = {f"loss{stage}": part for stage, part in enumerate(parts)}
        return {"loss": sum(parts) / len(parts), **by_stage, "norm": norm}

    def tensors(self) -> dict[str, Tensor]:
        return self.optimizer.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.optimizer.restore(tensors)

    def sheet(self, path: Path) -> dict[str, float]:
        return student_sheet(path, self.recipe, self.optimizer.average, self.codec)


def student_levels(config: HeliosConfig, geometry: Geometry) -> list[list[list[Level]]]:
    """Return the points of the product's schedules by stage and by entry of COUNTS."""
    schedules = [denoise_schedule(config, geometry, (count,) * 3) for count, _ in COUNTS]
    return [
        [[Level(step.timestep, step.sigma) for step in plan[stage].steps] for plan in schedules]
        for stage in range(3)
    ]


def draw_level(rng: np.random.Generator, plans: list[list[Level]]) -> Level:
    """Draw a schedule by its share, then one of its points."""
    plan = plans[int(rng.choice(len(plans), p=[share for _, share in COUNTS]))]
    return plan[int(rng.integers(len(plan)))]


def student_sheet(
    path: Path, recipe: Recipe, weights: dict[str, Tensor], codec: Codec
) -> dict[str, float]:
    """Measure a student with two steps per stage, and with one; show the former."""
    model = NanoModel(recipe)
    model.load_state_dict(weights, strict=False)
    figures: dict[str, float] = {}
    for name, steps in (("one", FEWEST_STEPS), ("two", STUDENT_STEPS)):
        probe = Probe("distilled", steps, 1.0, recipe.probe_videos, 2)
        seen = measure_probe(model, recipe, probe, codec)
        figures |= {f"{name}_{key}": value for key, value in seen.figures.items()}
    write_sheet(path, seen.videos[:8], seen.captions[:8])
    return figures
