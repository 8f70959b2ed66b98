"""The encoder of the Wan VAE, which takes videos of any length group by group."""

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
from helios_serve.model_executor.models.wan_vae.resample import Downsample

RGB = 3
GROUP = 4
"""Frames that make one latent frame, and that are encoded at a time."""


class WanEncoder(nn.Module):
    """The encoder of AutoencoderKLWan, with its parameters.

    - `dim`: channels at the full resolution, times the first of `dim_mult`.
    - `moments`: channels of the result, twice those of the latents.
    - `dim_mult`: factors of `dim`, from the full resolution to the latents'.
    - `num_res_blocks`: residual blocks of a resolution.
    - `downsample_in_time`: whether each downsampling halves the frames, from the pixels down.
    """

    def __init__(
        self,
        dim: int,
        moments: int,
        *,
        dim_mult: Sequence[int],
        num_res_blocks: int,
        downsample_in_time: Sequence[bool],
    ) -> None:
        super().__init__()
        widths = [dim * factor for factor in (1, *dim_mult)]
        self.conv_in = CausalConv3d(RGB, widths[0], (3, 3, 3))
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths[1:]):
            inner = [widths[level]] + [width] * (num_res_blocks - 1)
            self.down_blocks.extend(ResidualBlock(channels, width) for channels in inner)
            if level < len(dim_mult) - 1:
                self.down_blocks.append(Downsample(width, in_time=downsample_in_time[level]))
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = ChannelNorm(widths[-1], 3)
        self.conv_out = CausalConv3d(widths[-1], moments, (3, 3, 3))
        name_convolutions(self)

    def forward(self, frames: Tensor, state: CausalState) -> Tensor:
        """Encode the next frames: RGB (n, h, w, 3) -> (latents, h / 8, w / 8, moments).

        The first frame of a video is to come alone, and makes one latent frame; each four later
        ones make another. `state` is extended.
        """
        frames = self.conv_in.extend(frames, state)
        for block in self.down_blocks:
            frames = block(frames, state)
        frames = self.mid_block(frames, state)
        return norm_conv(self.norm_out, self.conv_out, frames, state)


def encode_video(encoder: WanEncoder, frames: Tensor) -> Tensor:
    """Encode a whole video: RGB (1 + 4 * n, h, w, 3) -> (1 + n, h / 8, w / 8, moments).

    Frames after the last whole group of four are left out, as diffusers does.
    """
    state = CausalState(kernels_of(frames).norm_silu)
    count = (len(frames) - 1) // GROUP
    groups = [frames[:1], *torch.split(frames[1 : 1 + GROUP * count], GROUP)][: 1 + count]
    made = []
    for number, group in enumerate(groups):
        state.keeps = number < count
        made.append(encoder(group, state))
    return torch.cat(made)
