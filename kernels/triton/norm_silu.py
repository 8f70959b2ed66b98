"""RMS norm over channels and SiLU in one pass, written after a causal convolution's past frames.

The next convolution then reads one buffer: nothing is padded in time or joined. A program takes as
many pixels as fill a block, each with all of its channels.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK_VALUES = 4096
"""Values of a program: pixels times channels, both rounded up to powers of two."""
SHORTEST = 1e-12
"""Shorter vectors are divided by this in place of their length, as the reference does."""


@triton.jit
def norm_silu_kernel(
    frames,
    weight,
    past,
    out,
    past_pixels,
    pixels,
    root,
    shortest,
    HAS_PAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Pixels of `out`: first the copied ones of `past`, then the normed ones of `frames`."""
    place = tl.program_id(0).to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    inner = (channel < CHANNELS)[None, :]
    new = place - past_pixels
    new_mask = ((new >= 0) & (new < pixels))[:, None] & inner
    values = tl.load(frames + new[:, None] * CHANNELS + channel[None, :], new_mask, 0.0)
    values = values.to(tl.float32)
    gain = tl.load(weight + channel, channel < CHANNELS, 0.0).to(tl.float32) * root
    length = tl.sqrt(tl.sum(values * values, 1))
    normed = values / tl.maximum(length, shortest)[:, None] * gain[None, :]
    made = normed / (1.0 + tl.exp(-normed))
    target = out + place[:, None] * CHANNELS + channel[None, :]
    tl.store(target, made.to(out.dtype.element_ty), new_mask)
    if HAS_PAST:
        old_mask = (place < past_pixels)[:, None] & inner
        tl.store(
            target, tl.load(past + place[:, None] * CHANNELS + channel[None, :], old_mask), old_mask
        )


def norm_silu(frames: Tensor, weight: Tensor, past: Tensor | None) -> Tensor:
    """See `registry.NormSilu`."""
    channels = frames.shape[-1]
    before = 0 if past is None else len(past)
    out = frames.new_empty(before + len(frames), *frames.shape[1:])
    block_channels = triton.next_power_of_2(channels)
    block_pixels = max(1, BLOCK_VALUES // block_channels)
    total = out.numel() // channels
    norm_silu_kernel[(triton.cdiv(total, block_pixels),)](
        frames,
        weight,
        past,
        out,
        0 if past is None else past.numel() // channels,
        frames.numel() // channels,
        channels**0.5,
        SHORTEST,
        HAS_PAST=past is not None,
        CHANNELS=channels,
        BLOCK_PIXELS=block_pixels,
        BLOCK_CHANNELS=block_channels,
        num_warps=4,
    )
    return out
