"""Linear layers with fused bias and activation."""

import pytest
import torch
import torch.nn.functional as F

from helios_serve.kernels.linear import linear


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float64, 1e-12)]
)
@pytest.mark.parametrize("rows", [1, 33, 200])
def test_it_equals_one_step_after_the_other(
    gelu: bool, dtype: torch.dtype, tolerance: float, rows: int
) -> None:
    generator = torch.Generator().manual_seed(rows)
    wide = torch.randn(2 * rows, 48, generator=generator, dtype=torch.float64)
    weight = torch.randn(70, 48, generator=generator, dtype=torch.float64) / 7
    bias = torch.randn(70, generator=generator, dtype=torch.float64)
    x = wide[rows:]
    expected = F.linear(x.to(dtype).double(), weight.to(dtype).double(), bias.to(dtype).double())
    expected = F.gelu(expected, approximate="tanh") if gelu else expected
    got = linear(x.to(dtype), weight.to(dtype), bias.to(dtype), gelu=gelu)
    assert got.dtype == dtype
    assert (got.double() - expected).abs().max() < tolerance
