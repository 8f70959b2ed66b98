"""The decoder of the Wan VAE, which makes videos of any length group by group."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from helios_serve.kernels.registry import kernels_of
from helios_serve.model_executor.models.wan_vae.blocks import MidBlock, ResidualBlock
from helios_serve.model_executor.models.wan_vae.causal_conv import (
    CausalConv3d,
    CausalState,
    name_convolutions,
)
from helios_serve.model_executor.models.wan_vae.norm import ChannelNorm, norm_conv
from helios_serve.model_executor.models.wan_vae.resample import Upsample

RGB = 3
FRAMES_AT_ONCE = 2
"""Frames of the full resolution that are made at a time in full precision. With four, the published
decoder takes a quarter more memory than diffusers' (benchmarks/micro/vae_vs_diffusers.py)."""
STRIDE = 8
"""Pixels along a side of a latent one."""
MOST_VALUES = 1 << 30
"""Maximum values of one activation in half precision: their indices must fit int32."""


class UpBlock(nn.Module):
    """The residual blocks of one resolution, and the upsampling to the next one."""

    def __init__(
        self, in_channels: int, channels: int, depth: int, upsample: Upsample | None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * (depth - 1)
        self.resnets = nn.ModuleList(ResidualBlock(width, channels) for width in widths)
        self.upsamplers = None if upsample is None else nn.ModuleList([upsample])


class WanDecoder(nn.Module):
    """The decoder of AutoencoderKLWan, with its parameters.

    - `dim`: channels at the full resolution, times the first of `dim_mult`.
    - `z_dim`: channels of the latents.
    - `dim_mult`: factors of `dim`, from the full resolution to the latents'.
    - `num_res_blocks`: residual blocks of a resolution, less one.
    - `upsample_in_time`: whether each upsampling doubles the frames, from the latents up.
    """

    def __init__(
        self,
        dim: int,
        z_dim: int,
        *,
        dim_mult: Sequence[int],
        num_res_blocks: int,
        upsample_in_time: Sequence[bool],
    ) -> None:
        super().__init__()
        widths = [dim * factor for factor in reversed(dim_mult)]
        self.conv_in = CausalConv3d(z_dim, widths[0], (3, 3, 3))
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = nn.ModuleList()
        width_in = widths[0]
        for level, width in enumerate(widths):
            is_last = level == len(widths) - 1
            upsample = None if is_last else Upsample(width, in_time=upsample_in_time[level])
            self.up_blocks.append(UpBlock(width_in, width, num_res_blocks + 1, upsample))
            width_in = width // 2
        self.norm_out = ChannelNorm(widths[-1], 3)
        self.conv_out = CausalConv3d(widths[-1], RGB, (3, 3, 3))
        name_convolutions(self)

    def forward(self, latents: Tensor, state: CausalState) -> Tensor:
        """Decode the next latents: (n, h, w, z_dim) -> RGB (frames, 8 * h, 8 * w, 3).

        The first latent frame of a video is to come alone, and makes one frame; each later one
        makes four. `state` is extended.
        """
        frames = self.conv_in.extend(latents, state)
        frames = self.mid_block(frames, state)
        return torch.cat(self._climb(0, frames, state, self._room(latents)))

    def _room(self, latents: Tensor) -> int:
        """Return how many values an activation may have.

        In half precision, which GPUs use, all frames of a chunk are decoded at once.
        """
        _, height, width, _ = latents.shape
        pixels = STRIDE * height * STRIDE * width
        few = FRAMES_AT_ONCE * pixels * self.norm_out.gamma.numel()
        return max(few, MOST_VALUES) if latents.dtype.itemsize == 2 else few

    def _climb(self, level: int, frames: Tensor, state: CausalState, room: int) -> list[Tensor]:
        """Decode `frames` from resolution `level` up; return consecutive parts of the video.

        Higher resolutions process only as many frames at a time as `room` allows, one piece after
        the other, so that few large activations exist at a time.
        """
        block = self.up_blocks[level]
        assert isinstance(block, UpBlock)
        for resnet in block.resnets:
            frames = resnet(frames, state)
        if block.upsamplers is None:
            return [norm_conv(self.norm_out, self.conv_out, frames, state)]
        _, height, width, channels = frames.shape
        doubled = 2 * height * 2 * width * (channels // 2)
        pieces = torch.split(frames, max(1, room // doubled))
        del frames
        keeps, made = state.keeps, []
        for number, piece in enumerate(pieces, start=1):
            state.keeps = keeps or number < len(pieces)
            made += self._climb(level + 1, block.upsamplers[0](piece, state), state, room)
        state.keeps = keeps
        return made


def flops_per_pixel(decoder: WanDecoder) -> float:
    """Return the FLOPs for a pixel of the video that residual blocks take; the rest is little.

    A resolution has a quarter of the pixels of the next one, and half its frames where these are
    doubled after it. Convolutions in time take two thirds of what they do plainly (`conv_pairs`),
    in half precision up to all of it.
    """
    flops, pixels = 0.0, 1.0
    for block in reversed(decoder.up_blocks):
        assert isinstance(block, UpBlock)
        for upsample in block.upsamplers or ():
            pixels /= 4 if upsample.time_conv is None else 8
        flops += 2 * pixels * conv_weights(block.resnets) * 2 / 3
    return flops


def conv_weights(module: nn.Module) -> int:
    """Return the number of multiplications of a module's convolutions for one of its pixels."""
    return sum(weight.numel() for weight in module.parameters() if weight.dim() > 2)


def decode_video(decoder: WanDecoder, latents: Tensor, state: CausalState | None = None) -> Tensor:
    """Decode a chunk: (n, h, w, z_dim) -> RGB (1 + 4 * (n - 1), 8 * h, 8 * w, 3).

    The first latent frame is a group of its own, the others are the second group. Without `state`
    the chunk is a video of its own. A state that has chunks before it is continued: the first
    latent frame is then decoded as the others, to as many frames as they make, of which the last is
    the one that it was encoded from. The state is extended.
    """
    if state is not None and state.frames:
        made: Tensor = decoder(latents, state)
        return made[len(made) // len(latents) - 1 :]
    goes_on = state is not None
    if state is None:
        state = CausalState(kernels_of(latents).norm_silu)
    first, rest = latents[:1], latents[1:]
    state.keeps = goes_on or len(rest) > 0
    video: Tensor = decoder(first, state)
    if len(rest) == 0:
        return video
    state.keeps = goes_on
    return torch.cat([video, decoder(rest, state)])
