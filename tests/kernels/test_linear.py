"""Linear layers with fused bias and activation."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.kernels import linear as module
from helios_serve.kernels.linear import fuses_gelu, is_tanh_gelu, linear


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


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_are_written_where_they_belong(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((5, 48), (70, 48), (70,))
    )
    whole = torch.full((9, 70), 7.0, dtype=dtype)
    made = linear(x, weight, bias, out=whole[2:7])
    assert made.data_ptr() == whole[2:7].data_ptr()
    assert torch.equal(made, linear(x, weight, bias)) or dtype == torch.float64
    assert (made - F.linear(x, weight, bias)).abs().max() < 0.1
    assert whole[:2].eq(7).all()
    assert whole[7:].eq(7).all()


def product(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.addmm(bias.float(), x.float(), weight.float())


def rounded_once(bias: Tensor, x: Tensor, weight: Tensor, *, use_gelu: bool) -> Tensor:
    assert use_gelu
    return F.gelu(product(bias, x, weight), approximate="tanh").to(x.dtype)


def by_coarse_tanh(bias: Tensor, x: Tensor, weight: Tensor, *, use_gelu: bool) -> Tensor:
    """With the error of a GPU's instruction for tanh: 2**-11."""
    assert use_gelu
    made = product(bias, x, weight)
    tanh = torch.tanh((2 / torch.pi) ** 0.5 * (made + 0.044715 * made**3))
    return (0.5 * made * (1 + tanh * (1 - 2**-11))).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_an_exact_gelu_of_the_right_form_is_taken(dtype: torch.dtype) -> None:
    """torch's own function has the other form on a CPU, with erf."""
    cpu = torch.device("cpu")
    assert is_tanh_gelu(rounded_once, cpu, dtype)
    assert not is_tanh_gelu(torch._addmm_activation, cpu, dtype)
    assert not is_tanh_gelu(by_coarse_tanh, cpu, dtype)


def test_gelu_is_fused_where_the_device_does_it_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors stand for those of a GPU."""
    calls: list[str] = []

    def noting(name: str, function: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*arguments, **options)

        return run

    monkeypatch.setattr(torch, "_addmm_activation", noting("fused", torch._addmm_activation))
    monkeypatch.setattr(F, "gelu", noting("after", F.gelu))
    x, weight, bias = (
        torch.empty(*shape, dtype=torch.bfloat16, device="meta") for shape in ((5, 8), (6, 8), (6,))
    )
    for is_right in (True, False):
        monkeypatch.setattr(module, "fuses_gelu", lambda *_, found=is_right: found)
        assert linear(x, weight, bias, gelu=True).shape == (5, 6)
        assert linear(x, weight, bias).shape == (5, 6)
    assert calls == ["fused", "after"]
    assert not fuses_gelu(torch.device("cpu"), torch.bfloat16)
