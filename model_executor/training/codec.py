"""The principal components of pixel blocks: a linear codec that the VAE starts from.

A block is 8 x 8 pixels of four frames. The first frame of a chunk is a block of its own, as in the
causal VAE: it is repeated four times.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helios_serve.model_config import CHUNK_FRAMES, CHUNK_LATENTS, LATENT_CHANNELS, LATENT_STRIDE
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.state_file import load_state, save_state
from helios_serve.model_executor.training.world.renderer import render
from helios_serve.model_executor.training.world.scene import draw_clip

GROUP = 4
"""Frames of a latent frame."""
BLOCK = GROUP * LATENT_STRIDE * LATENT_STRIDE * 3
SPREAD = 1 / 3
"""Channels have a standard deviation in proportion to this power of their component's. At 0 all
would be equal, and noise would hide large structures as late as fine ones."""


class Codec(NamedTuple):
    """The codec: `mean` (768,), `components` (16, 768), orthonormal, and `scale` (16,)."""

    mean: Tensor
    components: Tensor
    scale: Tensor

    def encode(self, frames: Tensor) -> Tensor:
        """RGB frames (..., 33, height, width, 3), uint8 -> latents (..., 16, 9, h, w)."""
        return ((blocks_of(frames) - self.mean) @ self.components.T * self.scale).movedim(-1, -4)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (..., 16, 9, h, w) -> RGB frames (..., 33, height, width, 3), uint8."""
        rows = latents.movedim(-4, -1) / self.scale @ self.components + self.mean
        frames = frames_of(rows)
        return ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def blocks_of(frames: Tensor) -> Tensor:
    """RGB frames (..., 33, height, width, 3), uint8 -> blocks (..., 9, h, w, 768) in -1 to 1."""
    scaled = frames.float() / 127.5 - 1
    first = scaled[..., :1, :, :, :].expand(*scaled.shape[:-4], GROUP - 1, *scaled.shape[-3:])
    whole = torch.cat([first, scaled], dim=-4)
    *lead, _, height, width, _ = whole.shape
    rows, cols = height // LATENT_STRIDE, width // LATENT_STRIDE
    split = whole.reshape(-1, CHUNK_LATENTS, GROUP, rows, LATENT_STRIDE, cols, LATENT_STRIDE, 3)
    blocks = split.permute(0, 1, 3, 5, 2, 4, 6, 7)
    return blocks.reshape(*lead, CHUNK_LATENTS, rows, cols, BLOCK)


def frames_of(blocks: Tensor) -> Tensor:
    """The reverse of `blocks_of`, in -1 to 1; the first frame is the mean of its four copies."""
    *lead, latents, rows, cols, _ = blocks.shape
    split = blocks.reshape(-1, latents, rows, cols, GROUP, LATENT_STRIDE, LATENT_STRIDE, 3)
    whole = split.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(
        *lead, latents * GROUP, rows * LATENT_STRIDE, cols * LATENT_STRIDE, 3
    )
    first = whole[..., :GROUP, :, :, :].mean(dim=-4, keepdim=True)
    return torch.cat([first, whole[..., GROUP:, :, :, :]], dim=-4)


def fit_codec(videos: Iterable[NDArray[np.uint8]]) -> Codec:
    """Fit the codec to chunks of 33 frames, (33, height, width, 3) each."""
    count = 0
    total = torch.zeros(BLOCK, dtype=torch.float64)
    products = torch.zeros(BLOCK, BLOCK, dtype=torch.float64)
    for video in videos:
        rows = blocks_of(torch.from_numpy(video)).flatten(0, -2)
        count += len(rows)
        total += rows.sum(dim=0, dtype=torch.float64)
        products += (rows.T @ rows).double()
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    components = vectors.flip(1)[:, :LATENT_CHANNELS].T
    # The sign of an eigenvector is arbitrary; fix it, so that a refit gives the same latents.
    components = components * components.sum(dim=1, keepdim=True).sign()
    deviation = values.flip(0)[:LATENT_CHANNELS].sqrt()
    spread = deviation**SPREAD
    spread = spread / spread.square().mean().sqrt()
    return Codec(mean.float(), components.float().contiguous(), (spread / deviation).float())


def make_codec(recipe: Recipe, path: Path) -> Codec:
    """Load the codec of a training, or fit it to random clips and save it."""
    if path.exists():
        return Codec(**load_state(path).tensors)
    rng = np.random.default_rng([recipe.seed, 1])
    codec = fit_codec(
        render(
            draw_clip(rng, recipe.grammar, chunks=1, size=recipe.size), CHUNK_FRAMES, recipe.size
        )
        for _ in range(recipe.codec_clips)
    )
    save_state(path, codec._asdict(), {})
    return codec


def psnr(got: Tensor, expected: Tensor) -> float:
    """Return the peak signal-to-noise ratio of uint8 pixels in dB."""
    error = (got.float() - expected.float()).square().mean()
    return float(10 * torch.log10(255.0**2 / error.clamp(min=1e-6)))
