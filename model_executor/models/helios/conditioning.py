"""Every random number of a session, drawn in the reference's order.

A session has one generator, on the CPU, and draws fp32 there: so a video never depends on the
device it is made on. The order is that of diffusers 0.42.1.
"""

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from helios_serve.model_config import (
    CHUNK_FRAMES,
    CHUNK_LATENTS,
    HISTORY_FRAMES,
    LATENT_CHANNELS,
    Geometry,
)
from helios_serve.model_executor.models.helios.samplers import patchify
from helios_serve.options.sampling import SamplingParams


class Posterior(NamedTuple):
    """The VAE's belief about some frames, before normalisation: (1, 16, latents, h, w) each."""

    mean: Tensor
    std: Tensor


class LatentSpace(Protocol):
    """What conditioning needs of a VAE."""

    def encode(self, frames: Tensor) -> Posterior:
        """RGB frames (frames, height, width, 3), uint8 -> the posterior of their latents."""
        ...

    def normalize(self, latents: Tensor) -> Tensor:
        """VAE latents -> the model's latents, fp32."""
        ...


class ChunkNoise(NamedTuple):
    """All noise of one chunk: the rows where stage 0 starts, and what enters each later stage.

    That is drawn independently, (channels, patches, 4), and correlated on the way in.
    """

    start: Tensor
    stages: tuple[Tensor, ...]

    def pin_memory(self) -> "ChunkNoise":
        """A copy that a device fetches while the host goes on."""
        stages = tuple(drawn.pin_memory() for drawn in self.stages)
        return ChunkNoise(self.start.pin_memory(), stages)


class HistorySeed(NamedTuple):
    """What I2V and V2V begin with: the anchor (16, 1, h, w) and history (16, n <= 19, h, w).

    `inputs` holds all noised input latents if they were asked for.
    """

    anchor: Tensor
    frames: Tensor
    inputs: Tensor | None


def block_noise_factor(gamma: float) -> Tensor:
    """L with L L^T = (1 + gamma) I - gamma 11^T over the four pixels of a patch, in fp32.

    The matrix is exactly singular at the published gamma of 1/3: a patch's noise sums to zero. An
    fp32 Cholesky fails there, so this one runs in fp64 and takes the vanishing pivot as 0.
    """
    size = 4
    factor = [[0.0] * size for _ in range(size)]
    for row in range(size):
        for col in range(row + 1):
            known = sum(factor[row][k] * factor[col][k] for k in range(col))
            if row == col:
                factor[row][col] = math.sqrt(max(1 - known, 0.0))
            else:
                factor[row][col] = (-gamma - known) / factor[col][col]
    return torch.tensor(factor, dtype=torch.float32)


def draw_chunk_noise(generator: Generator, geometry: Geometry, stages: int) -> ChunkNoise:
    """The noise of the next chunk: full resolution first, then a block noise for each stage."""
    height, width = geometry.latent_size
    noise = torch.randn(1, LATENT_CHANNELS, CHUNK_LATENTS, height, width, generator=generator)[0]
    frames = noise.transpose(0, 1)
    for _ in range(stages - 1):
        height, width = height // 2, width // 2
        frames = F.interpolate(frames, size=(height, width), mode="bilinear") * 2
    return ChunkNoise(
        patchify(frames.transpose(0, 1)),
        tuple(
            draw_block_noise(generator, geometry.noise_tokens(stage, stages))
            for stage in range(1, stages)
        ),
    )


def draw_block_noise(generator: Generator, patches: int) -> Tensor:
    """Independent noise for the four pixels of each channel's patches: (channels, patches, 4)."""
    drawn = torch.randn(LATENT_CHANNELS * patches, 4, generator=generator)
    return drawn.view(LATENT_CHANNELS, patches, 4)


def seed_from_image(
    image: Tensor, space: LatentSpace, generator: Generator, params: SamplingParams
) -> HistorySeed:
    """I2V: the image is the anchor; the last latent of it standing still is the newest frame.

    `image` is (1, height, width, 3), uint8.
    """
    anchor = sample(space, space.encode(image), generator)
    still = sample(space, space.encode(image.expand(CHUNK_FRAMES, -1, -1, -1)), generator)[:, -1:]
    if params.add_input_noise:
        anchor = mix_noise(anchor, draw_sigma(params.image_noise_sigma, 1, generator), generator)
        still = mix_noise(still, draw_sigma(params.video_noise_sigma, 1, generator), generator)
    return HistorySeed(anchor, still, still)


def seed_from_video(
    video: Tensor,
    space: LatentSpace,
    generator: Generator,
    params: SamplingParams,
    *,
    keep_inputs: bool,
    skipped: int = 0,
) -> HistorySeed:
    """V2V: the first frame is the anchor; the last 19 latents of the video are the history.

    `video` is (frames, height, width, 3), uint8, less the `skipped` frames behind its first one. It
    is encoded in chunks of 33 frames, counted from its end. Chunks that the history does not reach
    are encoded only for `keep_inputs`, but draw their random numbers all the same.
    """
    assert not (keep_inputs and skipped), "all of the video is asked for, and it is not there"
    count = (len(video) + skipped) // CHUNK_FRAMES
    first_kept = 0 if keep_inputs else max(0, count - -(-HISTORY_FRAMES // CHUNK_LATENTS))
    anchor = sample(space, space.encode(video[:1]), generator)
    shape = (1, LATENT_CHANNELS, CHUNK_LATENTS, *anchor.shape[-2:])
    chunks = []
    for index in range(count):
        if index < first_kept:
            torch.randn(shape, generator=generator)
        else:
            start = len(video) - (count - index) * CHUNK_FRAMES
            posterior = space.encode(video[start : start + CHUNK_FRAMES])
            chunks.append(sample(space, posterior, generator))
    if params.add_input_noise:
        anchor = mix_noise(anchor, draw_sigma(params.image_noise_sigma, 1, generator), generator)
        for index in range(count):
            sigma = draw_sigma(params.video_noise_sigma, CHUNK_LATENTS, generator)
            if index < first_kept:
                torch.randn(shape, generator=generator)
            else:
                kept = index - first_kept
                chunks[kept] = mix_noise(chunks[kept], sigma, generator)
    latents = torch.cat(chunks, dim=1)
    return HistorySeed(anchor, latents[:, -HISTORY_FRAMES:], latents if keep_inputs else None)


def sample(space: LatentSpace, posterior: Posterior, generator: Generator) -> Tensor:
    """One draw of the model's latents: (16, latents, h, w), fp32 on the CPU."""
    mean, std = posterior
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
    return space.normalize(mean + std * noise)[0].float().cpu()


def draw_sigma(bounds: tuple[float, float], count: int, generator: Generator) -> Tensor:
    """`count` noise levels, uniform within `bounds`."""
    low, high = bounds
    return torch.rand(count, generator=generator) * (high - low) + low


def mix_noise(latents: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """sigma * noise + (1 - sigma) * latents, one sigma for each frame or one for all."""
    noise = torch.randn((1, *latents.shape), generator=generator)[0]
    level = sigma.view(1, -1, 1, 1)
    return level * noise + (1 - level) * latents
