"""RMS norm over channels."""

import torch
from torch import Tensor, nn

from helios_serve.model_executor.models.wan_vae.causal_conv import CausalConv3d, CausalState

EPS = 1e-12


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each pixel, times `gamma`. `ones` are its trailing dimensions.

    The parameter has the shape in which checkpoints store it.
    """

    def __init__(self, channels: int, ones: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, *[1] * ones))

    def forward(self, frames: Tensor) -> Tensor:
        """Norm frames (n, h, w, channels), in fp32 or the dtype of `frames` if that is wider."""
        wide = frames if frames.dtype.itemsize > 2 else frames.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min_(EPS)
        scale = self.gamma.flatten().to(wide.dtype) * len(self.gamma) ** 0.5
        return wide.div(length).mul_(scale).to(frames.dtype)


def norm_conv(norm: ChannelNorm, conv: CausalConv3d, frames: Tensor, state: CausalState) -> Tensor:
    """Norm, SiLU and convolution of the next frames: (n, h, w, c) -> (n, h, w, out)."""
    past = state.past(conv.name)
    joined = state.norm_silu(frames, norm.gamma.flatten(), past)
    state.keep(conv.name, joined)
    convolved: Tensor = conv(joined)
    return convolved
