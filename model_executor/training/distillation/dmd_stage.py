"""Distribution matching with an adversarial term, after ODE regression or from Mid.

The generator runs its six steps through the pyramid, with gradients through all of them. The
teacher is the real score: Base, as in Helios, whose flow covers all noise levels at full
resolution, or Mid, whose stages cover them at three resolutions; then each step matches the
distributions at one of them. The critic starts as the teacher and follows the generator's results;
a head on its hidden tokens tells real latents from generated ones (arXiv 2405.14867). In nano's
world a history and a caption determine the chunk that follows, so that the generator also regresses
it where the history is real.
"""

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from helios_serve.kernels.rope import Rope
from helios_serve.model_config import Grid
from helios_serve.model_executor.models.helios.conditioning import draw_chunk_noise
from helios_serve.model_executor.models.helios.embeddings import make_rope
from helios_serve.model_executor.training.codec import Codec
from helios_serve.model_executor.training.dense import dense_forward, dense_tokens
from helios_serve.model_executor.training.distillation.ode_stage import (
    FEWEST_STEPS,
    STUDENT_STEPS,
    student_sheet,
)
from helios_serve.model_executor.training.flow_stage import FlowBatch, draw_batch
from helios_serve.model_executor.training.latent_pool import LatentPool
from helios_serve.model_executor.training.nano_model import NanoModel, variant_config
from helios_serve.model_executor.training.noising import (
    Noised,
    at_stage,
    draw_levels,
    noise_at_stage,
    noised,
    stage_endpoints,
    stage_ranges,
)
from helios_serve.model_executor.training.optimizer import Optimizer, part, rate_scale
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.rollout import Rollout
from helios_serve.model_executor.training.text_rows import TextRows
from helios_serve.model_executor.training.windows import (
    full_window,
    patch_rows,
    unpatch_rows,
    window_patches,
)

CRITIC_LEVELS = (0.5, 1.2)
RATE = 0.1
"""Learning rates of the generator, over those of the first training; the critic has twice these."""
FEWEST_SHARE = 0.25
"""The share of generated batches with one step per stage."""
LAST_STAGE_SHARE = 0.5
"""The share of steps that compare at the last stage of a teacher with a pyramid."""
REGRESSION_KNEE = 0.2
"""The error of a latent above which the regression is linear: far ones do not blur the rest."""


class Generated(NamedTuple):
    """Latents (batch, 16, 9, h, w) and what they follow. `known` (batch,) marks those whose true
    chunk is the batch's target: their history is real, and not empty."""

    batch: FlowBatch
    latents: Tensor
    known: Tensor


class View(NamedTuple):
    """Latents at a stage of the teacher: as they are, (batch, 16, 9, h, w), and noisy.

    `kept` is the noise that they still have at the end of the stage, times its level `end`.
    """

    stage: int
    clean: Tensor
    noisy: Noised
    levels: Tensor
    kept: Tensor
    end: float

    def predicted(self, flow: Tensor) -> Tensor:
        """Return the clean latents that a predicted flow, of the same shape, leads to."""
        at_end = self.noisy.latents - self.levels.view(-1, 1, 1, 1, 1) * flow
        return (at_end - self.kept) / (1 - self.end)


class Scores(NamedTuple):
    """Predictions of the flow of noisy latents, and logits of the adversary."""

    flow: Tensor
    logits: Tensor


class Critic(nn.Module):
    """A copy of the teacher that follows the generator, with the adversary's head."""

    def __init__(self, recipe: Recipe, start: dict[str, Tensor]) -> None:
        super().__init__()
        self.base = NanoModel(recipe)
        self.base.load_state_dict(start, strict=False)
        dim = self.base.transformer.config.inner_dim
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.SiLU())
        self.logit = nn.Linear(dim, 1)


