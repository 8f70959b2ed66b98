"""The training of Base (one stage) and Mid (the pyramid) by flow matching on latent clips."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from helios_serve.model_config import (
    CHUNK_FRAMES,
    CHUNK_LATENTS,
    LATENT_CHANNELS,
    LATENT_STRIDE,
    Variant,
)
from helios_serve.model_executor.models.helios.embeddings import make_rope
from helios_serve.model_executor.training.codec import Codec
from helios_serve.model_executor.training.contact_sheet import write_sheet
from helios_serve.model_executor.training.dense import dense_forward
from helios_serve.model_executor.training.latent_pool import LatentPool
from helios_serve.model_executor.training.nano_model import NanoModel, variant_config
from helios_serve.model_executor.training.noising import (
    at_stage,
    draw_levels,
    noised,
    stage_endpoints,
    stage_ranges,
)
from helios_serve.model_executor.training.optimizer import Optimizer, rate_scale
from helios_serve.model_executor.training.probe import Probe, measure_probe
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.windows import (
    ablated,
    corrupt_window,
    draw_samples,
    patch_rows,
    window_patches,
)
from helios_serve.model_executor.training.world.captions import write_caption
from helios_serve.model_executor.training.world.palette import BACKGROUNDS, background_rows

LEVELS: dict[Variant, tuple[tuple[float, float], ...]] = {
    "base": ((0.8, 1.3),),
    "mid": ((0.5, 1.2), (0.3, 1.2), (0.3, 1.2)),
}
"""Mean and spread of the noise levels of each stage, before the sigmoid."""
OBJECT_DISTANCE = 4.0
"""Squared distance, over 16 channels, of an object's latent pixel from those of its background."""
PROBE_STEPS: dict[Variant, tuple[int, ...]] = {"base": (16,), "mid": (8, 8, 8)}


class FlowBatch(NamedTuple):
    """The training data of a step: history windows, the chunks that follow, and their captions.

    `backgrounds` are the names of the chunks' backgrounds. `offsets` are the first latent frames of
    the chunks, which only absolute RoPE uses.
    """

    window: Tensor
    target: Tensor
    captions: list[str]
    backgrounds: list[str]
    offsets: list[int]


class FlowStage:
    """Trains `model` as a variant. `start` holds weights to start from, those of Base for Mid."""

    def __init__(
        self,
        recipe: Recipe,
        variant: Literal["base", "mid"],
        pool: LatentPool,
        codec: Codec,
        *,
        start: dict[str, Tensor] | None = None,
    ) -> None:
        self.name: str = variant
        self.steps = getattr(recipe.steps, variant)
        self.recipe = recipe
        self.pool = pool
        self.codec = codec
        self.backgrounds = encoded_backgrounds(codec, recipe.height)
        self.model = NanoModel(recipe)
        if start is not None:
            self.model.load_state_dict(start, strict=False)
        self.config = variant_config(variant, self.model.transformer.config)
        self.ranges = stage_ranges(self.config.scheduler)
        self.optimizer = Optimizer(
            self.model, muon_rate=recipe.muon_rate, adam_rate=recipe.adam_rate
        )
        self._salt = 10 + ("base", "mid").index(variant)

    def step(self, index: int) -> dict[str, float]:
        rng = np.random.default_rng([self.recipe.seed, self._salt, index])
        generator = Generator().manual_seed(int(rng.integers(2**62)))
        batch = draw_batch(rng, self.pool, self.recipe)
        losses = self.losses(batch, generator)
        torch.autograd.backward(torch.stack(losses).sum())
        scale = rate_scale(index, self.steps, self.recipe.warm_up)
        norm = self.optimizer.step(index, scale)
        parts = [float(loss.detach()) for loss in losses]
        by_stage = {f"loss{stage}": part for stage, part in enumerate(parts)}
        return {"loss": sum(parts) / len(parts), **by_stage, "norm": norm}

    def losses(self, batch: FlowBatch, generator: Generator) -> list[Tensor]:
        """Return the loss of each stage over the variance of its flow, so that all count alike."""
        text = self.model.encode(batch.captions)
        history = window_patches(batch.window)
        noise = torch.randn(batch.target.shape, generator=generator)
        background = torch.stack([self.backgrounds[name] for name in batch.backgrounds])
        marks = near_objects(batch.target, background)
        losses = []
        for stage, own in enumerate(self.ranges):
            ends = stage_endpoints(batch.target, noise, stage, self.ranges)
            mean, spread = LEVELS[self.config.variant][stage]
            levels = draw_levels(generator, len(noise), mean, spread)
            made = noised(ends, levels, own)
            rope = make_rope(
                self.model.transformer.config,
                self.recipe.geometry,
                stage,
                len(self.ranges),
                noise.device,
            )
            flow = dense_forward(
                self.model.transformer,
                history,
                patch_rows(made.latents).flatten(1, 3),
                made.timesteps,
                text,
                rope,
                batch.offsets if self.recipe.ablation == "rope" else None,
            )
            error = flow - patch_rows(made.flow).flatten(1, 3)
            weights = object_weights(
                marks,
                self.recipe.object_weight,
                own.end + levels * (own.start - own.end),
                stage,
                len(self.ranges),
            )
            squares = patch_rows(weights).flatten(1, 3) * error.square()
            losses.append(squares.mean() / made.flow.var())
        return losses

    def tensors(self) -> dict[str, Tensor]:
        return self.optimizer.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.optimizer.restore(tensors)

    def sheet(self, path: Path) -> dict[str, float]:
        probe = Probe(
            variant=self.config.variant,
            steps=PROBE_STEPS[self.config.variant],
            guidance=self.recipe.guidance,
            videos=self.recipe.probe_videos,
            chunks=2,
        )
        model = NanoModel(self.recipe)
        model.load_state_dict(self.optimizer.average, strict=False)
        seen = measure_probe(model, self.recipe, probe, self.codec)
        write_sheet(path, seen.videos[:8], seen.captions[:8])
        return seen.figures


