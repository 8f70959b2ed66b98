"""Layer norm and modulation by a table in one pass ("Flash Norm").

Each row of x has the index of its row of the table as one int32, so modulation is read from a few
rows that stay in the cache, and x is read once and written once. One program per row.
"""

import triton
import triton.language as tl
from torch import Tensor

from helios_serve.kernels.rows import NormTable, PackRows
from helios_serve.kernels.triton.row_program import norm_row, warps_for


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
    """See `registry.NormModulate`."""
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
