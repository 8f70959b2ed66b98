"""Linear layers fused with bias and GELU where torch's backend can.

On a CPU, oneDNN adds the bias and applies GELU while a tile of the product is in cache. torch's own
operators first fill the output with the bias and read it again for GELU, which takes 8% of a
forward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.kernels.fp8 import Quantized
from helios_serve.kernels.registry import kernels_of


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, *, scale: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """x (rows, in) @ weight (out, in).T + bias (out,), followed by GELU (tanh form) if `gelu`.

    With `scale` (out, 1) the weight is float8, to be multiplied by it. Returns new rows in the
    dtype of `x`.
    """
    if scale is not None:
        out = scaled_linear(x, Quantized(weight, scale), bias)
        return F.gelu(out, approximate="tanh") if gelu else out
    if x.device.type == "cpu" and fuses(x.dtype) and not is_trained(x, weight):
        activation, form = ("gelu", "tanh") if gelu else ("none", "")
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], form)
        return fused
    out = F.linear(x, weight, bias)
    return F.gelu(out, approximate="tanh") if gelu else out


def scaled_linear(x: Tensor, weight: Quantized, bias: Tensor) -> Tensor:
    """x (rows, in) @ weight (out, in).T + bias (out,) in float8; returns the dtype of `x`."""
    rows = kernels_of(x).quantize_rows(x)
    return torch._scaled_mm(
        rows.values,
        weight.values.t(),
        scale_a=rows.scale,
        scale_b=weight.scale.t(),
        bias=bias,
        out_dtype=x.dtype,
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
