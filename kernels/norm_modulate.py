"""Layer norm and modulation by a table in one pass, in Triton ("Flash Norm").

A token names its row of the table by one int32, so modulation is read from a few rows that stay in
the cache, and a row of x is read once and written once. One program does one row.
"""

import triton
import triton.language as tl
from torch import Tensor

from helios_serve.kernels.rows import NormTable, PackRows


@triton.jit
def norm_row(values, weight, bias, cols, mask, eps, DIM: tl.constexpr):
    """Layer norm of one row in fp32, times and plus a row of the table."""
    mean = tl.sum(values, axis=0) / DIM
    centered = tl.where(mask, values - mean, 0.0)
    variance = tl.sum(centered * centered, axis=0) / DIM
    normed = centered * tl.rsqrt(variance + eps)
    return normed * tl.load(weight + cols, mask, 0.0) + tl.load(bias + cols, mask, 0.0)


@triton.jit
def norm_modulate_kernel(
    x,
    out,
    table_row,
    weight,
    bias,
    x_stride,
    weight_stride,
    bias_stride,
    eps,
    ONE_ROW: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < DIM
    values = tl.load(x + row * x_stride + cols, mask, 0.0).to(tl.float32)
    entry = 0 if ONE_ROW else tl.load(table_row + row)
    normed = norm_row(
        values, weight + entry * weight_stride, bias + entry * bias_stride, cols, mask, eps, DIM
    )
    tl.store(out + row * DIM + cols, normed.to(out.dtype.element_ty), mask)


def norm_modulate(x: Tensor, rows: PackRows, norm: NormTable, eps: float) -> Tensor:
    """As `reference.norm_modulate`."""
    out = x.new_empty(x.shape)
    block = triton.next_power_of_2(x.shape[1])
    norm_modulate_kernel[(len(x),)](
        x,
        out,
        rows.table_row,
        norm.weight,
        norm.bias,
        x.stride(0),
        norm.weight.stride(0),
        norm.bias.stride(0),
        eps,
        ONE_ROW=len(norm.weight) == 1,
        DIM=x.shape[1],
        BLOCK=block,
        num_warps=warps_for(block),
    )
    return out


def warps_for(block: int) -> int:
    """Warps of a program that holds a row of `block` numbers in registers, 16 to 32 a thread."""
    return min(16, max(1, block // 512))
