"""One step of the DMD sampler in one pass over the latents."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


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
