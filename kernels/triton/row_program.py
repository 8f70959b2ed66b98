"""Helpers of the kernels that run one program per row."""

import triton
import triton.language as tl


@triton.jit
def norm_row(values, weight, bias, cols, mask, eps, DIM: tl.constexpr):
    """Layer norm of one row in fp32, multiplied by `weight` and shifted by `bias`."""
    mean = tl.sum(values, axis=0) / DIM
    centered = tl.where(mask, values - mean, 0.0)
    variance = tl.sum(centered * centered, axis=0) / DIM
    normed = centered * tl.rsqrt(variance + eps)
    return normed * tl.load(weight + cols, mask, 0.0) + tl.load(bias + cols, mask, 0.0)


def warps_for(block: int) -> int:
    """Warps of a program that holds `block` numbers in registers, 16 to 32 per thread."""
    return min(16, max(1, block // 512))
