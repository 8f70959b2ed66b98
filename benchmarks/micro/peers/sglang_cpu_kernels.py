"""The compiled operator that SGLang's Helios calls on a CPU, in plain torch.

SGLang's kernels for CPUs are not on PyPI: its documentation builds them from source. servers.py
makes this module a plugin of SGLang's workers. helios-serve does not need it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def normed_scaled_shifted(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    norm_type: str,
    eps: float,
) -> Tensor:
    """Return norm(x) * (1 + scale) + shift, computed in fp32, in the data type of x."""
    wide, shape = x.float(), x.shape[-1:]
    if norm_type == "layer":
        normed = F.layer_norm(wide, shape, weight, bias, eps)
    else:
        normed = F.rms_norm(wide, shape, weight, eps)
    return (normed * (1 + scale) + shift).to(x.dtype)


def register() -> None:
    name = "sgl_kernel::fused_norm_scale_shift_cpu"
    torch.library.custom_op(name, normed_scaled_shifted, mutates_args=(), device_types="cpu")
