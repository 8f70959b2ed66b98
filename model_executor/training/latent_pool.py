"""The latents of many clips, computed in advance in a memory map: training renders nothing."""

import math
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from helios_serve.errors import CheckpointError
from helios_serve.logger import logger
from helios_serve.model_config import CHUNK_FRAMES, CHUNK_LATENTS, LATENT_CHANNELS
from helios_serve.model_executor.training.codec import Codec
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.world.renderer import render
from helios_serve.model_executor.training.world.scene import Clip, Scene, draw_clip

REPORT_EVERY = 500
"""Clips between two lines of the log."""


class ClipBatch(NamedTuple):
    """Latents (batch, 16, frames, h, w), and the scene of each chunk of each clip."""

    latents: Tensor
    scenes: list[tuple[Scene, ...]]


class LatentPool:
    """The clips of a training: latents in float16, and their scenes.

    `latents` is (clips, chunks, 16, 9, h, w).
    """

    def __init__(self, latents: NDArray[np.float16], clips: list[Clip]) -> None:
        self.latents = latents
        self.clips = clips

    def draw(self, rng: Generator, count: int) -> ClipBatch:
        """Draw clips, each shifted sideways by whole latent pixels: the world is a torus."""
        chosen = rng.integers(len(self.clips), size=count)
        shifts = rng.integers(self.latents.shape[-1], size=count)
        rows = [
            np.roll(self.latents[clip], shift, axis=-1)
            for clip, shift in zip(chosen, shifts, strict=True)
        ]
        latents = torch.from_numpy(np.stack(rows)).float()
        return ClipBatch(
            latents.transpose(1, 2).flatten(2, 3), [self.clips[clip].scenes for clip in chosen]
        )


def open_halves(path: Path, shape: tuple[int, ...], what: str = "") -> np.memmap:
    """Map a file of float16 values, which is created if it is missing.

    Raises CheckpointError for a file of another size. `what` is added to the expected size in the
    message.
    """
    num_bytes = math.prod(shape) * np.dtype(np.float16).itemsize
    if not path.exists():
        with path.open("wb") as file:
            file.truncate(num_bytes)
    if path.stat().st_size != num_bytes:
        raise CheckpointError(
            f"{path}: got {path.stat().st_size} bytes, expected {num_bytes}{what}: "
            "delete the folder to create it again"
        )
    return np.memmap(path, dtype=np.float16, mode="r+", shape=shape)


def make_pool(recipe: Recipe, codec: Codec, folder: Path) -> LatentPool:
    """Open the pool of a training, or make it; an interrupted one resumes where it stopped.

    Raises CheckpointError for files that do not fit the recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, names = folder / "latents.float16", folder / "clips.json"
    height, width = recipe.geometry.latent_size
    shape = (recipe.clips, recipe.chunks, LATENT_CHANNELS, CHUNK_LATENTS, height, width)
    what = f" for {recipe.clips} clips of {recipe.chunks} chunks"
    latents = open_halves(path, shape, what)
    clips = read_clips(names) if names.exists() else []
    if len(clips) > recipe.clips:
        raise CheckpointError(f"{names}: got {len(clips)} clips, expected {recipe.clips}")
    while len(clips) < recipe.clips:
        index = len(clips)
        clip = pool_clip(recipe, index)
        frames = render(clip, CHUNK_FRAMES * recipe.chunks, recipe.size)
        chunks = torch.from_numpy(frames).view(recipe.chunks, CHUNK_FRAMES, *frames.shape[1:])
        latents[index] = codec.encode(chunks).half().numpy()
        clips.append(clip)
        if len(clips) % REPORT_EVERY == 0 or len(clips) == recipe.clips:
            latents.flush()
            names.write_bytes(msgspec.json.encode(clips))
            logger.info("pool: %d of %d clips", len(clips), recipe.clips)
    return LatentPool(latents, clips)


def pool_clip(recipe: Recipe, index: int) -> Clip:
    """Return clip `index` of the pool."""
    rng = np.random.default_rng([recipe.seed, 2, index])
    return draw_clip(rng, recipe.grammar, chunks=recipe.chunks, size=recipe.size)


def read_clips(path: Path) -> list[Clip]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Clip])
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
