"""Linear layers with what follows them, in one pass where the library under torch has one.

On a CPU, oneDNN adds the bias and applies GELU while a tile of the product is in cache. torch's own
operators fill the output with the bias first and read it once more for GELU, which is 8% of a
forward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.kernels import dispatch
from helios_serve.kernels.fp8 import Quantized


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, *, scale: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """x (rows, in) @ weight (out, in).T + bias (out,), and then GELU (tanh form) if asked for.

    With `scale` (out, 1) the weight is float8 times that.
    """
    if scale is not None:
        out = scaled_linear(x, Quantized(weight, scale), bias)
        return F.gelu(out, approximate="tanh") if gelu else out
    if x.device.type == "cpu" and fuses(x.dtype):
        activation, form = ("gelu", "tanh") if gelu else ("none", "")
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], form)
        return fused
    out = F.linear(x, weight, bias)
    return F.gelu(out, approximate="tanh") if gelu else out


def scaled_linear(x: Tensor, weight: Quantized, bias: Tensor) -> Tensor:
    """x (rows, in) @ weight (out, in).T + bias (out,), in the dtype of x; both sides in float8."""
    rows = dispatch.quantize_rows(x)
    return torch._scaled_mm(
        rows.values,
        weight.values.t(),
        scale_a=rows.scale,
        scale_b=weight.scale.t(),
        bias=bias,
        out_dtype=x.dtype,
        use_fast_accum=True,
    )


def fuses(dtype: torch.dtype) -> bool:
    """Whether oneDNN can do it on this CPU."""
    if not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
