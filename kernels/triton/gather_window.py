"""Patch rows of a history window, read through its block table."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_PLACES = 16


@triton.jit
def gather_window_kernel(
    pool,
    window,
    places,
    out,
    num_places,
    BLOCK_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_places
    place = tl.load(places + index, inside, 0)
    block = tl.load(window + place // BLOCK_ROWS, inside, 0).to(tl.int64)
    source = (block * BLOCK_ROWS + place % BLOCK_ROWS) * WIDTH
    cols = tl.arange(0, BLOCK_WIDTH)
    mask = inside[:, None] & (cols < WIDTH)[None, :]
    rows = tl.load(pool + source[:, None] + cols[None, :], mask, 0.0)
    tl.store(out + index.to(tl.int64)[:, None] * WIDTH + cols[None, :], rows, mask)


def gather_window(pool: Tensor, window: Tensor, places: Tensor) -> Tensor:
    """See `registry.GatherWindow`."""
    assert pool.is_contiguous(), "the pool must be contiguous"
    _, block_rows, width = pool.shape
    out = torch.empty(len(places), width, dtype=pool.dtype, device=pool.device)
    gather_window_kernel[(triton.cdiv(len(places), BLOCK_PLACES),)](
        pool,
        window,
        places,
        out,
        len(places),
        BLOCK_ROWS=block_rows,
        WIDTH=width,
        BLOCK_WIDTH=triton.next_power_of_2(width),
        BLOCK=BLOCK_PLACES,
    )
    return out
