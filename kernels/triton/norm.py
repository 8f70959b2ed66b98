"""Layer norm, modulation by a table and residuals in one pass ("Flash Norm").

Each row of x has the index of its row of the table as one int32, so modulation is read from a few
rows that stay in the cache, and x is read once and written once. A residual sum is rounded to the
dtype of the rows before it is normed, as if it had been stored and read again, so the fusion does
not change the result. One program per row.
"""

import triton
import triton.language as tl
from torch import Tensor

from helios_serve.kernels.rows import NormTable, PackRows
from helios_serve.kernels.triton.row_program import norm_row, warps_for


@triton.jit
def norm_modulate_kernel(
    x,
    out,
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
    tl.store(out + row * DIM + cols, normed.to(out.dtype.element_ty), mask)


def norm_modulate(x: Tensor, rows: PackRows, norm: NormTable, eps: float) -> Tensor:
    """See `registry.NormModulate`."""
    out = x.new_empty(x.shape)
    block = triton.next_power_of_2(x.shape[1])
    norm_modulate_kernel[(len(x),)](
        x,
        out,
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
    return out


@triton.jit
def residual_norm_kernel(
    x,
    update,
    out,
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
    target, out_mask = row, mask
    if NOISE_OUT:
        target, out_mask = place, noise_mask

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
    tl.store(out + target * DIM + cols, normed.to(out.dtype.element_ty), out_mask)


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
    return _launch(x, update, rows, gate, norm, eps, noise_out=noise_only)


def noise_residual_norm_(
    x: Tensor, update: Tensor, rows: PackRows, norm: NormTable, eps: float
) -> Tensor:
    """See `registry.NoiseResidualNorm`."""
    return _launch(x, update, rows, None, norm, eps, noise_out=False)


def _launch(
    x: Tensor,
    update: Tensor,
    rows: PackRows,
    gate: Tensor | None,
    norm: NormTable,
    eps: float,
    *,
    noise_out: bool,
) -> Tensor:
    out = x.new_empty(rows.num_noise if noise_out else len(x), x.shape[1])
    block = triton.next_power_of_2(x.shape[1])
    residual_norm_kernel[(len(x),)](
        x,
        update,
        out,
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
    return out
