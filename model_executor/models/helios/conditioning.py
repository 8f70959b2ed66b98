"""Draws the noise of a session and encodes its reference to the initial history.

Each session has one generator, on the CPU, and draws fp32 numbers in the order of diffusers 0.42.1.
The noise of a video therefore does not depend on the device.
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
    """The VAE's posterior of frames, before normalization: (1, 16, latent frames, h, w) each."""

    mean: Tensor
    std: Tensor


class LatentSpace(Protocol):
    """The methods of a VAE that conditioning uses."""

    def encode(self, frames: Tensor) -> Posterior:
        """RGB frames (frames, height, width, 3), uint8 -> posterior of their latents."""
        ...

    def normalize(self, latents: Tensor) -> Tensor:
        """Convert VAE latents to the latents of the transformer, in fp32."""
        ...


class ChunkNoise(NamedTuple):
    """The noise of one chunk, for all stages.

    `start` holds the latent rows at the start of stage 0, (patches, 64). `stages` holds the noise
    added on entering each later stage, (channels, patches, 4): the four pixels of each channel's
    patch, independent here and correlated by `block_noise_factor` when they are added.
    """

    start: Tensor
    stages: tuple[Tensor, ...]

    def pin_memory(self) -> "ChunkNoise":
        """Return a copy in pinned memory, from which a device copies asynchronously."""
        stages = tuple(drawn.pin_memory() for drawn in self.stages)
        return ChunkNoise(self.start.pin_memory(), stages)


class HistorySeed(NamedTuple):
    """The initial history of I2V and V2V: `anchor` (16, 1, h, w) and `frames` (16, n <= 19, h, w).

    `inputs` holds the noised latents of the whole reference, (16, latent frames, h, w), if they are
    requested.
    """

    anchor: Tensor
    frames: Tensor
    inputs: Tensor | None


def block_noise_factor(gamma: float) -> Tensor:
    """Return L with L L^T = (1 + gamma) I - gamma 11^T, over the pixels of a patch: fp32 (4, 4).

    At the published gamma of 1/3 the matrix is singular: the noise of a patch sums to zero. A
    Cholesky factorization in fp32 fails, so this one runs in fp64 and sets the last pivot to 0.
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
    """Draw the noise of the next chunk: full resolution, then block noise for each later stage."""
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
    """Draw independent noise for the four pixels of each patch: (channels, patches, 4)."""
    drawn = torch.randn(LATENT_CHANNELS * patches, 4, generator=generator)
    return drawn.view(LATENT_CHANNELS, patches, 4)


def seed_from_image(
    image: Tensor, space: LatentSpace, generator: Generator, params: SamplingParams
) -> HistorySeed:
    """Encode an image, (1, height, width, 3), uint8, to the initial history of I2V.

    The image's latent is the anchor. The only history frame is the last latent of a still video:
    the image repeated for a chunk.
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
    """Encode a video to the initial history of V2V.

    The first frame is the anchor; the last 19 latent frames are the history. `video` is (frames,
    height, width, 3), uint8, without the `skipped` frames that follow its first one. It is encoded
    in chunks of 33 frames, aligned to its end. Chunks before the history are encoded only with
    `keep_inputs`, but their random numbers are drawn in any case.
    """
    assert not (keep_inputs and skipped), "keep_inputs needs all frames of the video"
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
    """Sample latents from a posterior: fp32 (16, latent frames, h, w), on the CPU."""
    mean, std = posterior
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
    return space.normalize(mean + std * noise)[0].float().cpu()


def draw_sigma(bounds: tuple[float, float], count: int, generator: Generator) -> Tensor:
    """Draw `count` noise levels, uniform within `bounds`."""
    low, high = bounds
    return torch.rand(count, generator=generator) * (high - low) + low


def mix_noise(latents: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """Return sigma * noise + (1 - sigma) * latents, with one sigma per frame or one for all."""
    noise = torch.randn((1, *latents.shape), generator=generator)[0]
    level = sigma.view(1, -1, 1, 1)
    return level * noise + (1 - level) * latents
