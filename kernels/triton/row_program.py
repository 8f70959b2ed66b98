"""Helpers of the kernels that run one program per row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_serve.kernels import fp8
from helios_serve.kernels.fp8 import Quantized

LARGEST = tl.constexpr(fp8.LARGEST)
SMALLEST_SCALE = tl.constexpr(fp8.SMALLEST_SCALE)


@triton.jit
def norm_row(values, weight, bias, cols, mask, eps, DIM: tl.constexpr):
    """Layer norm of one row in fp32, multiplied by `weight` and shifted by `bias`."""
    mean = tl.sum(values, axis=0) / DIM
    centered = tl.where(mask, values - mean, 0.0)
    variance = tl.sum(centered * centered, axis=0) / DIM
    normed = centered * tl.rsqrt(variance + eps)
    return normed * tl.load(weight + cols, mask, 0.0) + tl.load(bias + cols, mask, 0.0)


@triton.jit
def store_row(values, out, scales, row, is_stored, cols, mask, DIM: tl.constexpr):
    """Store fp32 `values` as row `row` of `out`, if that `is_stored`: in float8 with `scales`."""
    if scales is not None:
        largest = tl.max(tl.abs(values), axis=0)
        # Divide with the reference's rounding: a last bit may decide which float8 is nearest.
        scale = tl.maximum(tl.div_rn(largest, LARGEST), SMALLEST_SCALE)
        values = tl.div_rn(values, scale)
        tl.store(scales + row, scale, is_stored)
    tl.store(out + row * DIM + cols, values.to(out.dtype.element_ty), mask & is_stored)


def new_quantized(like: Tensor, rows: int, dtype: torch.dtype) -> Quantized:
    """Return room for so many rows as wide as those of `like`, in float8 or another `dtype`."""
    values = like.new_empty(rows, like.shape[1], dtype=dtype)
    return Quantized(values, like.new_empty(rows, 1, dtype=torch.float32))


def warps_for(block: int) -> int:
    """Warps of a program that holds `block` numbers in registers, 16 to 32 per thread."""
    return min(16, max(1, block // 512))
