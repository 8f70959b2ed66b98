"""Distribution matching with an adversarial term, after ODE regression.

The generator runs its six steps through the pyramid, with gradients through all of them. Base is
the real score, as in Helios: its flow covers all noise levels at full resolution. The critic starts
as Base and follows the generator's results; a head on its hidden tokens tells real latents from
generated ones (arXiv 2405.14867). In nano's world a history and a caption determine the chunk that
follows, so that the generator also regresses it where the history is real.
"""

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from helios_serve.kernels.rope import Rope
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
from helios_serve.model_executor.training.noising import draw_levels
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
REGRESSION_KNEE = 0.2
"""The error of a latent above which the regression is linear: far ones do not blur the rest."""


class Generated(NamedTuple):
    """Latents (batch, 16, 9, h, w) and what they follow. `known` (batch,) marks those whose true
    chunk is the batch's target: their history is real, and not empty."""

    batch: FlowBatch
    latents: Tensor
    known: Tensor


class Scores(NamedTuple):
    """Predictions of clean latents and logits of the adversary, for noisy latents."""

    clean: Tensor
    logits: Tensor


class Critic(nn.Module):
    """A copy of Base that follows the generator, with the adversary's head."""

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
        base: dict[str, Tensor],
    ) -> None:
        self.recipe = recipe = msgspec.structs.replace(recipe, batch=recipe.dmd_batch)
        self.steps = recipe.steps.dmd
        self.pool = pool
        self.codec = codec
        self.model = NanoModel(recipe)
        self.model.load_state_dict(student, strict=False)
        self.real = NanoModel(recipe).requires_grad_(False)
        self.real.load_state_dict(base, strict=False)
        self.critic = Critic(recipe, base)
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
        matching, adversarial = self.generator_losses(leaf, batch, torch_generator(rng))
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

    def generator_losses(
        self, latents: Tensor, batch: FlowBatch, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of distribution matching and the adversarial one."""
        noisy, levels = self.noised(latents, generator)
        with torch.no_grad():
            real = self.real_clean(noisy, levels, batch)
            fake = self.scores(noisy, levels, batch).clean
            size = (latents - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-3)
            direction = (fake - real) / size
        matching = 0.5 * (latents - (latents - direction).detach()).square().mean()
        adversarial = F.softplus(-self.scores(noisy, levels, batch).logits).mean()
        return matching, adversarial

    def train_critic(self, rng: np.random.Generator, index: int, scale: float) -> dict[str, float]:
        batch, latents, _ = self.generate(rng, with_gradient=False)
        generator = torch_generator(rng)
        noisy, levels = self.noised(latents, generator)
        fake = self.scores(noisy, levels, batch)
        flow_error = (fake.clean - latents) / levels.view(-1, 1, 1, 1, 1)
        following = flow_error.square().mean()
        real_noisy, real_levels = self.noised(batch.target, generator)
        real = self.scores(real_noisy, real_levels, batch)
        telling = F.softplus(fake.logits).mean() + F.softplus(-real.logits).mean()
        torch.autograd.backward(following + telling)
        self.critic_optimizer.step(index, scale)
        return {"critic": float(following.detach()), "telling": float(telling.detach())}

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

    def noised(self, latents: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return noisy latents and their levels (batch,), between 0.02 and 0.98."""
        levels = draw_levels(generator, len(latents), *CRITIC_LEVELS).clamp(0.02, 0.98)
        share = levels.view(-1, 1, 1, 1, 1)
        noise = torch.randn(latents.shape, generator=generator)
        return (1 - share) * latents + share * noise, levels

    def scores(self, noisy: Tensor, levels: Tensor, batch: FlowBatch) -> Scores:
        """Let the critic predict clean latents and judge whether they are real."""
        base = self.critic.base
        tokens = dense_tokens(
            base.transformer,
            window_patches(batch.window),
            patch_rows(noisy).flatten(1, 3),
            1000 * levels,
            base.encode(batch.captions),
            self.rope(noisy),
        )
        logits = self.critic.logit(self.critic.head(tokens.hidden).mean(dim=1))
        return Scores(self.clean(noisy, levels, tokens.flow), logits)

    def real_clean(self, noisy: Tensor, levels: Tensor, batch: FlowBatch) -> Tensor:
        """Return the clean latents that Base predicts, with guidance."""
        rows, rope = patch_rows(noisy).flatten(1, 3), self.rope(noisy)
        history = window_patches(batch.window)

        def flow(text: TextRows) -> Tensor:
            return dense_forward(self.real.transformer, history, rows, 1000 * levels, text, rope)

        with_text = flow(self.real.encode(batch.captions))
        without = flow(self.real.encode([""] * len(noisy)))
        guided = without + self.recipe.guidance * (with_text - without)
        return self.clean(noisy, levels, guided)

    def rope(self, noisy: Tensor) -> Rope:
        config = self.model.transformer.config
        return make_rope(config, self.recipe.geometry, 0, 1, noisy.device)

    def clean(self, noisy: Tensor, levels: Tensor, flow: Tensor) -> Tensor:
        rows = unpatch_rows(flow, self.recipe.geometry.patches)
        return noisy - levels.view(-1, 1, 1, 1, 1) * rows

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
