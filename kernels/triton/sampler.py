"""The sampler in one pass over the latents: a step of DMD, and the entry to a pyramid stage."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
BLOCK_PATCHES = 32


@triton.jit
def dmd_step_kernel(
    latents,
    flow,
    start,
    out,
    size,
    sigma_high,
    sigma_low,
    next_high,
    next_low,
    IS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    sigma = tl.full((1,), sigma_high, tl.float64) + tl.full((1,), sigma_low, tl.float64)
    sample = tl.load(latents + index, mask, 0.0).to(tl.float64)
    clean = sample - sigma * tl.load(flow + index, mask, 0.0).to(tl.float64)
    clean = clean.to(flow.dtype.element_ty)
    if IS_LAST:
        tl.store(out + index, clean, mask)
    else:
        level = tl.full((1,), next_high, tl.float64) + tl.full((1,), next_low, tl.float64)
        noise = tl.load(start + index, mask, 0.0).to(tl.float64)
        noised = (1 - level) * clean.to(tl.float64) + level * noise
        tl.store(out + index, noised.to(out.dtype.element_ty), mask)


def dmd_step(
    latents: Tensor, flow: Tensor, start: Tensor, sigma: float, next_sigma: float | None
) -> Tensor:
    """See `registry.DmdStep`."""
    is_last = next_sigma is None
    out = torch.empty_like(flow if is_last else start, memory_format=torch.contiguous_format)
    dmd_step_kernel[(triton.cdiv(out.numel(), BLOCK),)](
        latents.contiguous(),
        flow.contiguous(),
        start.contiguous(),
        out,
        out.numel(),
        *halves(sigma),
        *halves(next_sigma or 0.0),
        IS_LAST=is_last,
        BLOCK=BLOCK,
    )
    return out


def halves(value: float) -> tuple[float, float]:
    """Two fp32 numbers that add up to `value`: Triton passes scalars as fp32."""
    high = torch.tensor(value, dtype=torch.float32).item()
    return high, value - high


# Not specialized by frame size: compiling for each size costs more than it would save.
@triton.jit(do_not_specialize=["num_patches", "grid_rows", "grid_cols"])
def enter_stage_kernel(
    rows,
    drawn,
    factor,
    out,
    num_patches,
    grid_rows,
    grid_cols,
    signal,
    weight,
    CHANNELS: tl.constexpr,
    NOISE_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    patch = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    mask = patch < num_patches
    col = tl.arange(0, 4 * CHANNELS)[None, :]
    pixel, channel = col // CHANNELS, col % CHANNELS

    # The new patch at (frame, y, x) is the pixel at (y, x) of the old grid, half as large.
    y, x = patch // (2 * grid_cols) % (2 * grid_rows), patch % (2 * grid_cols)
    frame = patch // (4 * grid_rows * grid_cols)
    source = (frame * grid_rows + y // 2) * grid_cols + x // 2
    old_col = (y % 2 * 2 + x % 2) * CHANNELS + channel
    old = tl.load(rows + source * (4 * CHANNELS) + old_col, mask, 0.0)
    scaled = (signal * old.to(tl.float32)).to(rows.dtype.element_ty)

    noise = tl.zeros((BLOCK, 4 * CHANNELS), tl.float32)
    for index in tl.static_range(4):
        number = tl.load(drawn + (channel * num_patches + patch) * 4 + index, mask, 0.0)
        noise += number * tl.load(factor + pixel * 4 + index)
    noise = noise.to(NOISE_DTYPE).to(tl.float32)
    noise = (weight * noise).to(NOISE_DTYPE)

    new = scaled.to(tl.float32) + noise.to(tl.float32)
    tl.store(out + patch * (4 * CHANNELS) + col, new.to(out.dtype.element_ty), mask)


def enter_stage(
    rows: Tensor,
    grid: tuple[int, int],
    weights: tuple[float, float],
    drawn: Tensor,
    factor: Tensor,
    noise_dtype: torch.dtype,
) -> Tensor:
    """See `registry.EnterStage`."""
    channels, patches, _ = drawn.shape
    dtype = torch.promote_types(rows.dtype, noise_dtype)
    out = torch.empty(patches, 4 * channels, dtype=dtype, device=rows.device)
    enter_stage_kernel[(triton.cdiv(patches, BLOCK_PATCHES),)](
        rows.contiguous(),
        drawn.contiguous(),
        factor,
        out,
        patches,
        *grid,
        *weights,
        CHANNELS=channels,
        NOISE_DTYPE=getattr(tl, str(noise_dtype).removeprefix("torch.")),
        BLOCK=BLOCK_PATCHES,
    )
    return out
