"""The blocks that the encoder and the decoder share."""

import torch.nn.functional as F
from torch import Tensor, nn

from helios_serve.model_executor.models.wan_vae.causal_conv import (
    CausalConv3d,
    CausalState,
    conv_frames,
)
from helios_serve.model_executor.models.wan_vae.norm import ChannelNorm, norm_conv


class ResidualBlock(nn.Module):
    """Two normed convolutions, with a shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(in_channels, 3)
        self.conv1 = CausalConv3d(in_channels, out_channels, (3, 3, 3))
        self.norm2 = ChannelNorm(out_channels, 3)
        self.conv2 = CausalConv3d(out_channels, out_channels, (3, 3, 3))
        self.conv_shortcut = (
            None
            if in_channels == out_channels
            else CausalConv3d(in_channels, out_channels, (1, 1, 1))
        )

    def forward(self, frames: Tensor, state: CausalState) -> Tensor:
        """Frames (n, h, w, in channels) -> (n, h, w, out channels)."""
        changed = norm_conv(self.norm1, self.conv1, frames, state)
        changed = norm_conv(self.norm2, self.conv2, changed, state)
        kept = frames if self.conv_shortcut is None else self.conv_shortcut(frames)
        return changed.add_(kept)


class AttentionBlock(nn.Module):
    """Self-attention of one head among the pixels of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (n, h, w, channels) -> the same shape."""
        qkv = conv_frames(self.norm(frames), self.to_qkv.weight, self.to_qkv.bias)
        rows = qkv.flatten(1, 2).unsqueeze(1)  # (n, 1 head, h * w, 3 * channels)
        query, key, value = rows.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.view(frames.shape)
        return conv_frames(mixed, self.proj.weight, self.proj.bias).add_(frames)


class MidBlock(nn.Module):
    """Attention between two residual blocks, at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(channels)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels) for _ in range(2)])

    def forward(self, frames: Tensor, state: CausalState) -> Tensor:
        """Frames (n, h, w, channels) -> the same shape."""
        frames = self.resnets[0](frames, state)
        frames = self.attentions[0](frames)
        mixed: Tensor = self.resnets[1](frames, state)
        return mixed
