"""The kernels on the meta device: nothing is computed, results have their shapes.

Each call is one operation `helios_serve::launch`, with what it reads and writes, so that a
`TorchDispatchMode` can count what a model would run on a GPU. Rows of modulation tables and indices
stay in caches and are not counted.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from helios_serve.kernels.fp8 import FP8, Quantized
from helios_serve.kernels.rope import PackedRope
from helios_serve.kernels.rows import Lengths, NormTable, PackRows

LIBRARY: Any = torch.library.Library("helios_serve", "FRAGMENT")  # type: ignore[no-untyped-call]
LIBRARY.define("launch(str kernel, float flops, Tensor?[] read, Tensor[] written) -> ()")
LIBRARY.impl("launch", lambda *_: None, "Meta")


def launch(
    kernel: str, read: Sequence[Tensor | None], written: Sequence[Tensor], flops: float = 0.0
) -> None:
    torch.ops.helios_serve.launch(kernel, flops, list(read), list(written))


def gather_window(pool: Tensor, window: Tensor, places: Tensor) -> Tensor:  # noqa: ARG001
    """See `registry.GatherWindow`."""
    out = pool.new_empty(len(places), pool.shape[-1])
    launch("gather_window", [out, places], [out])
    return out


def norm_modulate(x: Tensor, rows: PackRows, norm: NormTable, eps: float) -> Tensor:  # noqa: ARG001
    """See `registry.NormModulate`."""
    out = x.new_empty(x.shape)
    launch("norm_modulate", [x], [out])
    return out


def gated_residual_norm_(
    x: Tensor,
    update: Tensor,
    rows: PackRows,
    gate: Tensor,  # noqa: ARG001
    norm: NormTable,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    *,
    noise_only: bool = False,
) -> Tensor:
    """See `registry.GatedResidualNorm`."""
    out = x.new_empty(rows.num_noise if noise_only else len(x), x.shape[1])
    launch("gated_residual_norm_", [x, update], [x, out])
    return out


def noise_residual_norm_(
    x: Tensor,
    update: Tensor,
    rows: PackRows,  # noqa: ARG001
    norm: NormTable,  # noqa: ARG001
    eps: float,  # noqa: ARG001
) -> Tensor:
    """See `registry.NoiseResidualNorm`: only the noise rows of `x` are written."""
    out = x.new_empty(x.shape)
    launch("noise_residual_norm_", [x, update], [update, out])
    return out


def norm_rope_(
    x: Tensor,
    weight: Tensor,  # noqa: ARG001
    rope: PackedRope | None,  # noqa: ARG001
    heads: int,
    eps: float,  # noqa: ARG001
    *,
    history_scale: Tensor | None = None,  # noqa: ARG001
    rows: PackRows | None = None,  # noqa: ARG001
) -> Tensor:
    """See `registry.NormRope`."""
    out = x.new_empty(len(x), heads, x.shape[1] // heads)
    launch("norm_rope_", [x], [out])
    return out


def qk_norm_rope_(
    query: Tensor,
    key: Tensor,
    weights: tuple[Tensor, Tensor],  # noqa: ARG001
    rope: PackedRope,  # noqa: ARG001
    rows: PackRows,  # noqa: ARG001
    heads: int,
    eps: float,  # noqa: ARG001
    *,
    history_scale: Tensor | None = None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """See `registry.QkNormRope`."""
    out = query.new_empty(2, len(query), heads, query.shape[1] // heads)
    launch("qk_norm_rope_", [query, key], [out])
    return out[0], out[1]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Lengths,
    keys: Lengths,
    bias: Tensor | None = None,
) -> Tensor:
    """See `registry.PackedAttention`."""
    out = query.new_empty(len(query), query.shape[1] * query.shape[2])
    pairs = sum(
        (rows.stop - rows.start) * (others.stop - others.start)
        for rows, others in zip(queries.slices, keys.slices, strict=True)
    )
    launch("attention", [query, key, value, bias], [out], flops=4.0 * out.shape[1] * pairs)
    return out


def enter_stage(
    rows: Tensor,
    grid: tuple[int, int],  # noqa: ARG001
    weights: tuple[float, float],  # noqa: ARG001
    drawn: Tensor,
    factor: Tensor,  # noqa: ARG001
    noise_dtype: torch.dtype,
) -> Tensor:
    """See `registry.EnterStage`."""
    dtype = torch.promote_types(rows.dtype, noise_dtype)
    out = rows.new_empty(4 * len(rows), rows.shape[1], dtype=dtype)
    launch("enter_stage", [rows, drawn], [out])
    return out


def dmd_step(
    latents: Tensor,
    flow: Tensor,
    start: Tensor,
    sigma: float,  # noqa: ARG001
    next_sigma: float | None,
) -> Tensor:
    """See `registry.DmdStep`."""
    is_last = next_sigma is None
    out = latents.new_empty(latents.shape, dtype=flow.dtype if is_last else start.dtype)
    launch("dmd_step", [latents, flow, *([] if is_last else [start])], [out])
    return out


def quantize_rows(rows: Tensor, dtype: torch.dtype = FP8) -> Quantized:
    """See `registry.QuantizeRows`."""
    values = rows.new_empty(rows.shape, dtype=dtype)
    scale = rows.new_empty(len(rows), 1, dtype=torch.float32)
    launch("quantize_rows", [rows], [values, scale])
    return Quantized(values, scale)


def new_fp8(kernel: str, read: Sequence[Tensor], written: list[Tensor], rows: int) -> Quantized:
    """Launch a kernel that also writes so many rows in float8, as wide as those of `read`."""
    values = read[0].new_empty(rows, read[0].shape[1], dtype=FP8)
    scale = read[0].new_empty(rows, 1, dtype=torch.float32)
    launch(kernel, read, [*written, values, scale])
    return Quantized(values, scale)


def norm_modulate_fp8(
    x: Tensor,
    rows: PackRows,
    norm: NormTable,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    dtype: torch.dtype = FP8,  # noqa: ARG001
) -> Quantized:
    """See `registry.NormModulateFp8`."""
    return new_fp8("norm_modulate_fp8", [x], [], len(rows))


def gated_residual_norm_fp8_(
    x: Tensor,
    update: Tensor,
    rows: PackRows,
    gate: Tensor,  # noqa: ARG001
    norm: NormTable,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    *,
    noise_only: bool = False,
    dtype: torch.dtype = FP8,  # noqa: ARG001
) -> Quantized:
    """See `registry.GatedResidualNormFp8`."""
    count = rows.num_noise if noise_only else len(x)
    return new_fp8("gated_residual_norm_fp8_", [x, update], [x], count)


def noise_residual_norm_fp8_(
    x: Tensor,
    update: Tensor,
    rows: PackRows,  # noqa: ARG001
    norm: NormTable,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    dtype: torch.dtype = FP8,  # noqa: ARG001
) -> Quantized:
    """See `registry.NoiseResidualNormFp8`: only the noise rows of `x` are written."""
    return new_fp8("noise_residual_norm_fp8_", [x, update], [update], len(x))


def gelu_fp8(rows: Tensor, dtype: torch.dtype = FP8) -> Quantized:  # noqa: ARG001
    """See `registry.GeluFp8`."""
    return new_fp8("gelu_fp8", [rows], [], len(rows))


def norm_silu(frames: Tensor, weight: Tensor, past: Tensor | None) -> Tensor:  # noqa: ARG001
    """See `registry.NormSilu`."""
    before = 0 if past is None else len(past)
    out = frames.new_empty(before + len(frames), *frames.shape[1:])
    launch("norm_silu", [frames, past], [out])
    return out
