"""Linear layers fused with bias and GELU where torch's backend can.

On a CPU, oneDNN adds the bias and applies GELU while a tile of the product is in cache. torch's own
operators first fill the output with the bias and read it again for GELU, which takes 8% of a
forward. On a GPU, a matmul of cuBLASLt can do both at its end; torch does not say by which form of
GELU, nor how exactly, so that this is measured before it is used.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.kernels.attention import GPU
from helios_serve.kernels.fp8 import Quantized, Rows
from helios_serve.kernels.registry import kernels_of

PROBED = 8.0
"""GELU is compared from minus this to this. Beyond it is the identity, or zero."""
PROBE_ROWS, PROBE_WIDTH = 512, 64
NEAR_ZERO = 2e-6
"""Absolute error of fp32 where GELU is nearly zero, which is allowed on top of rounding."""


def linear(
    x: Rows,
    weight: Tensor,
    bias: Tensor,
    *,
    scale: Tensor | None = None,
    gelu: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """x (rows, in) @ weight (out, in).T + bias (out,), followed by GELU (tanh form) if `gelu`.

    With `scale` (out, 1) the weight is float8, to be multiplied by it; only then may `x` be float8.
    Returns rows in the dtype of `bias`: new ones, or `out`, which only plain layers without GELU
    write to.
    """
    if scale is not None:
        product = scaled_linear(x, Quantized(weight, scale), bias)
        return F.gelu(product, approximate="tanh") if gelu else product
    assert isinstance(x, Tensor), "rows in float8 need a weight in float8"
    if x.device.type == "cpu" and fuses(x.dtype) and not is_trained(x, weight):
        activation, form = ("gelu", "tanh") if gelu else ("none", "")
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], form)
        return fused if out is None else out.copy_(fused)
    if out is not None:
        return torch.addmm(bias, x, weight.t(), out=out)
    if gelu and fuses_gelu(x.device, x.dtype):
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    product = F.linear(x, weight, bias)
    return F.gelu(product, approximate="tanh") if gelu else product


def scaled_linear(x: Rows, weight: Quantized, bias: Tensor) -> Tensor:
    """x (rows, in) @ weight (out, in).T + bias (out,) in float8; returns the dtype of `bias`."""
    rows = kernels_of(x).quantize_rows(x) if isinstance(x, Tensor) else x
    return torch._scaled_mm(
        rows.values,
        weight.values.t(),
        scale_a=rows.scale,
        scale_b=weight.scale.t(),
        bias=bias,
        out_dtype=bias.dtype,
        use_fast_accum=True,
    )


def is_trained(x: Tensor, weight: Tensor) -> bool:
    """Whether gradients are computed: oneDNN's fused layers have none."""
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def fuses(dtype: torch.dtype) -> bool:
    """Whether oneDNN fuses layers of `dtype` on this CPU."""
    if not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


@cache
def fuses_gelu(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a matmul on `device` ends with GELU in the tanh form, exact but for one rounding.

    The first call of a device and dtype runs a small matmul there and waits for it.
    """
    if device.type != GPU or dtype.itemsize != 2:
        return False
    return is_tanh_gelu(torch._addmm_activation, device, dtype)


def is_tanh_gelu(activate: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `activate`, called as torch._addmm_activation, rounds the tanh form of GELU once.

    Its matmul is exact: each sum has one term that is not zero, a value times a power of two.
    """
    steps = torch.linspace(-PROBED, PROBED, PROBE_ROWS).to(dtype)
    powers = (2.0 ** -(torch.arange(PROBE_WIDTH) % 8)).to(dtype)
    x, weight = torch.zeros(PROBE_ROWS, PROBE_WIDTH), torch.zeros(PROBE_WIDTH, PROBE_WIDTH)
    x[:, 0], weight[:, 0] = steps, powers
    given = [tensor.to(device, dtype) for tensor in (torch.zeros(PROBE_WIDTH), x, weight)]
    got = activate(given[0], given[1], given[2].t(), use_gelu=True).cpu().double()
    exact = F.gelu(torch.outer(steps.double(), powers.double()), approximate="tanh")
    rounding = exact.abs() * (torch.finfo(dtype).eps / 2)
    return bool(((got - exact).abs() <= rounding * 1.01 + NEAR_ZERO).all())
