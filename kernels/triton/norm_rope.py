"""RMS norm across all heads and rotary embedding in one pass ("Flash RoPE").

Queries and keys are rows of one projection, normed and rotated in place. Each token has three int32
indices into a table of a few dozen positions (`Rope`), so that rotary entries are never expanded to
tokens. One program per token does its key, and its query if there is one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_serve.kernels.rope import PackedRope
from helios_serve.kernels.rows import PackRows


@triton.jit
def norm_rope_row(
    x,
    weight,
    cos,
    sin,
    scale,
    eps,
    HAS_ROPE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Norm, rotate and scale one row in place, rounding after each as the reference does.

    `cos` and `sin` are (1, BLOCK_DIM / 2), shared by all heads; `scale` is (BLOCK_HEADS, 1).
    """
    dtype = x.dtype.element_ty
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    cols = tl.arange(0, BLOCK_DIM)[None, :]
    offsets = heads * HEAD_DIM + cols
    mask = (heads < HEADS) & (cols < HEAD_DIM)
    values = tl.load(x + offsets, mask, 0.0).to(tl.float32)
    square = tl.sum(tl.sum(values * values, axis=1), axis=0) / (HEADS * HEAD_DIM)
    values = values * tl.rsqrt(square + eps) * tl.load(weight + offsets, mask, 0.0).to(tl.float32)
    if HAS_ROPE:
        pairs = tl.reshape(values.to(dtype).to(tl.float32), (BLOCK_HEADS, BLOCK_DIM // 2, 2))
        real, imaginary = tl.split(pairs)
        turned = tl.join(real * cos - imaginary * sin, real * sin + imaginary * cos)
        values = tl.reshape(turned, (BLOCK_HEADS, BLOCK_DIM))
    if HAS_SCALE:
        values = values.to(dtype).to(tl.float32) * scale
    tl.store(x + offsets, values.to(dtype), mask)


@triton.jit
def rope_row(
    table,
    places,
    row,
    FRAME_PAIRS: tl.constexpr,
    ROW_PAIRS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Cosines and sines of one token, of shape (1, BLOCK_DIM // 2)."""
    pairs = tl.arange(0, BLOCK_DIM // 2)[None, :]
    axis = (pairs >= FRAME_PAIRS).to(tl.int32) + (pairs >= FRAME_PAIRS + ROW_PAIRS)
    known = pairs < HEAD_DIM // 2
    place = tl.load(places + row * 3 + axis)
    entry = table + (place * (HEAD_DIM // 2) + pairs) * 2
    return tl.load(entry, known, 0.0), tl.load(entry + 1, known, 0.0)


@triton.jit
def qk_norm_rope_kernel(
    query,
    key,
    query_weight,
    key_weight,
    table,
    places,
    noise_place,
    history_scale,
    query_stride,
    key_stride,
    eps,
    HAS_QUERY: tl.constexpr,
    HAS_ROPE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    FRAME_PAIRS: tl.constexpr,
    ROW_PAIRS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cos, sin, scale = 1.0, 0.0, 1.0
    if HAS_ROPE:
        cos, sin = rope_row(table, places, row, FRAME_PAIRS, ROW_PAIRS, HEAD_DIM, BLOCK_DIM)
    if HAS_SCALE:
        heads = tl.arange(0, BLOCK_HEADS)[:, None]
        scale = tl.load(history_scale + heads, heads < HEADS, 1.0).to(tl.float32)
        scale = tl.where(tl.load(noise_place + row) < 0, scale, 1.0)
    if HAS_QUERY:
        norm_rope_row(
            query + row * query_stride,
            query_weight,
            cos,
            sin,
            scale,
            eps,
            HAS_ROPE,
            False,
            HEADS,
            HEAD_DIM,
            BLOCK_HEADS,
            BLOCK_DIM,
        )
    norm_rope_row(
        key + row * key_stride,
        key_weight,
        cos,
        sin,
        scale,
        eps,
        HAS_ROPE,
        HAS_SCALE,
        HEADS,
        HEAD_DIM,
        BLOCK_HEADS,
        BLOCK_DIM,
    )


def norm_rope_(
    x: Tensor,
    weight: Tensor,
    rope: PackedRope | None,
    heads: int,
    eps: float,
    *,
    history_scale: Tensor | None = None,
    rows: PackRows | None = None,
) -> Tensor:
    """See `registry.NormRope`; always in place."""
    _launch(None, x, (weight, weight), rope, rows, heads, eps, history_scale)
    return x.view(len(x), heads, -1)


def qk_norm_rope_(
    query: Tensor,
    key: Tensor,
    weights: tuple[Tensor, Tensor],
    rope: PackedRope,
    rows: PackRows,
    heads: int,
    eps: float,
    *,
    history_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `registry.QkNormRope`; always in place."""
    _launch(query, key, weights, rope, rows, heads, eps, history_scale)
    return query.view(len(query), heads, -1), key.view(len(key), heads, -1)


def _launch(
    query: Tensor | None,
    key: Tensor,
    weights: tuple[Tensor, Tensor],
    rope: PackedRope | None,
    rows: PackRows | None,
    heads: int,
    eps: float,
    history_scale: Tensor | None,
) -> None:
    dim = key.shape[1]
    block_heads, block_dim = triton.next_power_of_2(heads), triton.next_power_of_2(dim // heads)
    frame_pairs, row_pairs, _ = (0, 0, 0) if rope is None else rope.pairs
    scale = None
    if history_scale is not None:
        scale = history_scale.to(key.dtype).contiguous()
    qk_norm_rope_kernel[(len(key),)](
        query,
        key,
        *weights,
        None if rope is None else torch.view_as_real(rope.table),
        None if rope is None else rope.places,
        None if rows is None or scale is None else rows.noise_place,
        scale,
        0 if query is None else query.stride(0),
        key.stride(0),
        eps,
        HAS_QUERY=query is not None,
        HAS_ROPE=rope is not None,
        HAS_SCALE=scale is not None,
        FRAME_PAIRS=frame_pairs,
        ROW_PAIRS=row_pairs,
        HEADS=heads,
        HEAD_DIM=dim // heads,
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        num_warps=min(8, max(1, block_heads * block_dim // 512)),
    )
