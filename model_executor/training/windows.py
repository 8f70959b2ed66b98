"""History windows of a batch: what a chunk sees of the frames before it.

Unified history injection: text-to-video, image-to-video and continuation are the same task with
different histories. A window is (batch, 16, 20, h, w): the first-frame anchor, then the last 19
latent frames, oldest first, zeros where there are none.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from helios_serve.model_config import (
    CHUNK_LATENTS,
    HISTORY_FRAMES,
    LATENT_CHANNELS,
    LONG_FRAMES,
    MID_FRAMES,
    PATCH_DIM,
    WINDOW_FRAMES,
    Grid,
)
from helios_serve.model_executor.training.dense import DenseHistory
from helios_serve.model_executor.training.recipe import Ablation, Corruption, HistoryMix


class Sample(NamedTuple):
    """Training samples: windows, the chunk that follows (batch, 16, 9, h, w), and its number."""

    window: Tensor
    target: Tensor
    chunk: list[int]


def patch_rows(latents: Tensor) -> Tensor:
    """(batch, 16, frames, h, w) -> rows of base patches (batch, frames, rows, cols, 64)."""
    batch, channels, frames, height, width = latents.shape
    patches = latents.reshape(batch, channels, frames, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 3, 5, 4, 6, 1).flatten(4)


def unpatch_rows(rows: Tensor, grid: Grid) -> Tensor:
    """Rows of base patches (batch, tokens, 64) -> (batch, 16, 9, h, w)."""
    patches = rows.view(len(rows), -1, grid.rows, grid.cols, 2, 2, LATENT_CHANNELS)
    return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def window_patches(window: Tensor) -> DenseHistory:
    """Multi-term memory patchification: older frames in larger patches.

    Sizes must be multiples of 64 pixels, so that no long patch needs padding.
    """
    rows = patch_rows(window)
    long = rows[:, 1 : 1 + LONG_FRAMES]
    mid = rows[:, 1 + LONG_FRAMES : 1 + LONG_FRAMES + MID_FRAMES]
    short = rows[:, [0, WINDOW_FRAMES - 1]]
    return DenseHistory(cubes(long, 4), cubes(mid, 2), short.flatten(1, 3))


def cubes(rows: Tensor, side: int) -> Tensor:
    """(batch, frames, rows, cols, 64) -> cubes of side^3 patches, (batch, cubes, side^3 * 64)."""
    batch, frames, height, width, _ = rows.shape
    split = rows.reshape(
        batch, frames // side, side, height // side, side, width // side, side, PATCH_DIM
    )
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)


def full_window(past: Tensor, anchor: Tensor | None = None) -> Tensor:
    """Return the window after latent frames `past` (batch, 16, frames, h, w).

    The anchor is `anchor` (batch, 16, 1, h, w), or the first frame of `past`.
    """
    first = past[:, :, :1] if anchor is None else anchor
    last = past[:, :, -HISTORY_FRAMES:]
    return torch.cat([first, F.pad(last, (0, 0, 0, 0, HISTORY_FRAMES - last.shape[2], 0))], dim=2)


def empty_window(target: Tensor) -> Tensor:
    """Return the window of the first chunk of a text-to-video request: zeros."""
    batch, channels, _, height, width = target.shape
    return target.new_zeros(batch, channels, WINDOW_FRAMES, height, width)


def draw_samples(rng: Generator, latents: Tensor, history: HistoryMix) -> Sample:
    """Choose a chunk of each clip, (batch, 16, frames, h, w), and the history that it is given."""
    chunks = latents.shape[2] // CHUNK_LATENTS
    windows, targets, chosen = [], [], []
    for clip in torch.split(latents, 1):
        kind = rng.random()
        first = 0 if kind < history.text_only + history.image else 1
        chunk = int(rng.integers(first, chunks))
        start = chunk * CHUNK_LATENTS
        target = clip[:, :, start : start + CHUNK_LATENTS]
        if kind < history.text_only:
            window = empty_window(target)
        elif kind < history.text_only + history.image:
            window = full_window(target[:, :, :1])  # the picture is the anchor and the last frame
        else:
            kept = start
            if rng.random() < history.shortened:
                kept = int(rng.integers(1, start + 1))
            window = full_window(clip[:, :, start - kept : start], clip[:, :, :1])
        windows.append(window)
        targets.append(target)
        chosen.append(chunk)
    return Sample(torch.cat(windows), torch.cat(targets), chosen)


def ablated(window: Tensor, ablation: Ablation) -> Tensor:
    """Set the frames of a window that an ablation leaves out to zero."""
    if ablation == "anchor":
        return torch.cat([torch.zeros_like(window[:, :, :1]), window[:, :, 1:]], dim=2)
    if ablation == "long":
        first, rest = window[:, :, :1], window[:, :, 1 + LONG_FRAMES :]
        return torch.cat([first, torch.zeros_like(window[:, :, :LONG_FRAMES]), rest], dim=2)
    return window


def corrupt_window(rng: Generator, window: Tensor, corruption: Corruption) -> Tensor:
    """Frame-Aware Corrupt: damage the history as generation will, each frame on its own.

    Exposure scales a frame's latents about their mean over channels, blur mixes in the mean of
    the neighbourhood, noise is mixed in last. Empty frames stay zero.
    """
    batch, _, frames = window.shape[:3]

    def strengths(largest: float, low: float = 0.0) -> Tensor:
        drawn = rng.uniform(low, largest, (batch, frames))
        drawn *= rng.random((batch, frames)) < corruption.share
        drawn *= rng.random((batch, 1)) >= corruption.clean
        return torch.from_numpy(drawn).to(window).view(batch, 1, frames, 1, 1)

    mean = window.mean(dim=1, keepdim=True)
    exposed = window + (window - mean) * strengths(corruption.exposure, -corruption.exposure)
    around = F.avg_pool3d(exposed, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    blurred = torch.lerp(exposed, around, strengths(corruption.blur))
    noise = torch.from_numpy(rng.standard_normal(window.shape, dtype=np.float32)).to(window)
    damaged = torch.lerp(blurred, noise, strengths(corruption.noise))
    present = window.abs().amax(dim=(1, 3, 4), keepdim=True) > 0
    return torch.where(present, damaged, window)
