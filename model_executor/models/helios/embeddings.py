"""Embeddings of positions (RoPE), timesteps and text."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios_serve.kernels.rope import Rope
from helios_serve.model_config import (
    CHUNK_LATENTS,
    HISTORY_FRAMES,
    LONG_FRAMES,
    MID_FRAMES,
    Geometry,
    TransformerConfig,
)
from helios_serve.model_executor.models.helios.lora import AdapterRows, LoraLinear


def axis_frequencies(dim: int, theta: float) -> Tensor:
    """Return the rotary frequencies of one axis: fp32 (dim / 2,)."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def rotary_axis(count: int, dim: int, theta: float) -> Tensor:
    """Return cos + i sin of positions 0 to count - 1 of one axis: complex64 (count, dim / 2)."""
    steps = torch.arange(count, dtype=torch.float32)
    angle = torch.outer(steps, axis_frequencies(dim, theta))
    return torch.complex(angle.cos(), angle.sin())


def pooled(entries: Tensor, factor: int) -> Tensor:
    """Average every `factor` positions, padded with the last one, as in diffusers 0.42.1.

    diffusers averages over all three axes. An entry depends on one axis only, so averaging over
    that axis gives the same result.
    """
    spare = -len(entries) % factor
    padded = torch.cat([entries, entries[-1:].expand(spare, -1)])
    return padded.view(-1, factor, entries.shape[1]).mean(dim=1)


class RopeAxis(NamedTuple):
    """The rotary entries of one axis.

    `table` holds the entries of all positions, followed by pooled ones for mid and long patches,
    which start at rows `mid` and `long`.
    """

    table: Tensor
    mid: int
    long: int


def frame_axis(config: TransformerConfig) -> RopeAxis:
    """Return the entries of the frame axis, which are the same for every chunk (relative RoPE).

    Positions: anchor 0, long window 1 to 16, mid 17 and 18, last frame 19, noise 20 to 28.
    """
    entries = rotary_axis(1 + HISTORY_FRAMES + CHUNK_LATENTS, config.rope_dim[0], config.rope_theta)
    mid_start = 1 + LONG_FRAMES
    long, mid = entries[1:mid_start], entries[mid_start : mid_start + MID_FRAMES]
    return with_pooled(entries, mid, long)


def space_axis(count: int, dim: int, theta: float) -> RopeAxis:
    entries = rotary_axis(count, dim, theta)
    return with_pooled(entries, entries, entries)


def with_pooled(entries: Tensor, mid: Tensor, long: Tensor) -> RopeAxis:
    parts = [entries, pooled(mid, 2), pooled(long, 4)]
    return RopeAxis(torch.cat(parts), len(entries), len(entries) + len(parts[1]))


@lru_cache(maxsize=24)
def make_rope(
    config: TransformerConfig, geometry: Geometry, stage: int, stages: int, device: torch.device
) -> Rope:
    """Return the rotary entries of a segment's tokens: history (long, mid, short), then noise.

    Long and mid patches have the mean entry of the positions that they cover. Rows and columns of
    noise at a lower stage are numbered from 0 in its own grid, without rescaling.
    """
    grid, noise = geometry.patches, geometry.stage_patches(stage, stages)
    mid, tiles = geometry.mid_patches, geometry.tiles
    axes = (
        frame_axis(config),
        space_axis(grid.rows, config.rope_dim[1], config.rope_theta),
        space_axis(grid.cols, config.rope_dim[2], config.rope_theta),
    )
    longest = max(len(axis.table) for axis in axes)
    table = torch.cat(
        [F.pad(axis.table, (0, 0, 0, longest - len(axis.table))) for axis in axes], dim=1
    )
    first_noise = 1 + HISTORY_FRAMES
    parts = (
        ([axis.long for axis in axes], (LONG_FRAMES // 4, *tiles)),
        ([axis.mid for axis in axes], (MID_FRAMES // 2, *mid)),
        ([0, 0, 0], (1, *grid)),
        ([HISTORY_FRAMES, 0, 0], (1, *grid)),
        ([first_noise, 0, 0], (CHUNK_LATENTS, *noise)),
    )
    places = torch.cat([grid_positions(start, shape) for start, shape in parts])
    frame, row, col = (dim // 2 for dim in config.rope_dim)
    return Rope(table.to(device), places.to(device), (frame, row, col))


def grid_positions(start: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return the (frame, row, column) of each cell of a grid at `start`: int32 (cells, 3)."""
    axes = [
        torch.arange(first, first + size, dtype=torch.int32)
        for first, size in zip(start, shape, strict=True)
    ]
    return torch.cartesian_prod(*axes)


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """Return the sinusoidal embedding (cos | sin) of timesteps: fp32 (len(t), dim)."""
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angle = timesteps.float()[:, None] * torch.exp(exponent / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TwoLayer(nn.Module):
    """Linear, activation, linear, with the checkpoint's parameter names."""

    def __init__(self, inputs: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = LoraLinear(inputs, hidden)
        self.activation = activation
        self.linear_2 = LoraLinear(hidden, hidden)

    def forward(self, x: Tensor, lora: AdapterRows) -> Tensor:
        hidden: Tensor = self.linear_2(self.activation(self.linear_1(x, lora)), lora)
        return hidden


class ConditionEmbedder(nn.Module):
    """Embeds timesteps for modulation and encoder states for cross-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.inner_dim
        self.freq_dim = config.freq_dim
        self.time_embedder = TwoLayer(config.freq_dim, dim, nn.SiLU())
        self.time_proj = LoraLinear(dim, 6 * dim)
        self.text_embedder = TwoLayer(config.text_dim, dim, nn.GELU(approximate="tanh"))

    def embed_times(self, timesteps: Tensor, lora: AdapterRows = ()) -> tuple[Tensor, Tensor]:
        """Timesteps (n,) -> embeddings (n, dim) and the blocks' modulation (n, 6, dim).

        `lora` lists the adapters of rows.
        The embedder runs in its own dtype, which is fp32 in published checkpoints, and the
        projection in the dtype of the model.
        """
        waves = sinusoid(timesteps, self.freq_dim).to(self.time_embedder.linear_1.weight.dtype)
        embedded = self.time_embedder(waves, lora).to(self.time_proj.weight.dtype)
        return embedded, self.time_proj(F.silu(embedded), lora).unflatten(-1, (6, -1))

    def embed_text(self, rows: Tensor, lora: AdapterRows = ()) -> Tensor:
        """Encoder states (rows, text_dim) -> (rows, dim)."""
        embedded: Tensor = self.text_embedder(rows, lora)
        return embedded
