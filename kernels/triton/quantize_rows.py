"""Rows to float8 with a scale each, in one pass.

torch's operators read a row three times and write an fp32 copy of it. Here one program per row
keeps it in registers while it finds the largest entry and divides.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_serve.kernels.fp8 import FP8, LARGEST, SMALLEST_SCALE, Quantized
from helios_serve.kernels.triton.row_program import warps_for


@triton.jit
def quantize_rows_kernel(
    x,
    values,
    scales,
    x_stride,
    LARGEST: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < DIM
    entries = tl.load(x + row * x_stride + cols, mask, 0.0).to(tl.float32)
    largest = tl.max(tl.abs(entries), axis=0)
    # Divide with the reference's rounding: a last bit may decide which float8 is nearest.
    scale = tl.maximum(tl.div_rn(largest, LARGEST), SMALLEST_SCALE)
    quotients = tl.div_rn(entries, scale)
    tl.store(values + row * DIM + cols, quotients.to(values.dtype.element_ty), mask)
    tl.store(scales + row, scale)


def quantize_rows(rows: Tensor, dtype: torch.dtype = FP8) -> Quantized:
    """See `registry.QuantizeRows`."""
    count, dim = rows.shape
    values = rows.new_empty(count, dim, dtype=dtype)
    scale = rows.new_empty(count, 1, dtype=torch.float32)
    block = triton.next_power_of_2(dim)
    quantize_rows_kernel[(count,)](
        rows,
        values,
        scale,
        rows.stride(0),
        LARGEST=LARGEST,
        SMALLEST_SCALE=SMALLEST_SCALE,
        DIM=dim,
        BLOCK=block,
        num_warps=warps_for(block),
    )
    return Quantized(values, scale)
