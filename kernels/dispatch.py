"""The kernels as models call them: each goes to Triton or to its reference, by device.

What a function computes stands in its reference's docstring.
"""

from typing import Any

import torch
from torch import Tensor

from helios_serve.kernels import flash, reference
from helios_serve.kernels.backend import choose_kernels
from helios_serve.kernels.fp8 import Quantized
from helios_serve.kernels.rope import PackedRope
from helios_serve.kernels.rows import Lengths, NormTable, PackRows


def kernels_of(tensor: Tensor) -> Any:
    """The module that holds the kernels for where `tensor` lies."""
    if choose_kernels(tensor.device).backend == "reference":
        return reference
    from helios_serve.kernels import fused  # triton may be absent

    return fused


def gather_window(pool: Tensor, window: Tensor, places: Tensor) -> Tensor:
    rows: Tensor = kernels_of(pool).gather_window(pool, window, places)
    return rows


def norm_modulate(x: Tensor, rows: PackRows, norm: NormTable, eps: float) -> Tensor:
    normed: Tensor = kernels_of(x).norm_modulate(x, rows, norm, eps)
    return normed


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
    normed: Tensor = kernels_of(x).gated_residual_norm_(
        x, update, rows, gate, norm, eps, noise_only=noise_only
    )
    return normed


def noise_residual_norm_(
    x: Tensor, update: Tensor, rows: PackRows, norm: NormTable, eps: float
) -> Tensor:
    normed: Tensor = kernels_of(x).noise_residual_norm_(x, update, rows, norm, eps)
    return normed


def norm_rope_(
    x: Tensor,
    weight: Tensor,
    rope: PackedRope | None,
    heads: int,
    eps: float,
    *,
    history_scale: Tensor | None = None,
    rows: PackRows | None = None,
) -> Tensor:
    normed: Tensor = kernels_of(x).norm_rope_(
        x, weight, rope, heads, eps, history_scale=history_scale, rows=rows
    )
    return normed


def qk_norm_rope_(
    query: Tensor,
    key: Tensor,
    weights: tuple[Tensor, Tensor],
    rope: PackedRope,
    rows: PackRows,
    heads: int,
    eps: float,
    *,
    history_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    pair: tuple[Tensor, Tensor] = kernels_of(query).qk_norm_rope_(
        query, key, weights, rope, rows, heads, eps, history_scale=history_scale
    )
    return pair


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Lengths,
    keys: Lengths,
    bias: Tensor | None = None,
) -> Tensor:
    """By the fastest exact path: libraries in half precision, without a bias; else ours or SDPA."""
    backend, path = choose_kernels(query.device)
    if path not in ("triton", "sdpa"):
        if bias is None and query.dtype.itemsize == 2:
            return flash.attention(path, query, key, value, queries, keys)
        path = "sdpa" if bias is None or backend == "reference" else "triton"
    kernels: Any = reference if path == "sdpa" else kernels_of(query)
    mixed: Tensor = kernels.attention(query, key, value, queries, keys, bias)
    return mixed


def enter_stage(
    rows: Tensor,
    grid: tuple[int, int],
    weights: tuple[float, float],
    drawn: Tensor,
    factor: Tensor,
    noise_dtype: torch.dtype,
) -> Tensor:
    latents: Tensor = kernels_of(rows).enter_stage(rows, grid, weights, drawn, factor, noise_dtype)
    return latents


def dmd_step(
    latents: Tensor, flow: Tensor, start: Tensor, sigma: float, next_sigma: float | None
) -> Tensor:
    moved: Tensor = kernels_of(latents).dmd_step(latents, flow, start, sigma, next_sigma)
    return moved


def quantize_rows(rows: Tensor) -> Quantized:
    quantized: Quantized = kernels_of(rows).quantize_rows(rows)
    return quantized
