"""Matmuls in float8_e4m3fn, with a scale for each row of either side.

Activations are quantised at every call, each row by its own largest entry, so that no calibration
is needed and no row depends on its neighbours in a pack.
"""

from typing import NamedTuple

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
SMALLEST_SCALE = 1e-12
"""Of a row of zeros."""


class Quantized(NamedTuple):
    """Rows in float8, and the fp32 factor of each: (rows, n), (rows, 1)."""

    values: Tensor
    scale: Tensor


def quantize_rows(rows: Tensor) -> Quantized:
    """(rows, n) -> the nearest multiples, with each row's largest entry at the largest float8.

    Entries are off by at most a sixteenth, and those below a 28672nd of their row's largest by at
    most a sixteenth of that.
    """
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
    scale = (largest.float() / LARGEST).clamp_(min=SMALLEST_SCALE)
    return Quantized((rows / scale).to(FP8), scale)


def scaled_linear(x: Tensor, weight: Quantized, bias: Tensor) -> Tensor:
    """x (rows, in) @ weight (out, in).T + bias (out,), in the dtype of x."""
    rows = quantize_rows(x)
    return torch._scaled_mm(
        rows.values,
        weight.values.t(),
        scale_a=rows.scale,
        scale_b=weight.scale.t(),
        bias=bias,
        out_dtype=x.dtype,
        use_fast_accum=True,
    )
