"""Upsampling and downsampling in space and time."""

import torch
from torch import Tensor, nn

from helios_serve.model_executor.models.wan_vae.causal_conv import (
    CausalConv3d,
    CausalState,
    conv_frames,
)

# How the three rows of a kernel fall onto two rows of pixels that were doubled: for the upper of
# two equal rows (the first matrix) the kernel reaches the row above, for the lower the row below.
FOLDS = [[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]


class Upsample(nn.Module):
    """Doubles height and width, halves the channels; doubles the frames if `in_time`.

    The first frame of a video stays one frame.
    """

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(channels, channels // 2, 3))
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if in_time else None

    def forward(self, frames: Tensor, state: CausalState) -> Tensor:
        """Frames (n, h, w, channels) -> (n or 2 * n, 2 * h, 2 * w, channels / 2)."""
        if self.time_conv is not None:
            frames = self._double(self.time_conv, frames, state)
        conv = self.resample[1]
        assert isinstance(conv, nn.Conv2d)
        return conv_doubled(frames, conv.weight, conv.bias)

    def _double(self, conv: CausalConv3d, frames: Tensor, state: CausalState) -> Tensor:
        if state.past(conv.name) is None:
            # The first frame passes, and the second has no past: the convolution never sees it.
            state.keep(conv.name, frames[:0])
            return frames
        doubled = conv.extend(frames, state)
        count, height, width, channels = doubled.shape
        doubled = doubled.reshape(count, height, width, 2, channels // 2)
        return doubled.permute(0, 3, 1, 2, 4).flatten(0, 1)


class Downsample(nn.Module):
    """Halves height and width; halves the frames if `in_time`.

    The first frame of a video stays one frame.
    """

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(channels, channels, 3))
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1)) if in_time else None

    def forward(self, frames: Tensor, state: CausalState) -> Tensor:
        """Frames (n, h, w, channels) -> (n or n / 2, h / 2, w / 2, channels)."""
        conv = self.resample[1]
        assert isinstance(conv, nn.Conv2d)
        padded = nn.functional.pad(frames, (0, 0, 0, 1, 0, 1))
        frames = conv_frames(padded, conv.weight, conv.bias, stride=2, padded=False)
        return frames if self.time_conv is None else self._halve(self.time_conv, frames, state)

    def _halve(self, conv: CausalConv3d, frames: Tensor, state: CausalState) -> Tensor:
        """Convolve each two frames with the one before them."""
        past = state.past(conv.name)
        state.keep(conv.name, frames)
        if past is None:
            return frames
        joined = torch.cat([past[-1:], frames])
        triples = torch.cat([joined[:-2:2], joined[1:-1:2], joined[2::2]], dim=-1)
        weight = conv.weight[..., 0, 0].permute(0, 2, 1).flatten(1)
        return nn.functional.linear(triples, weight, conv.bias)


def conv_doubled(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Double height and width by repetition, then convolve by (out, c, 3, 3), padded.

    Since pixels repeat, each pixel of the result is a convolution by 2 x 2 sums of the weights, of
    its own for each of the four positions: 4 multiplications in place of 9, and no doubled input.
    (n, h, w, c) -> (n, 2 * h, 2 * w, out).
    """
    count, height, width, _ = frames.shape
    channels = len(weight)
    wide = weight if weight.dtype.itemsize > 2 else weight.float()
    fold = torch.tensor(FOLDS, dtype=wide.dtype, device=wide.device)
    folded = torch.einsum("pyi,qxj,ocij->pqocyx", fold, fold, wide).flatten(0, 2)
    out = frames.new_empty(count, height, 2, width, 2, channels)
    padded = nn.functional.pad(frames, (0, 0, 1, 1, 1, 1))
    made = conv_frames(
        padded, folded.to(weight.dtype), None if bias is None else bias.repeat(4), padded=False
    )
    made = made.view(*made.shape[:3], 2, 2, channels)
    for row in range(2):
        for column in range(2):
            out[:, :, row, :, column] = made[
                :, row : row + height, column : column + width, row, column
            ]
    return out.view(count, 2 * height, 2 * width, channels)
