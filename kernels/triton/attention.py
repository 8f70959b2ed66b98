"""Attention over packed segments of any length, after FlashAttention 2 (arXiv 2307.08691).

For devices that no library has a kernel for, and for attention to text, whose merged padding rows
need a bias on their logits, which the libraries do not take. Softmax and sums are fp32.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_serve.kernels.rows import Lengths

LARGEST_OFFSET = 2**31 - 1
"""Elements from the start of a segment to any of its rows, up to which offsets have 32 bits."""


@triton.jit
def logits_of(q, k, bias, bias_offsets, inside, scale, HAS_BIAS: tl.constexpr):
    """Logits in units of log2, of shape (queries, keys); -inf for keys that are not `inside`."""
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if HAS_BIAS:
        extra = tl.load(bias + bias_offsets, inside, 0.0).to(tl.float32)
        logits += extra[None, :] * 1.4426950408889634
    return tl.where(inside[None, :], logits, float("-inf"))


@triton.jit
def rows_from(first, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """The numbers of BLOCK rows, in 64 bits if WIDE, so that offsets are computed in them."""
    rows = first + tl.arange(0, BLOCK)
    return rows.to(tl.int64) if WIDE else rows


@triton.jit
def varlen_attention_kernel(
    query,
    key,
    value,
    out,
    bias,
    query_offsets,
    key_offsets,
    query_stride,
    key_stride,
    value_stride,
    out_stride,
    scale,
    HAS_BIAS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Attend BLOCK_M queries of one head of one segment; `scale` includes log2(e)."""
    head, segment = tl.program_id(1), tl.program_id(2)
    start = tl.load(query_offsets + segment).to(tl.int64)
    count = (tl.load(query_offsets + segment + 1) - start).to(tl.int32)
    first = tl.program_id(0) * BLOCK_M
    if first >= count:
        return
    key_start = tl.load(key_offsets + segment).to(tl.int64)
    key_count = (tl.load(key_offsets + segment + 1) - key_start).to(tl.int32)

    # Relative to the segment, offsets mostly fit 32 bits, which saves registers in the loop.
    query += start * query_stride + head * HEAD_DIM
    key += key_start * key_stride + head * HEAD_DIM
    value += key_start * value_stride + head * HEAD_DIM
    out += start * out_stride + head * HEAD_DIM
    rows = rows_from(first, BLOCK_M, WIDE)
    cols = tl.arange(0, BLOCK_DIM)
    within = cols < HEAD_DIM
    row_mask = (rows < count)[:, None] & within[None, :]
    q = tl.load(query + rows[:, None] * query_stride + cols[None, :], row_mask, 0.0)
    mixed = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    for first_key in range(0, key_count, BLOCK_N):
        others = rows_from(first_key, BLOCK_N, WIDE)
        inside = others < key_count
        mask = inside[:, None] & within[None, :]
        k = tl.load(key + others[:, None] * key_stride + cols[None, :], mask, 0.0)
        logits = logits_of(q, k, bias, key_start + others, inside, scale, HAS_BIAS)
        higher = tl.maximum(highest, tl.max(logits, axis=1))
        weights = tl.exp2(logits - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        mixed *= shrink[:, None]
        v = tl.load(value + others[:, None] * value_stride + cols[None, :], mask, 0.0)
        mixed = tl.dot(weights.to(v.dtype), v, mixed, input_precision="ieee")
        highest = higher

    mixed = (mixed / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + rows[:, None] * out_stride + cols[None, :], mixed, row_mask)


def is_wide(longest: int, *tensors: Tensor) -> bool:
    """Whether a segment of `longest` rows needs offsets of 64 bits: from 139,810 rows on for 40
    heads of 128 in joined projections."""
    return any(longest * tensor.stride(0) > LARGEST_OFFSET for tensor in tensors)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Lengths,
    keys: Lengths,
    bias: Tensor | None = None,
) -> Tensor:
    """See `registry.PackedAttention`; the bias may have any floating dtype."""
    _, heads, head_dim = query.shape
    assert all(item.stride()[1:] == (head_dim, 1) for item in (query, key, value))
    out = query.new_empty(len(query), heads * head_dim)
    full = query.dtype == torch.float32
    block_m = 64 if full else 128
    block_n = 32 if full else 64 if keys.longest <= 64 else 128
    segments = len(queries.offsets) - 1
    wide = is_wide(queries.longest, query, out) or is_wide(keys.longest, key, value)
    varlen_attention_kernel[(triton.cdiv(queries.longest, block_m), heads, segments)](
        query,
        key,
        value,
        out,
        bias,
        queries.cumulative,
        keys.cumulative,
        query.stride(0),
        key.stride(0),
        value.stride(0),
        out.stride(0),
        math.log2(math.e) / math.sqrt(head_dim),
        HAS_BIAS=bias is not None,
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        WIDE=wide,
        num_warps=8,
        num_stages=2,
    )
    return out
