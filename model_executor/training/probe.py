"""A quick check of a model in training: generates, decodes and detects held-out captions."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helios_serve.model_config import Variant
from helios_serve.model_executor.training.codec import Codec
from helios_serve.model_executor.training.nano_model import NanoModel, variant_config
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.rollout import Rollout
from helios_serve.model_executor.training.world.captions import write_caption
from helios_serve.model_executor.training.world.detectors import Detection, detect
from helios_serve.model_executor.training.world.palette import SPEED
from helios_serve.model_executor.training.world.scene import Scene, draw_scene

Decoder = Callable[[Tensor], Tensor]
"""Latents (videos, 16, 9, h, w) -> RGB frames (videos, 33, height, width, 3), uint8."""


class Probe(NamedTuple):
    """What to generate: `videos` of `chunks` chunks, with `steps` per stage and guidance."""

    variant: Variant
    steps: tuple[int, ...]
    guidance: float
    videos: int
    chunks: int


class Seen(NamedTuple):
    """Generated videos (frames, height, width, 3), their captions, and shares of what is right."""

    videos: list[NDArray[np.uint8]]
    captions: list[str]
    figures: dict[str, float]


def measure_probe(
    model: NanoModel,
    recipe: Recipe,
    probe: Probe,
    codec: Codec,
    *,
    seed: int = 0,
    decode: Decoder | None = None,
) -> Seen:
    """Generate videos of held-out scenes and measure what they show."""
    rng = np.random.default_rng([recipe.seed, 3, seed])
    scenes = [draw_scene(rng, recipe.grammar, held_out=True, things=1) for _ in range(probe.videos)]
    captions = [write_caption(rng, scene) for scene in scenes]
    rollout = Rollout(
        model,
        variant_config(probe.variant, model.transformer.config),
        recipe.geometry,
        seeds=[int(number) for number in rng.integers(2**31, size=probe.videos)],
        steps=probe.steps,
        guidance=probe.guidance,
    )
    chunks = [rollout.next_chunk(captions) for _ in range(probe.chunks)]
    show = decode or codec.decode
    videos = list(torch.cat([show(chunk) for chunk in chunks], dim=1).numpy())
    return Seen(videos, captions, score(scenes, [detect(video) for video in videos]))


def score(scenes: list[Scene], found: list[Detection]) -> dict[str, float]:
    """Return the share of videos that show each part of their scene, and the mean speed."""
    pairs = [(scene, scene.things[0], seen) for scene, seen in zip(scenes, found, strict=True)]
    moving = [seen.speed for _, thing, seen in pairs if thing.motion != "still"]
    return {
        "background": share(seen.background == scene.background for scene, _, seen in pairs),
        "colour": share(seen.colour == thing.colour for _, thing, seen in pairs),
        "shape": share(seen.shape == thing.shape for _, thing, seen in pairs),
        "motion": share(seen.motion == thing.motion for _, thing, seen in pairs),
        "one_object": float(np.mean([seen.one_object for *_, seen in pairs])),
        "speed": float(np.mean(moving)) / SPEED if moving else 0.0,
    }


def share(hits: Iterable[bool]) -> float:
    return float(np.mean(list(hits)))
