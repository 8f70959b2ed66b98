"""The float8 format of kernels, layers and loading: values with one scale per row.

Activations are quantized at every call, each row by its own largest entry. So no calibration is
needed, and no row depends on the others of its pack.
"""

from typing import NamedTuple

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
SMALLEST_SCALE = 1e-12
"""The scale of a row of zeros."""


class Quantized(NamedTuple):
    """Float8 values (rows, n), and the fp32 scale (rows, 1) that each row is multiplied by."""

    values: Tensor
    scale: Tensor


Rows = Tensor | Quantized
"""Rows as they are, or in float8."""
