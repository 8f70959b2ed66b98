"""The history pool: blocks that hold the latent history of all sessions on a device."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.kernels.registry import kernels_of
from helios_serve.kernels.rows import upload
from helios_serve.messages import NULL_BLOCK
from helios_serve.model_config import (
    BLOCK_ROWS,
    LONG_FRAMES,
    PATCH_DIM,
    TILE_PATCHES,
    WINDOW_FRAMES,
    Geometry,
)
from helios_serve.model_executor.models.helios.inputs import HistoryPatches
from helios_serve.model_executor.models.helios.samplers import patchify

TILE_PIXELS = 2 * TILE_PATCHES
"""Latent pixels along a side of a tile."""


class HistoryPool:
    """A pool of history blocks, addressed by block tables.

    `blocks` is (num_blocks, 16, 64): each block holds one tile, 4 x 4 base patches, of one latent
    frame. Block 0, the null block, stays zero. A block is not changed while a block table refers to
    it.
    """

    def __init__(self, num_blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        self.blocks = torch.zeros(num_blocks, BLOCK_ROWS, PATCH_DIM, dtype=dtype, device=device)

    def write(self, latents: Tensor, block_ids: Sequence[int]) -> None:
        """Write latent frames (16, frames, h, w) to `block_ids`, one block per tile."""
        self._put(tile_rows(latents), block_ids)

    def read(self, block_ids: Sequence[int]) -> Tensor:
        """Return a copy of blocks, on the pool's device: (blocks, 16, 64)."""
        index = upload(torch.tensor(block_ids, dtype=torch.long), self.blocks.device)
        return self.blocks[index]

    def restore(self, data: bytes, dtype: torch.dtype, block_ids: Sequence[int]) -> None:
        """Write the rows of blocks, as raw bytes of `dtype`, to blocks."""
        rows = torch.frombuffer(bytearray(data), dtype=dtype)
        self._put(rows.view(-1, BLOCK_ROWS, PATCH_DIM), block_ids)

    def _put(self, rows: Tensor, block_ids: Sequence[int]) -> None:
        assert NULL_BLOCK not in block_ids, "the null block is never written"
        index = upload(torch.tensor(block_ids, dtype=torch.long), self.blocks.device)
        self.blocks[index] = rows.to(self.blocks.device, self.blocks.dtype)

    def gather(self, window: Tensor, geometry: Geometry) -> HistoryPatches:
        """Gather the history patches of one session.

        `window` is its flat block table of 20 frames: the anchor and the last 19.
        """
        indices, counts = window_indices(geometry, self.blocks.device)
        rows = kernels_of(self.blocks).gather_window(self.blocks, window, indices)
        long, mid, short = torch.split(rows, counts)
        return HistoryPatches(
            long.view(-1, 4**3 * PATCH_DIM), mid.view(-1, 2**3 * PATCH_DIM), short
        )


def tile_rows(latents: Tensor) -> Tensor:
    """Split latent frames (16, frames, h, w) into tiles, as blocks: (frames * tiles, 16, 64).

    Tiles at the edges are padded by repeating the last latent pixel, as the patch embeddings do.
    """
    height, width = latents.shape[-2:]
    padding = (0, -width % TILE_PIXELS, 0, -height % TILE_PIXELS)
    padded = F.pad(latents, padding, mode="replicate")
    down, across = padded.shape[-2] // TILE_PIXELS, padded.shape[-1] // TILE_PIXELS
    grid = (-1, down, TILE_PATCHES, across, TILE_PATCHES, PATCH_DIM)
    tiles = patchify(padded).view(grid).transpose(2, 3)
    return tiles.reshape(-1, BLOCK_ROWS, PATCH_DIM)


class WindowIndices(NamedTuple):
    """Indices (base patches,) of the long, mid and short window, and the number of each."""

    indices: Tensor
    counts: list[int]


@lru_cache(maxsize=64)
def window_indices(geometry: Geometry, device: torch.device) -> WindowIndices:
    """Return the index of each base patch of the windows, in the order of the history patches.

    An index is (position in the block table) * 16 + (row in the block).
    """
    tiles, mid, full = geometry.tiles, geometry.mid_patches, geometry.patches
    frame = torch.arange(WINDOW_FRAMES, device=device).view(-1, 1, 1)
    row = torch.arange(tiles.rows * TILE_PATCHES, device=device).view(-1, 1)
    col = torch.arange(tiles.cols * TILE_PATCHES, device=device)
    tile = row // TILE_PATCHES * tiles.cols + col // TILE_PATCHES
    within = row % TILE_PATCHES * TILE_PATCHES + col % TILE_PATCHES
    indices = (frame * tiles.size + tile) * BLOCK_ROWS + within  # (frames, rows, cols)
    first_mid = 1 + LONG_FRAMES
    anchor_and_last = indices[[0, WINDOW_FRAMES - 1], : full.rows, : full.cols]
    windows = (
        split_cubes(indices[1:first_mid], 4),
        split_cubes(indices[first_mid:-1, : 2 * mid.rows, : 2 * mid.cols], 2),
        split_cubes(anchor_and_last, 1),
    )
    return WindowIndices(torch.cat(windows), [len(window) for window in windows])


def split_cubes(indices: Tensor, side: int) -> Tensor:
    """Split (frames, rows, cols) into cubes of side^3, flattened; both in order t, y, x."""
    frames, rows, cols = (size // side for size in indices.shape)
    cubes = indices.reshape(frames, side, rows, side, cols, side)
    return cubes.permute(0, 2, 4, 1, 3, 5).flatten()
