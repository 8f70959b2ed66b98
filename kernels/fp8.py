"""Float8 numbers with a scale for each row: what kernels, layers and loading agree on.

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
