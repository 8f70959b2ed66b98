"""Layer norm, modulation by a table and residuals in one pass ("Flash Norm").

Each row of x has the index of its row of the table as one int32, so modulation is read from a few
rows that stay in the cache, and x is read once and written once. A residual sum is rounded to the
dtype of the rows before it is normed, as if it had been stored and read again, so the fusion does
not change the result. Results in float8 are rounded to the dtype of the rows before they are
quantized, likewise. One program per row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_serve.kernels.fp8 import FP8, Quantized
from helios_serve.kernels.rows import NormTable, PackRows
from helios_serve.kernels.triton.row_program import new_quantized, norm_row, store_row, warps_for


@triton.jit
def norm_modulate_kernel(
    x,
    out,
    scales,
    table_row,
    weight,
    bias,
    x_stride,
    weight_stride,
    bias_stride,
    eps,
    ONE_ROW: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < DIM
    values = tl.load(x + row * x_stride + cols, mask, 0.0).to(tl.float32)
    entry = 0 if ONE_ROW else tl.load(table_row + row)
    normed = norm_row(
        values, weight + entry * weight_stride, bias + entry * bias_stride, cols, mask, eps, DIM
    )
    rounded = normed.to(x.dtype.element_ty).to(tl.float32)
    store_row(rounded, out, scales, row, True, cols, mask, DIM)


def norm_modulate(x: Tensor, rows: PackRows, norm: NormTable, eps: float) -> Tensor:
    """See `registry.NormModulate`."""
    out = x.new_empty(x.shape)
    _launch_norm(x, out, None, rows, norm, eps)
    return out


def norm_modulate_fp8(
    x: Tensor, rows: PackRows, norm: NormTable, eps: float, dtype: torch.dtype = FP8
) -> Quantized:
    """See `registry.NormModulateFp8`."""
    out = new_quantized(x, len(x), dtype)
    _launch_norm(x, *out, rows, norm, eps)
    return out


def _launch_norm(
    x: Tensor, out: Tensor, scales: Tensor | None, rows: PackRows, norm: NormTable, eps: float
) -> None:
    block = triton.next_power_of_2(x.shape[1])
    norm_modulate_kernel[(len(x),)](
        x,
        out,
        scales,
        rows.table_row,
        norm.weight,
        norm.bias,
        x.stride(0),
        norm.weight.stride(0),
        norm.bias.stride(0),
        eps,
        ONE_ROW=len(norm.weight) == 1,
        DIM=x.shape[1],
        BLOCK=block,
        num_warps=warps_for(block),
    )


@triton.jit
def residual_norm_kernel(
    x,
    update,
    out,
    scales,
    table_row,
    noise_place,
    gate,
    weight,
    bias,
    x_stride,
    update_stride,
    gate_stride,
    weight_stride,
    bias_stride,
    eps,
    GATED: tl.constexpr,
    NOISE_UPDATE: tl.constexpr,
    NOISE_OUT: tl.constexpr,
    ONE_ROW: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x += update (* gate); out = norm(x). `update` or `out` may hold the noise rows only."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < DIM
    entry = tl.load(table_row + row)
    if NOISE_UPDATE or NOISE_OUT:
        place = tl.load(noise_place + row).to(tl.int64)
        noise_mask = mask & (place >= 0)
    source, update_mask = row, mask
    if NOISE_UPDATE:
        source, update_mask = place, noise_mask
    target, is_stored = row, True
    if NOISE_OUT:
        target, is_stored = place, place >= 0

    old = tl.load(x + row * x_stride + cols, mask, 0.0).to(tl.float32)
    change = tl.load(update + source * update_stride + cols, update_mask, 0.0).to(tl.float32)
    if GATED:
        change *= tl.load(gate + entry * gate_stride + cols, mask, 0.0)
    new = (old + change).to(x.dtype.element_ty)
    tl.store(x + row * x_stride + cols, new, update_mask)

    if ONE_ROW:
        entry = 0
    normed = norm_row(
        new.to(tl.float32),
        weight + entry * weight_stride,
        bias + entry * bias_stride,
        cols,
        mask,
        eps,
        DIM,
    )
    rounded = normed.to(x.dtype.element_ty).to(tl.float32)
    store_row(rounded, out, scales, target, is_stored, cols, mask, DIM)


def gated_residual_norm_(
    x: Tensor,
    update: Tensor,
    rows: PackRows,
    gate: Tensor,
    norm: NormTable,
    eps: float,
    *,
    noise_only: bool = False,
) -> Tensor:
    """See `registry.GatedResidualNorm`."""
    out = x.new_empty(rows.num_noise if noise_only else len(x), x.shape[1])
    _launch_residual(x, update, (out, None), rows, gate, norm, eps, noise_out=noise_only)
    return out


def gated_residual_norm_fp8_(
    x: Tensor,
    update: Tensor,
    rows: PackRows,
    gate: Tensor,
    norm: NormTable,
    eps: float,
    *,
    noise_only: bool = False,
    dtype: torch.dtype = FP8,
) -> Quantized:
    """See `registry.GatedResidualNormFp8`."""
    out = new_quantized(x, rows.num_noise if noise_only else len(x), dtype)
    _launch_residual(x, update, out, rows, gate, norm, eps, noise_out=noise_only)
    return out


def noise_residual_norm_(
    x: Tensor, update: Tensor, rows: PackRows, norm: NormTable, eps: float
) -> Tensor:
    """See `registry.NoiseResidualNorm`."""
    out = x.new_empty(x.shape)
    _launch_residual(x, update, (out, None), rows, None, norm, eps, noise_out=False)
    return out


def noise_residual_norm_fp8_(
    x: Tensor,
    update: Tensor,
    rows: PackRows,
    norm: NormTable,
    eps: float,
    dtype: torch.dtype = FP8,
) -> Quantized:
    """See `registry.NoiseResidualNormFp8`."""
    out = new_quantized(x, len(x), dtype)
    _launch_residual(x, update, out, rows, None, norm, eps, noise_out=False)
    return out


def _launch_residual(
    x: Tensor,
    update: Tensor,
    out: tuple[Tensor, Tensor | None],
    rows: PackRows,
    gate: Tensor | None,
    norm: NormTable,
    eps: float,
    *,
    noise_out: bool,
) -> None:
    """`out` is the result and, if that is in float8, its scales."""
    block = triton.next_power_of_2(x.shape[1])
    residual_norm_kernel[(len(x),)](
        x,
        update,
        *out,
        rows.table_row,
        rows.noise_place,
        gate,
        norm.weight,
        norm.bias,
        x.stride(0),
        update.stride(0),
        0 if gate is None else gate.stride(0),
        norm.weight.stride(0),
        norm.bias.stride(0),
        eps,
        GATED=gate is not None,
        NOISE_UPDATE=gate is None,
        NOISE_OUT=noise_out,
        ONE_ROW=len(norm.weight) == 1,
        DIM=x.shape[1],
        BLOCK=block,
        num_warps=warps_for(block),
    )
