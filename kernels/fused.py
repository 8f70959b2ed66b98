"""The Triton kernels by the names of their references; importing this needs triton."""

from helios_serve.kernels.dmd_step import dmd_step
from helios_serve.kernels.gated_residual import gated_residual_norm_, noise_residual_norm_
from helios_serve.kernels.gather_window import gather_window
from helios_serve.kernels.norm_modulate import norm_modulate
from helios_serve.kernels.pyramid import enter_stage
from helios_serve.kernels.qk_norm_rope import norm_rope_, qk_norm_rope_
from helios_serve.kernels.quantize_rows import quantize_rows
from helios_serve.kernels.varlen_attention import attention

__all__ = [
    "attention",
    "dmd_step",
    "enter_stage",
    "gated_residual_norm_",
    "gather_window",
    "noise_residual_norm_",
    "norm_modulate",
    "norm_rope_",
    "qk_norm_rope_",
    "quantize_rows",
]