def near_objects(clean: Tensor, background: Tensor) -> Tensor:
    """Return 1 for latent pixels of objects and around them, else 0: (batch, 1, 9, h, w).

    `clean` is (batch, 16, 9, h, w); `background`, (batch, 16, 1, h, 1), has no objects. Pixels
    around an object are marked as well, so that the mark depends on its place and size but
    hardly on its shape: where the shape is not known yet, all shapes count alike.
    """
    distance = (clean - background).square().sum(dim=1, keepdim=True)
    marked = F.pad((distance > OBJECT_DISTANCE).float(), (1, 1, 1, 1, 0, 0), mode="circular")
    return F.max_pool3d(marked, (1, 3, 3), stride=1)


def encoded_backgrounds(codec: Codec, height: int) -> dict[str, Tensor]:
    """Return the latents of each background, which differ by row only: (16, 1, h, 1) each."""
    found = {}
    for name in BACKGROUNDS:
        rows = torch.from_numpy(background_rows(name, height)).round().to(torch.uint8)
        frames = rows[None, :, None].expand(CHUNK_FRAMES, height, LATENT_STRIDE, 3)
        found[name] = codec.encode(frames)[:, :1]
    return found


def object_weights(marks: Tensor, extra: float, noise: Tensor, stage: int, stages: int) -> Tensor:
    """Return the weight of each latent pixel of a stage in the loss: (batch, 16, 9, h, w), mean 1.

    It is 1 + `extra` * (1 - noise)^2 near objects. At high `noise` (batch,) their places are not
    known, and a higher weight would draw objects everywhere.
    """
    marks = at_stage(marks, stage, stages)
    weights = 1 + extra * (1 - noise.view(-1, 1, 1, 1, 1)).square() * marks
    return (weights / weights.mean()).expand(-1, LATENT_CHANNELS, -1, -1, -1)


def draw_batch(
    rng: np.random.Generator, pool: LatentPool, recipe: Recipe, *, always_captioned: bool = False
) -> FlowBatch:
    """Draw clips, the history that each is given, and captions: some are empty, for guidance."""
    missing = 0.0 if always_captioned else recipe.no_caption
    clips = pool.draw(rng, recipe.batch)
    sample = draw_samples(rng, clips.latents, recipe.history)
    scenes = [of_clip[chunk] for of_clip, chunk in zip(clips.scenes, sample.chunk, strict=True)]
    captions = ["" if rng.random() < missing else write_caption(rng, scene) for scene in scenes]
    window = ablated(sample.window, recipe.ablation)
    if recipe.ablation != "corrupt":
        window = corrupt_window(rng, window, recipe.corruption)
    offsets = [CHUNK_LATENTS * chunk for chunk in sample.chunk]
    backgrounds = [scene.background for scene in scenes]
    return FlowBatch(window, sample.target, captions, backgrounds, offsets)
