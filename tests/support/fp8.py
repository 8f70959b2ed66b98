"""Whether this torch multiplies FP8 matrices with a scale per row on a CPU: from 2.12 on."""

import pytest
import torch

from helios_serve.errors import DeviceError
from helios_serve.model_executor.device import check_fp8


def find_lack() -> str | None:
    """Why a CPU cannot run FP8 layers, or None if it can."""
    try:
        check_fp8(torch.device("cpu"), torch.float32)
    except DeviceError as error:
        return str(error)
    return None


FP8_LACK = find_lack()
needs_fp8 = pytest.mark.skipif(FP8_LACK is not None, reason=str(FP8_LACK))
"""Marks a test that runs FP8 layers on the CPU."""
with_fp8 = pytest.param("fp8", marks=needs_fp8)
