"""Pairs of noise and result of the teacher's sampler, computed in advance in a memory map.

The teacher is autoregressive: it continues real histories, damaged as in training (teacher
forcing), and then its own chunks. The pairs are what ODE regression learns from.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from helios_serve.errors import CheckpointError
from helios_serve.logger import logger
from helios_serve.model_config import PATCH_DIM, WINDOW_FRAMES
from helios_serve.model_executor.models.helios.conditioning import draw_chunk_noise
from helios_serve.model_executor.training.flow_stage import draw_batch
from helios_serve.model_executor.training.latent_pool import LatentPool, open_halves
from helios_serve.model_executor.training.nano_model import NanoModel, variant_config
from helios_serve.model_executor.training.noising import Endpoints
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.rollout import Rollout, both
from helios_serve.model_executor.training.windows import full_window

STAGES = 3
CHAINED = 2
"""Chunks that the teacher makes after each other from one history."""
REPORT_EVERY = 20


class Pairs(NamedTuple):
    """Windows (batch, 16, 20, h, w), captions, and both ends of each stage as latent rows."""

    window: Tensor
    captions: list[str]
    stages: list[Endpoints]


class PairPool:
    """The pairs of a training, in batches: float16, one row of numbers per sample."""

    def __init__(
        self, rows: NDArray[np.float16], captions: list[list[str]], recipe: Recipe
    ) -> None:
        self.rows = rows
        self.captions = captions
        self.recipe = recipe

    def batch(self, index: int) -> Pairs:
        """Return a batch; the sizes of its parts follow from the recipe."""
        numbers = torch.from_numpy(np.array(self.rows[index])).float()
        sizes = part_sizes(self.recipe)
        window, *ends = torch.split(numbers, sizes, dim=1)
        height, width = self.recipe.geometry.latent_size
        rows = [part.view(len(part), -1, PATCH_DIM) for part in ends]
        return Pairs(
            window.view(len(window), -1, WINDOW_FRAMES, height, width),
            self.captions[index],
            [Endpoints(*rows[2 * stage : 2 * stage + 2]) for stage in range(STAGES)],
        )

    def __len__(self) -> int:
        return len(self.captions)


def part_sizes(recipe: Recipe) -> list[int]:
    """Return how many numbers of a sample are its window, and each end of each stage."""
    height, width = recipe.geometry.latent_size
    sizes = [16 * WINDOW_FRAMES * height * width]
    for stage in range(STAGES):
        sizes += [recipe.geometry.noise_tokens(stage, STAGES) * PATCH_DIM] * 2
    return sizes


def make_pairs(recipe: Recipe, pool: LatentPool, teacher: NanoModel, folder: Path) -> PairPool:
    """Open the pairs of a training, or make them; an interrupted run resumes where it stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    path, names = folder / "pairs.float16", folder / "captions.jsonl"
    shape = (recipe.pair_batches, recipe.batch, sum(part_sizes(recipe)))
    rows = open_halves(path, shape)
    captions = read_captions(names)
    captions = captions[: len(captions) // CHAINED * CHAINED]
    write_captions(names, captions)
    while len(captions) < recipe.pair_batches:
        for pairs in teach(recipe, pool, teacher, len(captions)):
            if len(captions) == recipe.pair_batches:
                break
            parts = [pairs.window, *(end for ends in pairs.stages for end in ends)]
            rows[len(captions)] = torch.cat([part.flatten(1) for part in parts], 1).half().numpy()
            captions.append(pairs.captions)
        rows.flush()
        write_captions(names, captions)
        if len(captions) % REPORT_EVERY == 0:
            logger.info("pairs: %d of %d batches", len(captions), recipe.pair_batches)
    return PairPool(rows, captions, recipe)


@torch.no_grad()
def teach(recipe: Recipe, pool: LatentPool, teacher: NanoModel, index: int) -> list[Pairs]:
    """Let the teacher generate `CHAINED` chunks of a batch; `index` seeds it."""
    rng = np.random.default_rng([recipe.seed, 20, index])
    batch = draw_batch(rng, pool, recipe, always_captioned=True)
    rollout = Rollout(
        teacher,
        variant_config("mid", teacher.transformer.config),
        recipe.geometry,
        seeds=[0],
        steps=recipe.teacher_steps,
        guidance=recipe.guidance,
        zero_init=0,  # too few steps to zero any of them
    )
    text = both(teacher.encode(batch.captions), teacher.encode([""] * recipe.batch))
    window, past, pairs = batch.window, batch.window[:, :, 1:], []
    for _ in range(CHAINED):
        generators = [Generator().manual_seed(int(rng.integers(2**62))) for _ in batch.captions]
        noises = [draw_chunk_noise(source, recipe.geometry, STAGES) for source in generators]
        path: list[Endpoints] = []
        latents = rollout.denoise(window, text, noises, path=path)
        pairs.append(Pairs(window, batch.captions, path))
        past = torch.cat([past, latents], dim=2)
        anchors = window[:, :, :1]
        is_first = anchors.abs().amax(dim=(1, 2, 3, 4), keepdim=True) == 0
        window = full_window(past, torch.where(is_first, latents[:, :, :1], anchors))
    return pairs


def read_captions(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def write_captions(path: Path, captions: list[list[str]]) -> None:
    path.write_text("".join(json.dumps(batch) + "\n" for batch in captions))
