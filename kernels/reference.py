"""The kernels in plain torch: exact, on any device, and what the Triton kernels are tested against.

`registry` documents arguments and results. `PackRows` says which rows share a row of the modulation
table, so that nothing is expanded to tokens. Layer norms, modulation and gated residuals are
computed in fp32 for every dtype of the rows, as the published model does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.kernels.fp8 import FP8, LARGEST, SMALLEST_SCALE, Quantized
from helios_serve.kernels.rope import PackedRope
from helios_serve.kernels.rows import NormTable, PackRows, Run, join

SHORTEST = 1e-12
"""Shorter vectors are divided by this in place of their length, as in torch's F.normalize."""


def gather_window(pool: Tensor, window: Tensor, places: Tensor) -> Tensor:
    """See `registry.GatherWindow`."""
    block_rows = pool.shape[1]
    index = window[places // block_rows] * block_rows + places % block_rows
    return pool.flatten(0, 1).index_select(0, index)


def norm_modulate(x: Tensor, rows: PackRows, norm: NormTable, eps: float) -> Tensor:
    """See `registry.NormModulate`."""
    return join([norm_run(x, run, norm, eps) for run in rows.runs])


def norm_run(x: Tensor, run: Run, norm: NormTable, eps: float) -> Tensor:
    """The norm of the rows of one run, which share a row of the table."""
    rows, row = x[run.rows].float(), norm.row_of(run)
    return F.layer_norm(rows, rows.shape[-1:], norm.weight[row], norm.bias[row], eps).to(x.dtype)


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
    for run in rows.runs:
        old, change, factor = x[run.rows], update[run.rows], gate[run.table_row]
        if x.dtype == torch.float32:
            old.addcmul_(change, factor)
        else:
            old.copy_(torch.addcmul(old.float(), change.float(), factor))
    kept = [run for run in rows.runs if not (noise_only and run.is_history)]
    return join([norm_run(x, run, norm, eps) for run in kept])


def noise_residual_norm_(
    x: Tensor, update: Tensor, rows: PackRows, norm: NormTable, eps: float
) -> Tensor:
    """See `registry.NoiseResidualNorm`."""
    noise = [run for run in rows.runs if not run.is_history]
    changes = torch.split(update, [run.stop - run.start for run in noise])
    for run, change in zip(noise, changes, strict=True):
        x[run.rows] += change
    return norm_modulate(x, rows, norm, eps)


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
    """See `registry.NormRope`; in place in fp32."""
    if x.dtype == torch.float32:
        # Twice as fast as F.rms_norm, which makes five passes on a CPU.
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]
        normed = x.mul_(square.add_(eps).rsqrt_()).mul_(weight)
    else:
        normed = F.rms_norm(x, x.shape[-1:], weight, eps)
    if rope is None:
        return normed.view(len(x), heads, -1)
    pairs = torch.view_as_complex(normed.float().view(len(x), heads, -1, 2))
    pairs.mul_(rope.entries.unsqueeze(1))
    turned = torch.view_as_real(pairs).flatten(-2).to(x.dtype)
    if history_scale is not None:
        assert rows is not None, "a history scale requires the rows"
        for run in rows.runs:
            if run.is_history:
                turned[run.rows] *= history_scale.view(-1, 1).to(x.dtype)
    return turned


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
    """See `registry.QkNormRope`."""
    query = norm_rope_(query, weights[0], rope, heads, eps)
    key = norm_rope_(key, weights[1], rope, heads, eps, history_scale=history_scale, rows=rows)
    return query, key


def enter_stage(
    rows: Tensor,
    grid: tuple[int, int],
    weights: tuple[float, float],
    drawn: Tensor,
    factor: Tensor,
    noise_dtype: torch.dtype,
) -> Tensor:
    """See `registry.EnterStage`."""
    signal, weight = weights
    noise = correlate(drawn, factor).to(noise_dtype)
    return signal * upsample(rows, grid) + weight * noise


def upsample(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Nearest x2: each latent pixel becomes a patch of four equal pixels."""
    channels = rows.shape[1] // 4
    pixels = rows.view(-1, *grid, 2, 2, channels)  # (frames, rows, cols, y, x, channels)
    patches = pixels.permute(0, 1, 3, 2, 4, 5).unsqueeze(-2)
    return patches.expand(*patches.shape[:-2], 4, channels).reshape(-1, 4 * channels)


def correlate(drawn: Tensor, factor: Tensor) -> Tensor:
    """Independent noise (channels, patches, 4) to rows correlated within each patch and channel."""
    return (drawn @ factor.T).permute(1, 2, 0).flatten(1)


def dmd_step(
    latents: Tensor, flow: Tensor, start: Tensor, sigma: float, next_sigma: float | None
) -> Tensor:
    """See `registry.DmdStep`."""
    clean = (latents.double() - sigma * flow.double()).to(flow.dtype)
    if next_sigma is None:
        return clean
    noised = (1 - next_sigma) * clean.double() + next_sigma * start.double()
    return noised.to(start.dtype)


def quantize_rows(rows: Tensor, dtype: torch.dtype = FP8) -> Quantized:
    """See `registry.QuantizeRows`."""
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
    scale = (largest.float() / LARGEST).clamp_(min=SMALLEST_SCALE)
    return Quantized((rows / scale).to(dtype), scale)


def norm_modulate_fp8(
    x: Tensor, rows: PackRows, norm: NormTable, eps: float, dtype: torch.dtype = FP8
) -> Quantized:
    """See `registry.NormModulateFp8`."""
    return quantize_rows(norm_modulate(x, rows, norm, eps), dtype)


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
    normed = gated_residual_norm_(x, update, rows, gate, norm, eps, noise_only=noise_only)
    return quantize_rows(normed, dtype)


def noise_residual_norm_fp8_(
    x: Tensor,
    update: Tensor,
    rows: PackRows,
    norm: NormTable,
    eps: float,
    dtype: torch.dtype = FP8,
) -> Quantized:
    """See `registry.NoiseResidualNormFp8`."""
    return quantize_rows(noise_residual_norm_(x, update, rows, norm, eps), dtype)


def gelu_fp8(rows: Tensor, dtype: torch.dtype = FP8) -> Quantized:
    """See `registry.GeluFp8`."""
    return quantize_rows(F.gelu(rows, approximate="tanh"), dtype)


def norm_silu(frames: Tensor, weight: Tensor, past: Tensor | None) -> Tensor:
    """See `registry.NormSilu`."""
    before = 0 if past is None else len(past)
    out = frames.new_empty(before + len(frames), *frames.shape[1:])
    if past is not None:
        out[:before] = past
    wide = frames if frames.dtype.itemsize > 2 else frames.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min_(SHORTEST)
    scale = weight.to(wide.dtype) * weight.numel() ** 0.5
    if wide is frames:
        normed = torch.div(frames, length, out=out[before:]).mul_(scale)
        F.silu(normed, inplace=True)
    else:
        out[before:] = F.silu(wide.div_(length).mul_(scale), inplace=True)
    return out