class DmdStage:
    """Trains the generator and the critic in turn: `critic_steps` of the critic per step."""

    name = "dmd"

    def __init__(
        self,
        recipe: Recipe,
        pool: LatentPool,
        codec: Codec,
        *,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
    ) -> None:
        self.recipe = recipe = msgspec.structs.replace(recipe, batch=recipe.dmd_batch)
        self.steps = recipe.steps.dmd
        self.pool = pool
        self.codec = codec
        self.model = NanoModel(recipe)
        self.model.load_state_dict(student, strict=False)
        self.real = NanoModel(recipe).requires_grad_(False)
        self.real.load_state_dict(teacher, strict=False)
        self.critic = Critic(recipe, teacher)
        config = variant_config(recipe.teacher, self.model.transformer.config)
        self.ranges = stage_ranges(config.scheduler)
        rates = (recipe.muon_rate * RATE, recipe.adam_rate * RATE)
        self.optimizer = Optimizer(self.model, muon_rate=rates[0], adam_rate=rates[1])
        self.critic_optimizer = Optimizer(
            self.critic, muon_rate=2 * rates[0], adam_rate=2 * rates[1]
        )
        self.rollouts = [
            Rollout(
                self.model,
                variant_config("distilled", self.model.transformer.config),
                recipe.geometry,
                seeds=[0],
                steps=steps,
                recompute=recipe.low_memory,
            )
            for steps in (STUDENT_STEPS, FEWEST_STEPS)
        ]

    def step(self, index: int) -> dict[str, float]:
        rng = np.random.default_rng([self.recipe.seed, 22, index])
        scale = min(1.0, (index + 1) / self.recipe.warm_up)
        figures = {}
        for _ in range(self.recipe.critic_steps):
            figures = self.train_critic(rng, index, scale)
        falling = rate_scale(index, self.steps, self.recipe.warm_up)
        return self.train_generator(rng, index, falling) | figures

    def train_generator(
        self, rng: np.random.Generator, index: int, scale: float
    ) -> dict[str, float]:
        batch, latents, known = self.generate(rng, with_gradient=True)
        # The gradient of the latents first, so that the graphs of the scores and of the generator
        # are never in memory together.
        leaf = latents.detach().requires_grad_()
        view = self.view(leaf, self.draw_stage(rng), torch_generator(rng))
        matching, adversarial = self.generator_losses(view, batch)
        regression = regression_loss(leaf, batch.target, known)
        torch.autograd.backward(
            matching + self.recipe.adversarial * adversarial + self.recipe.regression * regression
        )
        assert leaf.grad is not None
        torch.autograd.backward(latents, leaf.grad)
        self.critic.zero_grad(set_to_none=True)
        norm = self.optimizer.step(index, scale)
        return {
            "loss": float(matching.detach()),
            "adversarial": float(adversarial.detach()),
            "regression": float(regression.detach()),
            "norm": norm,
        }

    def generator_losses(self, view: View, batch: FlowBatch) -> tuple[Tensor, Tensor]:
        """Return the loss of distribution matching and the adversarial one."""
        with torch.no_grad():
            real = view.predicted(self.real_flow(view, batch))
            fake = view.predicted(self.scores(view, batch).flow)
            size = (view.clean - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-3)
            direction = (fake - real) / size
        matching = 0.5 * (view.clean - (view.clean - direction).detach()).square().mean()
        adversarial = F.softplus(-self.scores(view, batch).logits).mean()
        return matching, adversarial

    def train_critic(self, rng: np.random.Generator, index: int, scale: float) -> dict[str, float]:
        batch, latents, _ = self.generate(rng, with_gradient=False)
        stage, generator = self.draw_stage(rng), torch_generator(rng)
        generated = self.view(latents, stage, generator)
        fake = self.scores(generated, batch)
        following = (fake.flow - generated.noisy.flow).square().mean()
        real = self.scores(self.view(batch.target, stage, generator), batch)
        telling = F.softplus(fake.logits).mean() + F.softplus(-real.logits).mean()
        torch.autograd.backward(following + telling)
        self.critic_optimizer.step(index, scale)
        return {"critic": float(following.detach()), "telling": float(telling.detach())}

    def draw_stage(self, rng: np.random.Generator) -> int:
        """Draw the stage of the teacher at which a step compares."""
        last = len(self.ranges) - 1
        return last if not last or rng.random() < LAST_STAGE_SHARE else int(rng.integers(last))

    def generate(self, rng: np.random.Generator, *, with_gradient: bool) -> Generated:
        """Generate the chunk after real history or, every other time, after a generated one."""
        batch = draw_batch(rng, self.pool, self.recipe, always_captioned=True)
        rollout = self.rollouts[int(rng.random() < FEWEST_SHARE)]
        known = batch.window.abs().amax(dim=(1, 2, 3, 4)) > 0
        with torch.no_grad():
            if rng.random() < self.recipe.own_history:
                known = torch.zeros_like(known)
                latents = self.denoise(rollout, batch, rng)
                past = torch.cat([batch.window[:, :, 1:], latents], dim=2)
                anchor = batch.window[:, :, :1]
                is_first = anchor.abs().amax(dim=(1, 2, 3, 4), keepdim=True) == 0
                anchor = torch.where(is_first, latents[:, :, :1], anchor)
                batch = batch._replace(window=full_window(past, anchor))
        with torch.set_grad_enabled(with_gradient):
            return Generated(batch, self.denoise(rollout, batch, rng), known)

    def denoise(self, rollout: Rollout, batch: FlowBatch, rng: np.random.Generator) -> Tensor:
        noises = [
            draw_chunk_noise(torch_generator(rng), self.recipe.geometry, 3) for _ in batch.captions
        ]
        return rollout.denoise(batch.window, self.model.encode(batch.captions), noises)

    def view(self, latents: Tensor, stage: int, generator: Generator) -> View:
        """Return latents (batch, 16, 9, h, w) at a stage, with levels between 0.02 and 0.98."""
        levels = draw_levels(generator, len(latents), *CRITIC_LEVELS).clamp(0.02, 0.98)
        noise = torch.randn(latents.shape, generator=generator)
        own = self.ranges[stage]
        made = noised(stage_endpoints(latents, noise, stage, self.ranges), levels, own)
        clean = at_stage(latents, stage, len(self.ranges))
        kept = own.end * noise_at_stage(noise, stage, len(self.ranges))
        return View(stage, clean, made, levels, kept, own.end)

    def scores(self, view: View, batch: FlowBatch) -> Scores:
        """Let the critic predict the flow and judge whether the latents are real."""
        base = self.critic.base
        tokens = dense_tokens(
            base.transformer,
            window_patches(batch.window),
            patch_rows(view.noisy.latents).flatten(1, 3),
            view.noisy.timesteps,
            base.encode(batch.captions),
            self.rope(view.stage),
        )
        logits = self.critic.logit(self.critic.head(tokens.hidden).mean(dim=1))
        return Scores(unpatch_rows(tokens.flow, self.grid(view.stage)), logits)

    def real_flow(self, view: View, batch: FlowBatch) -> Tensor:
        """Return the flow that the teacher predicts, with guidance."""
        rows, rope = patch_rows(view.noisy.latents).flatten(1, 3), self.rope(view.stage)
        history, times = window_patches(batch.window), view.noisy.timesteps

        def flow(text: TextRows) -> Tensor:
            return dense_forward(self.real.transformer, history, rows, times, text, rope)

        with_text = flow(self.real.encode(batch.captions))
        without = flow(self.real.encode([""] * len(batch.captions)))
        guided = without + self.recipe.guidance * (with_text - without)
        return unpatch_rows(guided, self.grid(view.stage))

    def rope(self, stage: int) -> Rope:
        config, device = self.model.transformer.config, torch.device("cpu")
        return make_rope(config, self.recipe.geometry, stage, len(self.ranges), device)

    def grid(self, stage: int) -> Grid:
        """Return the patches of a latent frame at a stage."""
        full = self.recipe.geometry.patches
        scale = 2 ** (len(self.ranges) - 1 - stage)
        return Grid(full.rows // scale, full.cols // scale)

    def tensors(self) -> dict[str, Tensor]:
        own = self.optimizer.tensors()
        return own | {
            f"critic.{name}": item for name, item in self.critic_optimizer.tensors().items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.optimizer.restore(tensors)
        self.critic_optimizer.restore(part(tensors, "critic"))

    def sheet(self, path: Path) -> dict[str, float]:
        return student_sheet(path, self.recipe, self.optimizer.average, self.codec)


def regression_loss(latents: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Return the mean distance of latents to the true ones where these are `known`, else 0."""
    error = F.smooth_l1_loss(latents, target, reduction="none", beta=REGRESSION_KNEE)
    return (error.mean(dim=(1, 2, 3, 4)) * known).mean()


def torch_generator(rng: np.random.Generator) -> Generator:
    return Generator().manual_seed(int(rng.integers(2**62)))
