"""Positions, timesteps and text, as the transformer sees them."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios_serve.model_config import (
    CHUNK_LATENTS,
    HISTORY_FRAMES,
    LONG_FRAMES,
    MID_FRAMES,
    Geometry,
    Grid,
    TransformerConfig,
)


def axis_frequencies(dim: int, theta: float) -> Tensor:
    """Rotary frequencies of one axis: fp32 (dim / 2,)."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def rotary_grid(frames: range, grid: Grid, config: TransformerConfig) -> Tensor:
    """cos + i sin for every patch of `frames`: complex64 (frames, rows, cols, head_dim / 2)."""
    axes = (range(frames.start, frames.stop), range(grid.rows), range(grid.cols))
    shape = (len(frames), grid.rows, grid.cols)
    angles = []
    for axis, (positions, dim) in enumerate(zip(axes, config.rope_dim, strict=True)):
        steps = torch.tensor(list(positions), dtype=torch.float32)
        table = torch.outer(steps, axis_frequencies(dim, config.rope_theta))
        table = table.view([-1 if index == axis else 1 for index in range(3)] + [dim // 2])
        angles.append(table.expand(*shape, dim // 2))
    angle = torch.cat(angles, dim=-1)
    return torch.complex(angle.cos(), angle.sin())


def pooled(table: Tensor, factor: int) -> Tensor:
    """Average over factor^3 neighbours, the far edges replicated, as in diffusers 0.42.1."""
    channels = torch.view_as_real(table).flatten(-2).movedim(-1, 0)[None]
    spare = [-size % factor for size in table.shape[:3]]
    padding = (0, spare[2], 0, spare[1], 0, spare[0])
    mean = F.avg_pool3d(F.pad(channels, padding, mode="replicate"), factor)
    entries = mean[0].movedim(0, -1).contiguous()
    return torch.view_as_complex(entries.view(*entries.shape[:-1], -1, 2))


@lru_cache(maxsize=24)
def rope_table(
    config: TransformerConfig, geometry: Geometry, stage: int, stages: int, device: torch.device
) -> Tensor:
    """Rotary entries of a segment, history then noise: complex64 (tokens, head_dim / 2).

    Frame indices are the same for every chunk (relative RoPE): anchor 0, long 1 to 16, mid 17 and
    18, last 19, noise 20 to 28. Long and mid patches take the mean entry of what they cover. Noise
    at a lower stage counts its own rows and columns, not rescaled ones.
    """
    grid = geometry.patches
    mid_start = 1 + LONG_FRAMES
    last = mid_start + MID_FRAMES
    noise_start = 1 + HISTORY_FRAMES
    parts = (
        pooled(rotary_grid(range(1, mid_start), grid, config), 4),
        pooled(rotary_grid(range(mid_start, last), grid, config), 2),
        rotary_grid(range(0, 1), grid, config),
        rotary_grid(range(last, last + 1), grid, config),
        rotary_grid(
            range(noise_start, noise_start + CHUNK_LATENTS),
            geometry.stage_patches(stage, stages),
            config,
        ),
    )
    return torch.cat([part.flatten(0, 2) for part in parts]).to(device)


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """cos | sin of t at geometric frequencies: fp32 (len(t), dim)."""
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angle = timesteps.float()[:, None] * torch.exp(exponent / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TwoLayer(nn.Module):
    """Linear, activation, linear; the names of its layers are the checkpoint's."""

    def __init__(self, inputs: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, hidden)
        self.activation = activation
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.linear_2(self.activation(self.linear_1(x)))
        return hidden


class ConditionEmbedder(nn.Module):
    """Timesteps to modulation and prompts to cross-attention inputs."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.inner_dim
        self.freq_dim = config.freq_dim
        self.time_embedder = TwoLayer(config.freq_dim, dim, nn.SiLU())
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = TwoLayer(config.text_dim, dim, nn.GELU(approximate="tanh"))

    def embed_times(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """t (n,) -> embeddings (n, dim) and block modulation (n, 6, dim).

        The embedder runs in its own dtype, fp32 in published checkpoints, the projection in the
        model's.
        """
        waves = sinusoid(timesteps, self.freq_dim).to(self.time_embedder.linear_1.weight.dtype)
        embedded = self.time_embedder(waves).to(self.time_proj.weight.dtype)
        return embedded, self.time_proj(F.silu(embedded)).unflatten(-1, (6, -1))

    def embed_text(self, rows: Tensor) -> Tensor:
        """Encoder states (rows, text_dim) -> (rows, dim)."""
        embedded: Tensor = self.text_embedder(rows)
        return embedded
