"""Rows to float8 with a scale each, in one pass, as they are or after GELU.

torch's operators read a row three times and write an fp32 copy of it. Here one program per row
keeps it in registers while it finds the largest entry and divides.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_serve.kernels.fp8 import FP8, Quantized
from helios_serve.kernels.triton.row_program import new_quantized, store_row, warps_for

SLOPE = tl.constexpr(2 * (2 / 3.141592653589793) ** 0.5)
CUBIC = tl.constexpr(0.044715)


@triton.jit
def quantize_rows_kernel(
    x, values, scales, x_stride, GELU: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < DIM
    entries = tl.load(x + row * x_stride + cols, mask, 0.0).to(tl.float32)
    if GELU:
        # (1 + tanh(y)) / 2 is 1 / (1 + exp(-2 y)).
        doubled = SLOPE * (entries + CUBIC * entries * entries * entries)
        entries = entries / (1.0 + tl.exp(-doubled))
        entries = entries.to(x.dtype.element_ty).to(tl.float32)
    store_row(entries, values, scales, row, True, cols, mask, DIM)


def quantize_rows(rows: Tensor, dtype: torch.dtype = FP8) -> Quantized:
    """See `registry.QuantizeRows`."""
    return _launch(rows, dtype, gelu=False)


def gelu_fp8(rows: Tensor, dtype: torch.dtype = FP8) -> Quantized:
    """See `registry.GeluFp8`."""
    return _launch(rows, dtype, gelu=True)


def _launch(rows: Tensor, dtype: torch.dtype, *, gelu: bool) -> Quantized:
    out = new_quantized(rows, len(rows), dtype)
    block = triton.next_power_of_2(rows.shape[1])
    quantize_rows_kernel[(len(rows),)](
        rows,
        *out,
        rows.stride(0),
        GELU=gelu,
        DIM=rows.shape[1],
        BLOCK=block,
        num_warps=warps_for(block),
    )
    return out
