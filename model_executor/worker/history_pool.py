"""The history of every session on one device: blocks of base patches, addressed by block tables."""

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
from helios_serve.model_executor.worker.tensors import as_bytes

TILE_PIXELS = 2 * TILE_PATCHES
"""Latent pixels a side of a tile."""


class HistoryPool:
    """`blocks` is (num_blocks, 16, 64): a block is one frame's tile of 4 x 4 base patches.

    Block 0 stays zero. A frame is written once and never changes while any table names it.
    """

    def __init__(self, num_blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        self.blocks = torch.zeros(num_blocks, BLOCK_ROWS, PATCH_DIM, dtype=dtype, device=device)

    def write(self, latents: Tensor, block_ids: Sequence[int]) -> None:
        """Store latent frames (16, frames, h, w) in as many blocks as their tiles."""
        self._put(tile_rows(latents), block_ids)

    def read(self, block_ids: Sequence[int]) -> bytes:
        """The rows of some blocks as raw bytes."""
        index = upload(torch.tensor(block_ids, dtype=torch.long), self.blocks.device)
        return as_bytes(self.blocks[index])

    def restore(self, data: bytes, dtype: torch.dtype, block_ids: Sequence[int]) -> None:
        """Put rows in `dtype`, as `read` gives them, into as many blocks."""
        rows = torch.frombuffer(bytearray(data), dtype=dtype)
        self._put(rows.view(-1, BLOCK_ROWS, PATCH_DIM), block_ids)

    def _put(self, rows: Tensor, block_ids: Sequence[int]) -> None:
        assert NULL_BLOCK not in block_ids, "the null block is never written"
        index = upload(torch.tensor(block_ids, dtype=torch.long), self.blocks.device)
        self.blocks[index] = rows.to(self.blocks.device, self.blocks.dtype)

    def gather(self, window: Tensor, geometry: Geometry) -> HistoryPatches:
        """The windows of one session as patches; `window` is its flat block table of 20 frames."""
        places, counts = window_places(geometry, self.blocks.device)
        rows = kernels_of(self.blocks).gather_window(self.blocks, window, places)
        long, mid, short = torch.split(rows, counts)
        return HistoryPatches(
            long.view(-1, 4**3 * PATCH_DIM), mid.view(-1, 2**3 * PATCH_DIM), short
        )


def tile_rows(latents: Tensor) -> Tensor:
    """Latent frames (16, frames, h, w) as blocks: (frames * tiles, 16, 64).

    Edge tiles are filled by repeating the last latent pixel, as the patch kernels pad.
    """
    height, width = latents.shape[-2:]
    padding = (0, -width % TILE_PIXELS, 0, -height % TILE_PIXELS)
    padded = F.pad(latents, padding, mode="replicate")
    down, across = padded.shape[-2] // TILE_PIXELS, padded.shape[-1] // TILE_PIXELS
    grid = (-1, down, TILE_PATCHES, across, TILE_PATCHES, PATCH_DIM)
    tiles = patchify(padded).view(grid).transpose(2, 3)
    return tiles.reshape(-1, BLOCK_ROWS, PATCH_DIM)


class WindowPlaces(NamedTuple):
    """Places (base patches,) of the long, mid and short window, and how many are in each."""

    places: Tensor
    counts: list[int]


@lru_cache(maxsize=64)
def window_places(geometry: Geometry, device: torch.device) -> WindowPlaces:
    """Where each base patch of the windows lies, patch after patch.

    A place is (position in the block table) * 16 + (row in the block).
    """
    tiles, mid, full = geometry.tiles, geometry.mid_patches, geometry.patches
    frame = torch.arange(WINDOW_FRAMES, device=device).view(-1, 1, 1)
    row = torch.arange(tiles.rows * TILE_PATCHES, device=device).view(-1, 1)
    col = torch.arange(tiles.cols * TILE_PATCHES, device=device)
    tile = row // TILE_PATCHES * tiles.cols + col // TILE_PATCHES
    within = row % TILE_PATCHES * TILE_PATCHES + col % TILE_PATCHES
    places = (frame * tiles.size + tile) * BLOCK_ROWS + within  # (frames, rows, cols)
    first_mid = 1 + LONG_FRAMES
    anchor_and_last = places[[0, WINDOW_FRAMES - 1], : full.rows, : full.cols]
    windows = (
        cut(places[1:first_mid], 4),
        cut(places[first_mid:-1, : 2 * mid.rows, : 2 * mid.cols], 2),
        cut(anchor_and_last, 1),
    )
    return WindowPlaces(torch.cat(windows), [len(window) for window in windows])


def cut(places: Tensor, side: int) -> Tensor:
    """(frames, rows, cols) in cubes of side^3, one after the other, both in order t, y, x."""
    frames, rows, cols = (size // side for size in places.shape)
    cubes = places.reshape(frames, side, rows, side, cols, side)
    return cubes.permute(0, 2, 4, 1, 3, 5).flatten()
